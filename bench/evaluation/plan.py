"""The cells to play: every attack against every defense, and why some pairs may not meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.core.cells import COSTLY_FORWARDS, FEW_EXAMPLES
from bench.core.errors import BenchError
from bench.engine.model_access import ACCESS_WORDS
from bench.evaluation import cascade
from bench.plugin import Attack, Dataset, Defense, Traits
from bench.registry.registry import Registry
from bench.threats.access import Access
from bench.threats.suites import find_suite
from bench.threats.threat_model import ThreatModel

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
    suite: str = ""
    """A named battery that is played besides the attacks."""


@dataclass(frozen=True)
class PlannedPair:
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


def selected_threats(registry: Registry, selection: Selection) -> list[ThreatModel]:
    """The boards asked for; by default those of the embedded data, which need no download.

    BenchError where a board is named that has no rank mode, or no battery in the suite; those
    are left out of `all` and of the default.
    """
    if selection.suite:
        find_suite(selection.suite)
    if selection.threats:
        names = _expand(selection.threats, registry.threats)
        chosen = [registry.find("threat", name).value for name in names]
    else:
        chosen = [o.value for o in registry.threats.values() if o.value.dataset == EMBEDDED]
        chosen = [threat for threat in chosen if threat.required]
    chosen = [threat for threat in chosen if _serves(threat, selection)]
    return sorted(chosen, key=lambda threat: (threat.order, threat.name))


def _serves(threat: ThreatModel, selection: Selection) -> bool:
    """Whether the board can be played as asked; BenchError where it was named and cannot."""
    try:
        if selection.mode == "rank" and threat.goal.kind == "nearest":
            raise BenchError(
                f"{threat.name} keeps the nearest success of all attacks, so none may be spared an "
                "example; play it with --mode full."
            )
        suite_attacks(selection, threat)
    except BenchError:
        if threat.name in selection.threats:
            raise
        return False
    return True


def suite_attacks(selection: Selection, threat: ThreatModel) -> tuple[str, ...]:
    """The attacks of the suite on a board; BenchError where it does not cover the board."""
    if not selection.suite:
        return ()
    access = threat.access.name.lower()
    return find_suite(selection.suite).on(threat.name, threat.ball.name, access, threat.goal.kind)


EMBEDDED = "digits"
"""The data set that is always there."""


def plan_pairs(registry: Registry, selection: Selection) -> list[PlannedPair]:
    """Every pair of the selection, defense by defense so that each is built once."""
    boards = selected_threats(registry, selection)
    chosen = selected_defenses(registry, selection, boards)
    return [
        PlannedPair(
            threat,
            defense,
            attack,
            why_not_applicable(threat, defense, attack, _surrogate(registry, defense)),
        )
        for defense in chosen
        for threat in boards
        if threat.dataset in defense.datasets
        for attack in selected_attacks(registry, selection, threat)
    ]


def selected_defenses(
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


def selected_attacks(registry: Registry, selection: Selection, threat: ThreatModel) -> list[Attack]:
    """The attacks asked for and those of the suite, each once.

    Without either those without which nobody is ranked, and submissions. In rank mode in the order
    of the cascade.
    """
    together = _offered(registry, selection, threat)
    submitted = [n for n, offer in registry.attacks.items() if offer.origin == "submission"]
    default = () if together else (*threat.required, *submitted)
    names = (*(selection.attacks or default), *together)
    chosen = [registry.find("attack", name).value for name in _expand(names, registry.attacks)]
    if selection.mode == "full":
        return chosen
    classes = len(registry.find("dataset", threat.dataset).value.classes)
    return cascade.cascade_order(chosen, classes, threat.required)


def _offered(registry: Registry, selection: Selection, threat: ThreatModel) -> tuple[str, ...]:
    """The battery of a board; BenchError where one of its attacks is not there."""
    named = suite_attacks(selection, threat)
    absent = [name for name in named if name not in registry.attacks]
    if absent:
        raise BenchError(
            f"suite {selection.suite} plays {', '.join(absent)} on {threat.name}, which no "
            "plugin offers; install one that does, or name the others with --attack."
        )
    return named


def _surrogate(registry: Registry, defense: Defense) -> Defense | None:
    """The defense that transfer attacks ask instead; None where no plugin offers it."""
    offer = registry.defenses.get(defense.surrogate)
    return None if offer is None else offer.value


def why_not_applicable(
    threat: ThreatModel, defense: Defense, attack: Attack, surrogate: Defense | None = None
) -> str:
    """One sentence when this attack cannot be played there; empty when it can.

    `surrogate` is what a transfer attack would ask; None where that is not known.
    """
    traits = Traits.of(attack)
    asks_target = Access.NOTHING if traits.source else attack.needs
    if asks_target > threat.access:
        revealed = ACCESS_WORDS.get(threat.access, "nothing")
        needed = ACCESS_WORDS[asks_target]
        return f"{attack.name} needs {needed}; {threat.name} reveals {revealed} only."
    if traits.norms and threat.ball.name not in traits.norms:
        return f"{attack.name} works in {', '.join(traits.norms)}; {threat.name} is {_set(threat)}."
    if traits.goals and threat.goal.kind not in traits.goals:
        return f"{attack.name} serves {', '.join(traits.goals)} goals; {_goal(threat)}."
    if threat.goal.kind == "nearest" and not traits.minimises:
        return f"{attack.name} does not shrink its perturbation, and {_goal(threat)}."
    if traits.joint and defense.rejects is None:
        return f"{attack.name} goes for classifier and detector; {defense.name} has no detector."
    return _no_source(threat, defense, surrogate) if traits.source else ""


def _no_source(threat: ThreatModel, defense: Defense, surrogate: Defense | None) -> str:
    """One sentence when a transfer attack finds nobody to ask; empty when it does."""
    if defense.surrogate == defense.name:
        return f"{defense.name} is its own surrogate: a transfer from itself is no transfer."
    if surrogate is not None and threat.dataset not in surrogate.datasets:
        return (
            f"a transfer to {defense.name} asks its surrogate {surrogate.name}, which serves "
            f"{', '.join(surrogate.datasets)}; {threat.name} is played on {threat.dataset}."
        )
    if surrogate is not None and surrogate.randomness is not None:
        return (
            f"a transfer to {defense.name} asks its surrogate {surrogate.name}, which answers at "
            "random; "
            "name a surrogate that gives one image one answer."
        )
    return ""


def example_count(
    threat: ThreatModel, defense: Defense, selection: Selection, dataset: Dataset
) -> int:
    """How many of the fixed examples a defense plays on this board; the first ones in any case."""
    fair = min(threat.examples, dataset.test_size)
    return selection.examples or (
        min(fair, FEW_EXAMPLES) if defense.forwards > COSTLY_FORWARDS else fair
    )


def _set(threat: ThreatModel) -> str:
    return f"{threat.ball.name} {threat.ball.eps}"


def _goal(threat: ThreatModel) -> str:
    return f"the goal of {threat.name} is {threat.goal.kind}"


def _expand(names: Sequence[str], known: Iterable[str]) -> list[str]:
    """`all` stands for every known name; each name once, in order."""
    return list(dict.fromkeys(n for name in names for n in (known if name == ALL else [name])))
