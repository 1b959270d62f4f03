"""The cells of a selection: every attack against every defense, and which pairs do not apply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.core.cells import COSTLY_FORWARDS, FEW_EXAMPLES
from bench.core.errors import BenchError
from bench.engine.model_access import ACCESS_NAMES
from bench.evaluation import cascade
from bench.plugin import Attack, Dataset, Defense, Traits
from bench.registry.registry import Registry
from bench.threats.access import Access
from bench.threats.suites import find_suite
from bench.threats.threat_model import ThreatModel

ALL = "all"


@dataclass(frozen=True)
class Selection:
    """Threat models, defenses and attacks of a run, by name; empty means the default."""

    threats: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    examples: int | None = None
    """Number of test examples; None: as the threat model states."""
    seed: int = 0
    mode: str = "full"
    suite: str = ""
    """Name of an attack suite whose attacks run besides `attacks`."""


@dataclass(frozen=True)
class PlannedPair:
    """One attack against one defense under one threat model."""

    threat: ThreatModel
    defense: Defense
    attack: Attack
    reason: str = ""
    """Why the attack does not apply; empty when it does."""

    @property
    def required(self) -> bool:
        """Whether the threat model requires the attack for a rank."""
        return self.attack.name in self.threat.required


def selected_threats(registry: Registry, selection: Selection) -> list[ThreatModel]:
    """The selected threat models; by default those of the embedded data, which need no download.

    Raises BenchError where a threat model is named that does not support rank mode or has no
    attacks in the suite; `all` and the default leave those out.
    """
    if selection.suite:
        find_suite(selection.suite)
    if selection.threats:
        names = _expand(selection.threats, registry.threats)
        chosen = [registry.find("threat", name).value for name in names]
    else:
        chosen = [o.value for o in registry.threats.values() if o.value.dataset == EMBEDDED_DATASET]
        chosen = [threat for threat in chosen if threat.required]
    chosen = [threat for threat in chosen if _supports(threat, selection)]
    return sorted(chosen, key=lambda threat: (threat.order, threat.name))


def _supports(threat: ThreatModel, selection: Selection) -> bool:
    """Whether a threat model supports mode and suite; raises BenchError where it was named."""
    try:
        if selection.mode == "rank" and threat.goal.kind == "nearest":
            raise BenchError(
                f"{threat.name} keeps the nearest adversarial example of all attacks, so every "
                "attack runs on every example; use --mode full."
            )
        suite_attacks(selection, threat)
    except BenchError:
        if threat.name in selection.threats:
            raise
        return False
    return True


def suite_attacks(selection: Selection, threat: ThreatModel) -> tuple[str, ...]:
    """The suite's attacks for a threat model; raises BenchError where it has none for it."""
    if not selection.suite:
        return ()
    rules = (threat.ball.name, threat.access.name.lower(), threat.goal.kind)
    return find_suite(selection.suite).attacks_for(threat.name, *rules)


EMBEDDED_DATASET = "digits"
"""The data set that comes with scikit-learn."""


def plan_pairs(registry: Registry, selection: Selection) -> list[PlannedPair]:
    """Every pair of the selection, ordered by defense so that each is built once."""
    threats = selected_threats(registry, selection)
    chosen = selected_defenses(registry, selection, threats)
    return [
        PlannedPair(
            threat,
            defense,
            attack,
            why_not_applicable(threat, defense, attack, _surrogate(registry, defense)),
        )
        for defense in chosen
        for threat in threats
        if threat.dataset in defense.datasets
        for attack in selected_attacks(registry, selection, threat)
    ]


def _chosen_defenses(registry: Registry, selection: Selection) -> list[Defense]:
    if not selection.defenses:
        known = registry.defenses.values()
        return [o.value for o in known if o.value.quick or o.origin == "submission"]
    names = _expand(selection.defenses, registry.defenses)
    return [registry.find("defense", name).value for name in names]


def selected_defenses(
    registry: Registry, selection: Selection, threats: Iterable[ThreatModel]
) -> list[Defense]:
    """The selected defenses; by default the quick ones and every submission.

    Raises BenchError where none of them is declared for the data sets of the threat models.
    """
    chosen = _chosen_defenses(registry, selection)
    data = {threat.dataset for threat in threats}
    fitting = [defense for defense in chosen if data & set(defense.datasets)]
    if not fitting:
        raise BenchError(
            f"none of the chosen defenses is declared for {', '.join(sorted(data))}; "
            "`bench list defenses` shows the data sets of each one."
        )
    return fitting


def selected_attacks(registry: Registry, selection: Selection, threat: ThreatModel) -> list[Attack]:
    """The selected attacks and those of the suite, each once; in rank mode in cascade order.

    Default: the threat model's required attacks and every submitted attack.
    """
    from_suite = _suite_attacks(registry, selection, threat)
    submitted = [n for n, a in registry.attacks.items() if a.origin == "submission"]
    default = () if from_suite else (*threat.required, *submitted)
    names = (*(selection.attacks or default), *from_suite)
    chosen = [registry.find("attack", name).value for name in _expand(names, registry.attacks)]
    if selection.mode == "full":
        return chosen
    classes = len(registry.find("dataset", threat.dataset).value.classes)
    return cascade.in_cascade_order(chosen, classes, threat.required)


def _suite_attacks(
    registry: Registry, selection: Selection, threat: ThreatModel
) -> tuple[str, ...]:
    """The suite's attacks for a threat model; BenchError where one is not registered."""
    named = suite_attacks(selection, threat)
    missing = [name for name in named if name not in registry.attacks]
    if missing:
        raise BenchError(
            f"suite {selection.suite} runs {', '.join(missing)} under {threat.name}, which no "
            "plugin registers; install one that does, or name the others with --attack."
        )
    return named


def _surrogate(registry: Registry, defense: Defense) -> Defense | None:
    """The surrogate of a defense; None where no plugin registers it."""
    registration = registry.defenses.get(defense.surrogate)
    return None if registration is None else registration.value


def why_not_applicable(
    threat: ThreatModel, defense: Defense, attack: Attack, surrogate: Defense | None = None
) -> str:
    """Why an attack does not apply to a defense under a threat model; empty when it does.

    `surrogate` is the surrogate model of a transfer attack; None where it is not known.
    """
    traits = Traits.of(attack)
    needed_access = Access.NOTHING if traits.source else attack.needs
    if needed_access > threat.access:
        revealed = ACCESS_NAMES.get(threat.access, "nothing")
        needed = ACCESS_NAMES[needed_access]
        return f"{attack.name} needs {needed}; {threat.name} reveals {revealed} only."
    if traits.norms and threat.ball.name not in traits.norms:
        return f"{attack.name} works in {', '.join(traits.norms)}; {threat.name} is {_set(threat)}."
    if traits.goals and threat.goal.kind not in traits.goals:
        return f"{attack.name} supports {', '.join(traits.goals)} goals; {_goal(threat)}."
    if threat.goal.kind == "nearest" and not traits.minimises:
        return f"{attack.name} does not minimise its perturbation, and {_goal(threat)}."
    if traits.joint and defense.rejects is None:
        return f"{attack.name} attacks classifier and detector; {defense.name} has no detector."
    return _why_no_surrogate(threat, defense, surrogate) if traits.source else ""


def _why_no_surrogate(threat: ThreatModel, defense: Defense, surrogate: Defense | None) -> str:
    """Why a transfer attack has no usable surrogate model; empty when it has one."""
    if defense.surrogate == defense.name:
        return f"{defense.name} is its own surrogate, so there is no other model to transfer from."
    if surrogate is not None and threat.dataset not in surrogate.datasets:
        return (
            f"a transfer attack on {defense.name} queries its surrogate {surrogate.name}, which is "
            f"declared for {', '.join(surrogate.datasets)}; {threat.name} uses {threat.dataset}."
        )
    if surrogate is not None and surrogate.randomness is not None:
        return (
            f"a transfer attack on {defense.name} queries its surrogate {surrogate.name}, which is "
            "randomized; name a deterministic surrogate."
        )
    return ""


def example_count(
    threat: ThreatModel, defense: Defense, selection: Selection, dataset: Dataset
) -> int:
    """Number of test examples, the first ones: as selected, else fewer for a costly defense."""
    most = FEW_EXAMPLES if defense.forwards > COSTLY_FORWARDS else threat.examples
    return selection.examples or min(most, threat.examples, dataset.test_size)


def _set(threat: ThreatModel) -> str:
    return f"{threat.ball.name} {threat.ball.eps}"


def _goal(threat: ThreatModel) -> str:
    return f"the goal of {threat.name} is {threat.goal.kind}"


def _expand(names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names in order, each once; `all` stands for every known name."""
    return list(dict.fromkeys(n for name in names for n in (known if name == ALL else [name])))
