"""Names of the image corruptions and of their severities. No torch."""

from __future__ import annotations

from bench.core.variant_names import base_name, is_variant, split_variant

CORRUPTION_SET = "corruption"
"""Name of the perturbation set of corrupted images."""
CORRUPTIONS = ("gaussian-noise", "blur", "contrast", "brightness", "jpeg", "fog", "rain")
SEVERITIES = 5
"""The largest severity; the smallest is 1, and 0 is the clean image."""


def corruption_attack(kind: str, severity: int) -> str:
    """The name of the attack that corrupts every image with one severity.

    >>> corruption_attack("fog", 2), corruption_attack("fog", 5)
    ('fog[severity=2]', 'fog')
    """
    return kind if severity == SEVERITIES else f"{kind}[severity={severity}]"


def corruption_of(attack: str) -> tuple[str, int] | None:
    """Kind and severity of the attack of that name; None for an attack of another kind.

    >>> corruption_of("fog[severity=2]"), corruption_of("fog"), corruption_of("pgd")
    (('fog', 2), ('fog', 5), None)
    """
    kind = base_name(attack)
    if kind not in CORRUPTIONS:
        return None
    settings = split_variant(attack)[1] if is_variant(attack) else {}
    return kind, int(settings.get("severity", SEVERITIES))


CORRUPTION_ATTACKS = tuple(
    corruption_attack(kind, severity)
    for kind in CORRUPTIONS
    for severity in range(1, SEVERITIES + 1)
)
"""The attacks of every corruption at every severity."""
