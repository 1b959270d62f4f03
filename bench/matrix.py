"""The cells to play: every attack against every defense, and why some pairs may not meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.plugin import Attack, Dataset, Defense, Traits
from bench.records import Access, BenchError
from bench.registry import Registry
from bench.target import WORDS
from bench.threat import ThreatModel

ALL = "all"


@dataclass(frozen=True)
class Selection:
    """What a run was asked to play, by name; empty means the default."""

    threats: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    examples: int | None = None
    seed: int = 0
    mode: str = "full"


@dataclass(frozen=True)
class Pair:
    """One attack and one defense on one board."""

    threat: ThreatModel
    defense: Defense
    attack: Attack
    reason: str = ""
    """Why they may not meet; empty when they may."""

    @property
    def required(self) -> bool:
        """Whether the defense has no rank without it."""
        return self.attack.name in self.threat.required


def threats(registry: Registry, selection: Selection) -> list[ThreatModel]:
    """The boards asked for; by default those of the embedded data, which need no download."""
    if selection.threats:
        names = _expand(selection.threats, registry.threats)
        chosen = [registry.find("threat", name).value for name in names]
    else:
        chosen = [o.value for o in registry.threats.values() if o.value.dataset == EMBEDDED]
        chosen = [threat for threat in chosen if threat.required]
    return sorted(chosen, key=lambda threat: (threat.order, threat.name))


EMBEDDED = "digits"
"""The data set that is always there."""


def pairs(registry: Registry, selection: Selection) -> list[Pair]:
    """Every pair of the selection, defense by defense so that each is built once."""
    boards = threats(registry, selection)
    chosen = defenses(registry, selection, boards)
    return [
        Pair(threat, defense, attack, why_not(threat, defense, attack))
        for defense in chosen
        for threat in boards
        if threat.dataset in defense.datasets
        for attack in attacks(registry, selection, threat)
    ]


def defenses(
    registry: Registry, selection: Selection, boards: Iterable[ThreatModel]
) -> list[Defense]:
    """The defenses asked for; by default the quick set and every submission."""
    if selection.defenses:
        names = _expand(selection.defenses, registry.defenses)
        chosen = [registry.find("defense", name).value for name in names]
    else:
        offers = registry.defenses.values()
        chosen = [o.value for o in offers if o.value.quick or o.origin == "submission"]
    data = {threat.dataset for threat in boards}
    fitting = [defense for defense in chosen if data & set(defense.datasets)]
    if not fitting:
        raise BenchError(
            f"none of the chosen defenses serves {', '.join(sorted(data))}; "
            "`bench list defenses` tells which data sets each one serves."
        )
    return fitting


def attacks(registry: Registry, selection: Selection, threat: ThreatModel) -> list[Attack]:
    """The attacks asked for; by default those without which nobody is ranked, and submissions."""
    submitted = [n for n, offer in registry.attacks.items() if offer.origin == "submission"]
    names: Sequence[str] = selection.attacks or [*threat.required, *submitted]
    return [registry.find("attack", name).value for name in _expand(names, registry.attacks)]


def why_not(threat: ThreatModel, defense: Defense, attack: Attack) -> str:
    """One sentence when this attack cannot be played there; empty when it can."""
    traits = Traits.of(attack)
    asks_target = Access.NOTHING if traits.source else attack.needs
    if asks_target > threat.access:
        revealed = WORDS.get(threat.access, "nothing")
        return f"{attack.name} needs {WORDS[asks_target]}; {threat.name} reveals {revealed} only."
    if traits.norms and threat.ball.name not in traits.norms:
        return f"{attack.name} works in {', '.join(traits.norms)}; {threat.name} is {_set(threat)}."
    if traits.goals and threat.goal.kind not in traits.goals:
        return f"{attack.name} serves {', '.join(traits.goals)} goals; {_goal(threat)}."
    if threat.goal.kind == "nearest" and not traits.minimises:
        return f"{attack.name} does not shrink its perturbation, and {_goal(threat)}."
    if traits.source and defense.twin == defense.name:
        return f"{defense.name} is its own twin: a transfer from itself is no transfer."
    return ""


def examples(threat: ThreatModel, selection: Selection, dataset: Dataset) -> int:
    """How many of the fixed examples this board plays."""
    return selection.examples or min(threat.examples, dataset.test_size)


def _set(threat: ThreatModel) -> str:
    return f"{threat.ball.name} {threat.ball.eps}"


def _goal(threat: ThreatModel) -> str:
    return f"the goal of {threat.name} is {threat.goal.kind}"


def _expand(names: Sequence[str], known: Iterable[str]) -> list[str]:
    """`all` stands for every known name; each name once, in order."""
    return list(dict.fromkeys(n for name in names for n in (known if name == ALL else [name])))
