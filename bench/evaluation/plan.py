"""The cells of a selection: every attack against every defense, and which pairs do not apply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bench.core.cells import BALANCED_ORDER, COSTLY_FORWARDS, FAST, FEW_EXAMPLES
from bench.core.errors import BenchError
from bench.core.protocols import DECLARED, LEARNED, LEARNED_STRONG
from bench.core.variant_names import base_name, is_variant
from bench.engine.model_access import ACCESS_NAMES
from bench.evaluation import cascade
from bench.evaluation.targets import why_no_target
from bench.plugin import Attack, Dataset, Defense, Traits, is_shared
from bench.registry.registry import Registry
from bench.registry.threat_variants import threat_family
from bench.results.fast_suite import suite_named
from bench.threats.access import Access, Budget
from bench.threats.threat_model import SHARED, ThreatModel

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
    """Name of an attack suite, which runs besides `attacks`, or else besides what the protocol
    requires."""
    order: str = BALANCED_ORDER
    """Which test images are the first ones: one of EXAMPLE_ORDERS."""


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
        return self.attack.name in self.threat.protocol.required


def selected_threats(registry: Registry, selection: Selection) -> list[ThreatModel]:
    """The selected threat models; by default those of the embedded data, which need no download.

    With them come those that their protocols name as evidence, unless attacks are named.

    Raises BenchError where a threat model is named that does not support rank mode, has no attacks
    in the suite, or has a targeted goal on a single class; `all` and the default leave those out.
    """
    if selection.suite:
        suite_named(selection.suite)
    if selection.threats:
        names = _expand(selection.threats, registry.threats)
        chosen = [registry.find("threat", name).value for name in names]
    else:
        chosen = [o.value for o in registry.threats.values() if o.value.dataset == EMBEDDED_DATASET]
        # Without access there is no attacker: corruptions are evaluated where they are named.
        chosen = [t for t in chosen if t.protocol.required and t.access > Access.NOTHING]
    if not selection.attacks and selection.mode != FAST:
        chosen += evidence_threats(registry, chosen)
    chosen = [threat for threat in chosen if _supports(registry, threat, selection)]
    return sorted(chosen, key=lambda one: (one.order, base_name(one.name), one.ball.eps, one.name))


def named_threats(registry: Registry, selection: Selection) -> set[str]:
    """The names of the threat models that a selection names one by one, not by a pattern."""
    names = [name for name in selection.threats if not _is_pattern(name)]
    return {registry.find("threat", name).value.name for name in names}


def evidence_threats(registry: Registry, threats: Iterable[ThreatModel]) -> list[ThreatModel]:
    """The threat models that the protocols of others name as evidence, and that are not there."""
    known = list(threats)
    names = dict.fromkeys(name for threat in known for name in threat.protocol.evidence)
    found = [registry.find("threat", name).value for name in names]
    return [threat for threat in found if threat not in known]


def _supports(registry: Registry, threat: ThreatModel, selection: Selection) -> bool:
    """Whether mode, suite and data suit a threat model; raises BenchError where it was named."""
    known = registry.datasets.get(threat.dataset)
    try:
        if known is not None and not known.value.problem:
            reason = why_no_target(threat, len(known.value.classes))
            if reason:
                raise BenchError(reason)
        if selection.mode == "rank" and threat.goal.kind == "nearest":
            raise BenchError(
                f"{threat.name} keeps the nearest adversarial example of all attacks, so every "
                "attack runs on every example; use --mode full."
            )
        suite_attacks(selection, threat)
    except BenchError:
        if threat.name in named_threats(registry, selection):
            raise
        return False
    return True


def suite_attacks(selection: Selection, threat: ThreatModel) -> tuple[str, ...]:
    """The suite's attacks for a threat model; raises BenchError where it has none for it."""
    if not selection.suite:
        return ()
    rules = (threat.ball.name, threat.access.name.lower(), threat.goal.kind)
    return suite_named(selection.suite).attacks_for(threat.name, *rules)


EMBEDDED_DATASET = "digits"
"""The data set that comes with scikit-learn."""


def plan_pairs(registry: Registry, selection: Selection) -> list[PlannedPair]:
    """Every pair of the selection, ordered by defense so that each is built once."""
    threats = selected_threats(registry, selection)
    chosen = selected_defenses(registry, selection, threats)
    return [
        planned_pair(registry, threat, defense, attack)
        for defense in chosen
        for threat in threats
        if threat.dataset in defense.datasets
        for attack in selected_attacks(registry, selection, threat)
    ]


def single_pair(registry: Registry, selection: Selection, what: str) -> PlannedPair:
    """The one pair of a selection.

    Raises BenchError where it has more, or the attack does not apply; `what` needs it.
    """
    pairs = plan_pairs(registry, selection)
    if len(pairs) != 1:
        raise BenchError(
            f"{what} needs one threat model, defense and attack; the selection has {len(pairs)}."
        )
    if pairs[0].reason:
        raise BenchError(pairs[0].reason)
    return pairs[0]


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

    Without named attacks those are the threat model's required attacks and every submitted attack,
    so that a suite alone gives a complete row.
    """
    from_suite = _suite_attacks(registry, selection, threat)
    if selection.mode == FAST and not selection.attacks:
        return [registry.find("attack", name).value for name in from_suite]
    required = _required_attacks(registry, selection, threat)
    submitted = [n for n, a in registry.attacks.items() if a.origin == "submission"]
    default = (*required, *submitted)
    names = (*(selection.attacks or default), *from_suite)
    found = [registry.find("attack", name).value for name in _expand(names, registry.attacks)]
    chosen = list({attack.name: attack for attack in found}.values())
    if selection.mode == "full":
        return chosen
    classes = len(registry.find("dataset", threat.dataset).value.classes)
    return cascade.in_cascade_order(chosen, classes, threat.protocol.required)


def _required_attacks(
    registry: Registry, selection: Selection, threat: ThreatModel
) -> tuple[str, ...]:
    """What the protocol requires.

    Where a registered threat model was named as a variant of another one, also what the first one
    of all radii requires: every radius of one curve then meets the same attacks.
    """
    variants = [n for n in selection.threats if is_variant(n) and not _is_pattern(n)]
    first: list[ThreatModel] = []
    if any(registry.find("threat", name).value is threat for name in variants):
        family = threat_family(threat, threat.ball.name, registry.threats.values())
        first = [registration.value for registration in family[:1]]
    return tuple(name for one in (threat, *first) for name in one.protocol.required)


def _suite_attacks(
    registry: Registry, selection: Selection, threat: ThreatModel
) -> tuple[str, ...]:
    """The suite's attacks for a threat model; none where it serves as evidence and is not named.

    Raises BenchError where one is not registered.
    """
    attacks = suite_attacks(selection, threat)
    named = named_threats(registry, selection) | (set(selection.threats) & {ALL})
    if not (threat.protocol.ranked or {threat.name, ALL} & named):
        return ()
    missing = [name for name in attacks if name not in registry.attacks]
    if missing:
        raise BenchError(
            f"suite {selection.suite} runs {', '.join(missing)} under {threat.name}, which no "
            "plugin registers; install one that does, or name the others with --attack."
        )
    return attacks


def planned_pair(
    registry: Registry, threat: ThreatModel, defense: Defense, attack: Attack
) -> PlannedPair:
    """The pair, with the reason where the attack does not apply."""
    found = registry.defenses.get(surrogate_name(threat, defense, attack))
    surrogate = None if found is None else found.value
    return PlannedPair(
        threat, defense, attack, why_not_applicable(threat, defense, attack, surrogate)
    )


def surrogate_name(threat: ThreatModel, defense: Defense, attack: Attack) -> str:
    """The defense that a transfer attack queries; empty where no registered one plays its role.

    The role is the attack's `source`: a public surrogate of the protocol, or the one that the
    defense declares.
    """
    role = Traits.of(attack).source
    return defense.surrogate if role == DECLARED else threat.protocol.surrogates.get(role, "")


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
    if why := _why_not_in_scope(threat, attack):
        return why
    if Traits.is_external(attack) and threat.ball.parametric:
        return f"{attack.name} returns images; the points of {threat.name} are parameters."
    if why := traits.why_not_in(threat.ball):
        return f"{attack.name} {why}; {threat.name} is {_set(threat)}."
    if traits.goals and threat.goal.kind not in traits.goals:
        return f"{attack.name} supports {', '.join(traits.goals)} goals; {_goal(threat)}."
    if threat.goal.kind == "nearest" and not traits.minimises:
        return f"{attack.name} does not minimise its perturbation, and {_goal(threat)}."
    if traits.joint and defense.rejects is None:
        return f"{attack.name} attacks classifier and detector; {defense.name} has no detector."
    if traits.eot_draws and defense.randomness is None and threat.nuisance is None:
        return f"{attack.name} averages over random draws; {defense.name} declares no randomness."
    return _why_no_surrogate(threat, defense, attack, surrogate) if traits.source else ""


def _why_not_in_scope(threat: ThreatModel, attack: Attack) -> str:
    """Why an attack does not make the points of a threat model's scope; empty where it does."""
    shares = threat.scope == SHARED
    if is_shared(attack) and not shares:
        return f"{attack.name} fits one point for all images; {threat.name} has one for each image."
    if not is_shared(attack) and shares:
        return f"{attack.name} makes a point for each image; {threat.name} has one for all images."
    if shares and threat.budget != Budget():
        return f"{attack.name} queries training images; {threat.name} limits queries of each image."
    return ""


def _why_no_surrogate(
    threat: ThreatModel, defense: Defense, attack: Attack, surrogate: Defense | None
) -> str:
    """Why a transfer attack has no usable surrogate model; empty when it has one."""
    role, name = Traits.of(attack).source, surrogate_name(threat, defense, attack)
    if role in (LEARNED, LEARNED_STRONG):
        return ""
    if not name:
        return f"{attack.name} queries the public {role} surrogate; {threat.name} names none."
    if name == defense.name:
        return f"{defense.name} is its own surrogate, so there is no other model to transfer from."
    subject = f"{attack.name} on {defense.name} queries the surrogate {name}"
    if surrogate is not None and threat.dataset not in surrogate.datasets:
        declared = ", ".join(surrogate.datasets)
        return f"{subject}, which is declared for {declared}; {threat.name} uses {threat.dataset}."
    if surrogate is not None and surrogate.randomness is not None:
        return f"{subject}, which is randomized; name a deterministic surrogate."
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
    """The names in order, each once; `all` stands for every known name, `pgd*` for those alike.

    Raises BenchError where a pattern matches nothing.
    """
    every = list(known)
    return list(dict.fromkeys(n for name in names for n in _matching(name, every)))


def _is_pattern(name: str) -> bool:
    return name == ALL or bool(set(base_name(name)) & {"*", "?"})


def _matching(name: str, known: Sequence[str]) -> Sequence[str]:
    """The known names that a pattern matches; of `pgd*[steps=5]` each with these parameters."""
    if not _is_pattern(name):
        return [name]
    if name == ALL:
        return known
    base = base_name(name)
    registered = [n for n in known if not is_variant(n)]
    found = [n for n in registered if fnmatchcase(n, base)]
    if not found:
        raise BenchError(f"the pattern {name!r} matches none of {', '.join(registered)}.")
    return [f"{n}{name[len(base) :]}" for n in found]
