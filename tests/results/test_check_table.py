"""Every gradient-masking check has a meaning, and every meaning a check."""

from __future__ import annotations

from bench.registry.registry import Registry
from bench.results import check_table
from bench.results.check_table import INVALIDATING, MASKING_CHECKS
from tests.fixtures.small_store import World
from tests.results.small_results import ALL, NONE, enter, rows_of

KINDS = {
    value
    for name, value in vars(check_table).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, str)
}


def test_every_computed_check_has_a_meaning(world: World) -> None:
    enter(world, "d", ALL, NONE)
    computed = {check.name for check in rows_of(world)["d"].flags}
    assert len(computed) == 8
    assert computed <= set(MASKING_CHECKS)


def test_every_built_in_diagnostic_has_a_meaning() -> None:
    assert set(Registry.without_submissions().diagnostics) <= set(MASKING_CHECKS)


def test_a_warning_either_invalidates_or_is_answered_by_attacks() -> None:
    for name, meaning in MASKING_CHECKS.items():
        assert meaning.suggests and not meaning.suggests.endswith("."), name
        assert meaning.invalidates != bool(meaning.answered_by), name
        assert set(meaning.answered_by) <= KINDS, name
        assert (name in INVALIDATING) == meaning.invalidates
