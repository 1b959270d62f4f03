"""A real store filled by hand: cards, cells and outcomes that a test chooses bit by bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.records import CLEAN, Card, Cell, CellState, Chunk, KeptImage, Outcomes, Verdict, digest
from bench.store import Planned, Store

Bits = npt.NDArray[np.bool_]


def first(k: int, n: int = 600) -> Bits:
    """The first k of n."""
    return np.arange(n) < k


def some(n: int, *ids: int) -> Bits:
    """Exactly these of n."""
    return np.isin(np.arange(n), ids)


def outcomes(
    broken: Bits,
    items: npt.NDArray[np.int32] | None = None,
    labels: npt.NDArray[np.int16] | None = None,
    **columns: Any,
) -> Outcomes:
    """Outcomes [n] that hold or break as told; any other column may be given."""
    n = len(broken)
    item = np.arange(n, dtype=np.int32) if items is None else items
    truth = np.zeros(n, np.int16) if labels is None else labels
    made = Outcomes(
        item=item,
        verdict=np.where(broken, int(Verdict.BROKEN), int(Verdict.HELD)).astype(np.uint8),
        eight_bit=broken.copy(),
        fragile=np.zeros(n, np.bool_),
        distance=np.full(n, 0.1),
        label=np.where(broken, truth + 1, truth).astype(np.int16),
        confidence=np.ones(n, np.float32),
        forwards=np.full(n, 3, np.int32),
        gradients=np.full(n, 2, np.int32),
        looks=np.ones(n, np.int32),
        step=np.where(broken, 1, -1).astype(np.int32),
        run=np.where(broken, 0, -1).astype(np.int32),
        rejection=np.full(n, -np.inf, np.float32),
    )
    kinds = {name: getattr(made, name).dtype for name in columns}
    return made._replace(**{name: np.asarray(v, kinds[name]) for name, v in columns.items()})


@dataclass
class World:
    """A store with one set of examples; all labels are 0 of `classes`."""

    store: Store
    n: int = 600
    classes: int = 3
    examples: str = "examples"
    threats: dict[str, str] = field(default_factory=dict)
    digests: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = tuple(f"class {i}" for i in range(self.classes))
        labels = np.zeros(self.n, np.int16)
        self.store.keep_examples(self.examples, "digits", self.n, labels, names, (1, 2, 2))

    def threat(self, name: str = "linf", *required: str, **changes: Any) -> None:
        """Declare a threat model; `eps` is a float, every other rule may be named."""
        radius = changes.pop("eps", 0.2)
        norm = changes.pop("norm", "Linf")
        goal = {"kind": changes.pop("goal", "untargeted"), "rule": changes.pop("rule", "")}
        rules = {
            "dataset": "digits",
            "set": {"name": norm, "eps": str(radius), "radius": radius},
            "access": "gradients",
            "goal": goal,
            "budget": {"gradients": None, "queries": None},
            "required": sorted(required),
            "ranked": True,
        } | changes
        order = rules.pop("order", 1)
        id_ = digest(rules)[:16]
        self.threats[name] = id_
        detail = {**rules, "id": id_, "examples": 500, "order": order}
        self.store.declare([Card("threat", name, "built-in", id_, "", "A rule.", detail)])

    def attack(self, name: str, needs: str = "gradients", steps: int = 40, **more: Any) -> None:
        """Declare an attack; `version` changes its digest."""
        version = more.pop("version", "1")
        detail = {"needs": needs, "steps": steps, "source": "", **more}
        self._declare("attack", name, f"{name} {version}", detail)

    def defense(
        self, name: str, *claims: dict[str, Any], version: str = "1", forwards: int = 1
    ) -> None:
        """Declare a defense; `version` changes its digest."""
        detail = {"claims": list(claims), "forwards": forwards}
        self._declare("defense", name, f"{name} {version}", detail)

    def unbuilt(self, name: str, **detail: Any) -> None:
        """Declare a defense again, without a digest or with `digests` by data set."""
        self.store.declare([Card("defense", name, "built-in", "", "", "", detail)])

    def tool(self, kind: str, name: str, source: str = "", **detail: Any) -> None:
        """Declare a certifier or a diagnostic."""
        self._declare(kind, name, source or name, detail)

    def _declare(self, kind: str, name: str, text: str, detail: dict[str, Any]) -> None:
        self.digests[kind, name] = digest(text)
        card = Card(kind, name, "built-in", self.digests[kind, name], "", "", detail)
        self.store.declare([card])

    def cell(self, defense: str, attack: str, threat: str = "linf", **changes: Any) -> Cell:
        """The cell of current digests."""
        clean = attack == CLEAN
        items = changes.pop("items", self.n)
        return Cell(
            threat="" if clean else threat,
            defense=defense,
            attack=attack,
            threat_id="" if clean else self.threats[threat],
            defense_digest=self.digests["defense", defense],
            attack_digest="" if clean else self.digests["attack", attack],
            examples=self.examples,
            items=items,
            **changes,
        )

    def clean(self, defense: str, right: Bits) -> None:
        """The clean pass."""
        self.record(self.cell(defense, CLEAN), outcomes(~right, step=np.full(self.n, -1)))

    def play(self, defense: str, attack: str, broken: Bits, **columns: Any) -> Cell:
        """A finished cell in which these items broke."""
        threat = columns.pop("threat", "linf")
        cell_fields = {
            k: columns.pop(k) for k in ("seed", "mode", "protocol", "before") if k in columns
        }
        cell = self.cell(defense, attack, threat, items=len(broken), **cell_fields)
        self.record(cell, outcomes(broken, **columns))
        return cell

    def plan(self, cell: Cell, state: CellState = CellState.MISSING, reason: str = "") -> None:
        """A cell that nobody played."""
        self.store.plan([Planned(cell, state, reason, required=True)])

    def record(
        self,
        cell: Cell,
        found: Outcomes,
        *,
        chunks: Iterable[Sequence[int]] | None = None,
        images: tuple[KeptImage, ...] = (),
        exact: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Play a cell: the rows of `found` in these chunks, all at once by default."""
        self.store.plan([Planned(cell)])
        lease = self.store.lease(cell.key, "away@another-host")
        assert lease is not None
        for rows in [range(len(found.item))] if chunks is None else chunks:
            chosen = np.array(rows, np.intp)
            part = Outcomes._make(column[chosen] for column in found)
            kept = None if exact is None else (part.item, exact[chosen])
            self.store.record(lease, Chunk(part, 0.5, images, kept))
            images = ()
        self.store.finish(lease)
