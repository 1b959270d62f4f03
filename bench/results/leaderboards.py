"""Leaderboards: one for each threat model, example set and mode that has cells."""

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
    ranked: bool
    """False where the leaderboard is evidence only."""
    order: int
    required: tuple[str, ...]
    """Attacks without which a defense has no rank."""
    examples: str
    """Digest of the example set."""
    n: int
    mode: str

    @property
    def radius(self) -> float:
        """The radius of the set."""
        return float(self.set["radius"])

    @property
    def is_unbounded(self) -> bool:
        """Whether every image of the pixel box is allowed."""
        return self.set["name"] == "Linf" and self.radius >= 1

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
    """All leaderboards: by the threat model's order and name, the most examples first."""
    threats = _by_id(store.cards(ThreatCard))
    costly = {card.name for card in store.cards(DefenseCard) if is_costly(card)}
    found: dict[tuple[str, str, str], set[str]] = {}
    for cell in (row.cell for row in store.cells()):
        if cell.attack != CLEAN and cell.threat_id in threats:
            key = (cell.threat_id, cell.examples, cell.mode)
            found.setdefault(key, set()).add(cell.defense)
    sizes = {examples: store.examples(examples).n for _, examples, _ in found}
    large = {(id_, mode) for id_, examples, mode in found if sizes[examples] > FEW_EXAMPLES}
    made = [
        _leaderboard(threats[id_], examples, sizes[examples], mode)
        for (id_, examples, mode), names in found.items()
        if not (sizes[examples] == FEW_EXAMPLES and names <= costly and (id_, mode) in large)
    ]
    return sorted(made, key=lambda b: (b.order, b.name, -b.n, b.mode, b.examples))


def is_costly(defense: DefenseCard) -> bool:
    """Whether an answer costs so much that the defense is evaluated on FEW_EXAMPLES alone.

    Such a defense is listed on the leaderboard of all examples and has none of its own.
    """
    return defense.forwards > COSTLY_FORWARDS


def find_leaderboard(store: Store, threat: str | None, mode: str = "full") -> Leaderboard:
    """The first leaderboard of a mode, or the first of the named threat model.

    Raises BenchError where there is none.
    """
    if mode not in MODES:
        raise BenchError(f"--mode is {mode!r}; use one of {', '.join(MODES)}.")
    known = leaderboards(store)
    for leaderboard in known:
        if leaderboard.mode == mode and (
            threat is None or threat in (leaderboard.name, leaderboard.id)
        ):
            return leaderboard
    raise BenchError(_nothing(threat, mode, known))


def _by_id(cards: Iterable[ThreatCard]) -> dict[str, ThreatCard]:
    """Threat cards by the digest of their rules; of two names for the same rules, the first."""
    known = [card for card in cards if card.id]  # a submission that is not imported has no rules
    ordered = sorted(known, key=lambda card: (card.order, card.name), reverse=True)
    return {card.id: card for card in ordered}


def _leaderboard(card: ThreatCard, examples: str, n: int, mode: str) -> Leaderboard:
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
        return (
            "the database has no leaderboard yet; `bench run` evaluates the default threat models."
        )
    wanted = [found for found in known if threat in (None, found.name, found.id)]
    if wanted:
        other = wanted[0]
        return (
            f"{other.name} was evaluated in {other.mode} mode alone; add --mode {other.mode}, or"
            f" evaluate it with `bench run --threat {other.name} --mode {mode}`."
        )
    near = get_close_matches(str(threat), [leaderboard.name for leaderboard in known], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(dict.fromkeys(leaderboard.name for leaderboard in known))
    return f"no leaderboard of a threat model named {threat!r}.{hint} Leaderboards: {names}."
