"""Leaderboards: one for each threat model, protocol, example set and mode that has cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from bench.core.cards import DefenseCard, ThreatCard
from bench.core.cells import (
    BALANCED_ORDER,
    CLEAN,
    COSTLY_FORWARDS,
    EXAMPLE_ORDERS,
    FAST,
    FEW_EXAMPLES,
    MODES,
)
from bench.core.errors import BenchError
from bench.core.hashing import canonical
from bench.core.protocols import LeaderboardProtocol
from bench.core.radii import exact_fraction
from bench.core.variant_names import base_name, is_variant, split_variant
from bench.results.fast_suite import fast_protocol, mode_option
from bench.store import ExamplesRow, Store


@dataclass(frozen=True)
class Leaderboard:
    """The rules that every row of one leaderboard shares."""

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
    """Gradient evaluations and queries per example."""
    summary: str
    protocol: LeaderboardProtocol
    """What it asks of every defense."""
    order: int
    examples: str
    """Digest of the example set."""
    n: int
    mode: str
    example_order: str = BALANCED_ORDER
    """Which test images they are: one of EXAMPLE_ORDERS."""

    @property
    def ranked(self) -> bool:
        """False where the leaderboard is evidence only."""
        return self.protocol.ranked

    @property
    def required(self) -> tuple[str, ...]:
        """Attacks without which a defense has no rank."""
        return self.protocol.required

    @property
    def radius(self) -> float:
        """The radius of the set."""
        return float(self.set["radius"])

    @property
    def is_unbounded(self) -> bool:
        """Whether every image of the pixel box is allowed."""
        return self.set["name"] == "Linf" and self.radius >= 1

    @property
    def is_variant(self) -> bool:
        """Whether it is of a registered threat model with another radius or norm."""
        return is_variant(self.name)

    @property
    def has_all_targets(self) -> bool:
        """Whether each example has one item for each wrong class."""
        return self.goal["rule"] == "all"

    @property
    def is_nearest(self) -> bool:
        """Whether attacks look for the nearest adversarial example, not for one within a radius."""
        return self.goal["kind"] == "nearest"

    def other_radii(self, others: Iterable[Leaderboard]) -> list[Leaderboard]:
        """Leaderboards that differ from this one in the radius alone, the smallest first."""
        alike = [other for other in others if other._family() == self._family()]
        return sorted((one for one in alike if one.radius != self.radius), key=lambda o: o.radius)

    def _family(self) -> tuple[object, ...]:
        rules = canonical([dict(self.goal), dict(self.budget)])
        return self.dataset, self.set["name"], self.access, rules, self.examples, self.mode


def leaderboards(store: Store) -> list[Leaderboard]:
    """All leaderboards: by the threat model's order and name, the most examples first.

    The variants of one threat model are in the order of their radii.
    """
    threats = _by_id(store.cards(ThreatCard))
    costly = {card.name for card in store.cards(DefenseCard) if is_costly(card)}
    found: dict[tuple[str, str, str], set[str]] = {}
    for cell in (row.cell for row in store.cells()):
        if cell.attack != CLEAN and cell.threat_id in threats:
            key = (cell.threat_id, cell.examples, cell.mode)
            found.setdefault(key, set()).add(cell.defense)
    sets = {examples: store.examples(examples) for _, examples, _ in found}
    large = {
        (id_, mode, sets[examples].order)
        for id_, examples, mode in found
        if sets[examples].n > FEW_EXAMPLES
    }
    made = [
        _leaderboard(card, sets[examples], mode)
        for (id_, examples, mode), names in found.items()
        if sets[examples].n != FEW_EXAMPLES
        or not names <= costly
        or (id_, mode, sets[examples].order) not in large
        for card in threats[id_]
    ]
    return sorted(made, key=_place)


def _place(board: Leaderboard) -> tuple[object, ...]:
    named = (board.order, base_name(board.name), board.radius if board.is_variant else 0.0)
    mode = MODES.index(board.mode)
    return (*named, board.name, board.example_order, -board.n, mode, board.examples)


def is_costly(defense: DefenseCard) -> bool:
    """Whether an answer costs so much that the defense is evaluated on FEW_EXAMPLES alone.

    Such a defense is listed on the leaderboard of all examples and has none of its own.
    """
    return defense.forwards > COSTLY_FORWARDS


def find_leaderboard(
    store: Store, threat: str | None, mode: str = "full", order: str | None = None
) -> Leaderboard:
    """The first leaderboard of a mode, or the first of the named threat model.

    A variant such as `digits-linf[eps=1/10]` names every leaderboard with these rules. `order` is
    one of EXAMPLE_ORDERS; None: any, the balanced one first. Raises BenchError where there is none.
    """
    if mode not in MODES:
        raise BenchError(f"--mode is {mode!r}; use one of {', '.join(MODES)}.")
    if order not in (None, *EXAMPLE_ORDERS):
        raise BenchError(f"--order is {order!r}; use one of {', '.join(EXAMPLE_ORDERS)}.")
    known = leaderboards(store)
    ordered = [found for found in known if order in (None, found.example_order)]
    is_meant = _meaning_of(store, threat, known)
    for leaderboard in ordered:
        if leaderboard.mode == mode and is_meant(leaderboard):
            return leaderboard
    if known and not ordered:
        raise BenchError(
            f"the database has no leaderboard of the {order} order; `bench run --order {order}` "
            "evaluates one."
        )
    raise BenchError(_nothing(threat, mode, ordered))


def _meaning_of(
    store: Store, threat: str | None, known: Iterable[Leaderboard]
) -> Callable[[Leaderboard], bool]:
    """Whether a leaderboard is of the named threat model; None: of any."""
    if threat is None:
        return lambda _: True
    names = {name for board in known for name in (board.name, board.id)}
    if not is_variant(threat) or threat in names:
        return lambda board: threat in (board.name, board.id)
    base, settings = split_variant(threat, "threat")
    found = [card for card in store.cards(ThreatCard) if card.name == base]
    rules = [(c.dataset, c.access, canonical([dict(c.goal), dict(c.budget)])) for c in found]
    norms = {settings.get("norm", str(card.set["name"])) for card in found}
    given = exact_fraction(settings["eps"]) if "eps" in settings else None
    eps = {Fraction(str(card.set["eps"])) if given is None else given for card in found}

    def is_same(board: Leaderboard) -> bool:
        own = (board.dataset, board.access, canonical([dict(board.goal), dict(board.budget)]))
        same_set = board.set["name"] in norms and Fraction(str(board.set["eps"])) in eps
        return own in rules and same_set

    return is_same


def _by_id(cards: Iterable[ThreatCard]) -> dict[str, list[ThreatCard]]:
    """Threat cards by the digest of their rules; of two names for one protocol, the first."""
    known = [card for card in cards if card.id]  # a submission that is not imported has no rules
    ordered = sorted(known, key=lambda card: (card.order, card.name), reverse=True)
    found: dict[str, dict[str, ThreatCard]] = {}
    for card in ordered:
        found.setdefault(card.id, {})[card.protocol.id] = card
    return {id_: list(by_protocol.values()) for id_, by_protocol in found.items()}


def _leaderboard(card: ThreatCard, examples: ExamplesRow, mode: str) -> Leaderboard:
    norm = str(card.set["name"])
    return Leaderboard(
        name=card.name,
        id=card.id,
        dataset=card.dataset,
        set=card.set,
        access=card.access,
        goal=card.goal,
        budget=card.budget,
        summary=card.summary,
        protocol=fast_protocol(card.protocol, norm) if mode == FAST else card.protocol,
        order=card.order,
        examples=examples.digest,
        n=examples.n,
        mode=mode,
        example_order=examples.order,
    )


def _nothing(threat: str | None, mode: str, known: list[Leaderboard]) -> str:
    if not known:
        return (
            "the database has no leaderboard yet; `bench run` evaluates the default threat models."
        )
    wanted = [found for found in known if threat in (None, found.name, found.id)]
    if wanted:
        other = wanted[0]
        here, option = (mode_option(one) or " --mode full" for one in (other.mode, mode))
        return (
            f"{other.name} was evaluated in {other.mode} mode alone; add{here}, or"
            f" evaluate it with `bench run --threat {other.name}{option}`."
        )
    near = get_close_matches(str(threat), [leaderboard.name for leaderboard in known], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(dict.fromkeys(leaderboard.name for leaderboard in known))
    return f"no leaderboard of a threat model named {threat!r}.{hint} Leaderboards: {names}."
