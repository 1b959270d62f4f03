"""Boards: one for each threat model, example set and mode that has cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from bench.core.cards import DefenseCard, ThreatCard
from bench.core.cells import CLEAN, COSTLY_FORWARDS, FEW_EXAMPLES, MODES
from bench.core.errors import BenchError
from bench.core.hashing import canonical
from bench.store import Store


@dataclass(frozen=True)
class Leaderboard:
    """The rules that every row of one board shares."""

    name: str
    """Name of the threat model."""
    id: str
    """Digest of its rules."""
    dataset: str
    set: Mapping[str, Any]
    """The perturbation set: name, eps as an exact fraction, radius."""
    access: str
    goal: Mapping[str, str]
    """kind and rule."""
    budget: Mapping[str, int | None]
    """gradients and queries an example."""
    summary: str
    ranked: bool
    """False for boards that are evidence only."""
    order: int
    required: tuple[str, ...]
    """Attacks without which an entry has no rank."""
    examples: str
    """Digest of the example set."""
    n: int
    mode: str

    @property
    def radius(self) -> float:
        """The radius of the set."""
        return float(self.set["radius"])

    @property
    def unbounded(self) -> bool:
        """Is every image of the pixel box allowed?"""
        return self.set["name"] == "Linf" and self.radius >= 1

    @property
    def targets(self) -> bool:
        """Does an example stand once for each wrong class?"""
        return self.goal["rule"] == "all"

    @property
    def nearest(self) -> bool:
        """Does the board hold distances rather than a verdict at one radius?"""
        return self.goal["kind"] == "nearest"

    def relatives(self, others: Iterable[Leaderboard]) -> list[Leaderboard]:
        """Boards that differ from this one in the radius alone, the smallest first."""
        kin = [other for other in others if other._family() == self._family()]
        return sorted((o for o in kin if o.radius != self.radius), key=lambda o: o.radius)

    def _family(self) -> tuple[object, ...]:
        rules = canonical([dict(self.goal), dict(self.budget)])
        return self.dataset, self.set["name"], self.access, rules, self.examples, self.mode


def leaderboards(store: Store) -> list[Leaderboard]:
    """All boards in display order: by the threat's order and name, the most examples first."""
    threats = _by_id(store.cards(ThreatCard))
    rows = (
        row for row in store.cells() if row.cell.attack != CLEAN and row.cell.threat_id in threats
    )
    costly = {card.name for card in store.cards(DefenseCard) if is_costly(card)}
    found: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        found.setdefault((row.cell.threat_id, row.cell.examples, row.cell.mode), set()).add(
            row.cell.defense
        )
    sizes = {examples: store.examples(examples).n for _, examples, _ in found}
    large = {(id_, mode) for id_, examples, mode in found if sizes[examples] > FEW_EXAMPLES}
    made = [
        _board(threats[id_], examples, sizes[examples], mode)
        for (id_, examples, mode), names in found.items()
        if not (sizes[examples] == FEW_EXAMPLES and names <= costly and (id_, mode) in large)
    ]
    return sorted(made, key=lambda b: (b.order, b.name, -b.n, b.mode, b.examples))


def is_costly(defense: DefenseCard) -> bool:
    """Does one answer cost so much that the defense is played on FEW examples?

    Then it is a guest of the large board, and has none of its own beside it.
    """
    return defense.forwards > COSTLY_FORWARDS


def find_leaderboard(store: Store, threat: str | None, mode: str = "full") -> Leaderboard:
    """The first board of a mode, or the first of the named threat model.

    BenchError where there is none.
    """
    if mode not in MODES:
        raise BenchError(f"--mode came as {mode!r}; use one of {', '.join(MODES)}.")
    known = leaderboards(store)
    for board in known:
        if board.mode == mode and (threat is None or threat in (board.name, board.id)):
            return board
    raise BenchError(_nothing(threat, mode, known))


def _by_id(cards: Iterable[ThreatCard]) -> dict[str, ThreatCard]:
    """Threat cards by the digest of their rules; of two names for one set of rules, the first.

    Entries whose code nobody has read yet have no rules.
    """
    known = [card for card in cards if card.id]
    ordered = sorted(known, key=lambda card: (card.order, card.name), reverse=True)
    return {card.id: card for card in ordered}


def _board(card: ThreatCard, examples: str, n: int, mode: str) -> Leaderboard:
    return Leaderboard(
        name=card.name,
        id=card.id,
        dataset=card.dataset,
        set=card.set,
        access=card.access,
        goal=card.goal,
        budget=card.budget,
        summary=card.summary,
        ranked=card.ranked,
        order=card.order,
        required=card.required,
        examples=examples,
        n=n,
        mode=mode,
    )


def _nothing(threat: str | None, mode: str, known: list[Leaderboard]) -> str:
    if not known:
        return "the database holds no board yet; `bench run` plays the default ones."
    wanted = [board for board in known if threat in (None, board.name, board.id)]
    if wanted:
        other = wanted[0]
        return (
            f"{other.name} was played in {other.mode} mode alone; name it with --mode {other.mode},"
            f" or play it with `bench run --threat {other.name} --mode {mode}`."
        )
    near = get_close_matches(str(threat), [board.name for board in known], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(dict.fromkeys(board.name for board in known))
    return f"no board of a threat model named {threat!r}.{hint} Boards: {names}."
