"""Variants of threat models: `digits-linf[eps=8/255]` has another radius, `[norm=L2]` a norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from bench.core.errors import BenchError
from bench.core.protocols import LeaderboardProtocol
from bench.core.radii import radius_text
from bench.core.variant_names import is_variant, variant_name
from bench.plugin import PerturbationSet, ThreatModel
from bench.registry.registration import Registration
from bench.registry.submission import did_you_mean
from bench.threats.threat_model import BUILT_IN_SETS, norm_ball

VARIANT_ORDER = 1000
"""Added to the position of a threat model: its variants come after all registered ones."""
SETTINGS = ("norm", "eps")


def threat_variant(
    registration: Registration[ThreatModel],
    settings: Mapping[str, str],
    known: Iterable[Registration[ThreatModel]],
) -> Registration[ThreatModel]:
    """The registration of a threat model with another radius or norm, which ranks nothing.

    One set of rules has one name: rules that a registered threat model has are that one, and a
    variant bears the name of the first registered one that differs in the radius alone. It asks
    for the same attacks and names no follow-up attacks or further threat models.

    Args:
        registration: the threat model.
        settings: `eps`, `norm` or both, as text.
        known: all registered threat models.

    Returns:
        A new registration, or the one that has these rules already.

    Raises:
        BenchError: it has no such setting, a value cannot be read, or the radius is missing.
    """
    threat = registration.value
    for name in settings:
        if name not in SETTINGS:
            hint = did_you_mean(name, list(SETTINGS))
            raise BenchError(
                f"{threat.name} has no setting {name!r}; a threat model has norm and eps{hint}."
            )
    if type(threat.ball) not in BUILT_IN_SETS:
        raise BenchError(
            f"{threat.name} has the perturbation set {threat.ball.name} of its own; only norm "
            "balls have variants."
        )
    norm = settings.get("norm", threat.ball.name)
    family = threat_family(threat, norm, known)
    if "eps" not in settings and norm != threat.ball.name:
        return _registered_norm(threat, norm, family)
    ball = norm_ball(norm, settings.get("eps", threat.ball.eps))
    for one in (registration, *family):
        if one.value.ball == ball:
            return one
    return _derived(family[0] if family else registration, ball)


def threat_family(
    threat: ThreatModel, norm: str, known: Iterable[Registration[ThreatModel]]
) -> list[Registration[ThreatModel]]:
    """The registered threat models of a norm that share all other rules, the first one first."""
    rules = (threat.dataset, threat.access, threat.goal, threat.budget)
    found = [
        one
        for one in known
        if not is_variant(one.value.name)
        and type(one.value.ball) in BUILT_IN_SETS
        and one.value.ball.name == norm
        and (one.value.dataset, one.value.access, one.value.goal, one.value.budget) == rules
    ]
    return sorted(found, key=lambda one: (one.value.order, one.value.name))


def _registered_norm(
    threat: ThreatModel, norm: str, family: list[Registration[ThreatModel]]
) -> Registration[ThreatModel]:
    """The first registered threat model of a norm; a radius of another norm has no meaning here."""
    norm_ball(norm, 0)  # an unknown norm is the first thing to say
    if family:
        return family[0]
    raise BenchError(
        f"{threat.name} is {threat.ball.name} {threat.ball.eps}, and no threat model of "
        f"{threat.dataset} is {norm}; give a radius in {norm} as well, with eps."
    )


def _derived(
    registration: Registration[ThreatModel], ball: PerturbationSet
) -> Registration[ThreatModel]:
    base = registration.value
    changed = {} if base.ball.name == ball.name else {"norm": ball.name}
    protocol = LeaderboardProtocol(
        required=base.protocol.required, surrogates=base.protocol.surrogates, ranked=False
    )
    made = replace(
        base,
        name=variant_name(base.name, {**changed, "eps": radius_text(ball.eps)}),
        ball=ball,
        protocol=protocol,
        order=base.order + VARIANT_ORDER,
        summary=f"As {base.name}, with {ball.name} changes up to {ball.eps}; nothing is ranked.",
    )
    return replace(registration, value=made)
