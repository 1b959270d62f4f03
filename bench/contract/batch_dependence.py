"""Whether the results of an attack depend on its batch, as evidence for a run."""

from __future__ import annotations

from contextlib import suppress

from bench.contract.attack_fixture import AttackFixture
from bench.contract.attack_independence_checks import late_rows_are_as_good, rows_are_independent
from bench.contract.check import DoesNotApply
from bench.plugin import Attack, Evidence, Finding
from bench.registry.registry import Registry


def batch_dependence(registry: Registry, attack: Attack) -> Evidence:
    """Whether the result for an image changes with the other images of its batch.

    The attack runs a few steps on a small model. An external attack, which takes all examples at
    once, is not tested.
    """
    fixture = AttackFixture(registry, attack)
    try:
        wrong = rows_are_independent(fixture)
    except DoesNotApply as reason:
        return Evidence(Finding.NOT_TESTED, f"Not tested: {reason}")
    with suppress(DoesNotApply):  # of an attack of one step, which the first check decides
        wrong = wrong or late_rows_are_as_good(fixture)
    if wrong:
        return Evidence(
            Finding.WARNING,
            f"Its result for an image depends on the rest of the batch, so its figures are those of"
            f" another attack than for one image: {wrong}",
        )
    return Evidence(Finding.PASSED, "Its results do not depend on the batch.")
