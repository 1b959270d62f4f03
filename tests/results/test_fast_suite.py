"""The suite `fast`: its attacks, its mode, its protocol, and the options that name it."""

from __future__ import annotations

import pytest

from bench.core.errors import BenchError
from bench.core.protocols import LeaderboardProtocol
from bench.plugin import Traits
from bench.registry.registry import Registry
from bench.results.fast_suite import (
    FAST_SUITE,
    all_suites,
    fast_protocol,
    mode_of_suite,
    mode_option,
    suite_named,
)
from bench.threats.suites import SUITES


def test_it_ends_with_the_attacks_of_the_standard_suite() -> None:
    standard = SUITES["standard"].attacks
    assert set(FAST_SUITE.attacks) == set(standard)
    for norm, attacks in FAST_SUITE.attacks.items():
        assert attacks[1:] == standard[norm]


def test_every_attack_of_it_is_registered() -> None:
    known = Registry.without_submissions().attacks
    for norm, attacks in FAST_SUITE.attacks.items():
        assert set(attacks) <= set(known)
        assert norm in Traits.of(known[attacks[0]].value).norms


def test_it_is_found_by_name_beside_the_others() -> None:
    assert suite_named("fast") is FAST_SUITE
    assert set(all_suites()) == {"standard", "fast"}
    with pytest.raises(BenchError, match="use one of standard, fast"):
        suite_named("fats")


def test_the_suite_has_a_mode_of_its_own() -> None:
    assert mode_of_suite("fast", "full") == mode_of_suite("fast", "fast") == "fast"
    assert mode_of_suite("standard", "rank") == "rank"
    assert mode_of_suite("", "full", ["pgd"]) == "full"


@pytest.mark.parametrize(
    ("suite", "mode", "attacks"),
    [("fast", "rank", ()), ("fast", "full", ("pgd",)), ("", "fast", ())],
)
def test_the_mode_and_the_suite_come_together_and_alone(
    suite: str, mode: str, attacks: tuple[str, ...]
) -> None:
    with pytest.raises(BenchError, match="use --suite fast alone"):
        mode_of_suite(suite, mode, attacks)


def test_its_protocol_has_an_id_of_its_own_and_no_follow_ups() -> None:
    full = LeaderboardProtocol(("pgd",), {"EOT": ("pgd-eot",)})
    fast = fast_protocol(full, "L2")
    assert fast.id != full.id
    assert (fast.required, fast.follow_ups, fast.ranked) == (FAST_SUITE.attacks["L2"], {}, True)
    assert not fast_protocol(full, "L0").ranked


def test_an_option_names_each_mode() -> None:
    assert [mode_option(mode) for mode in ("full", "rank", "fast")] == [
        "", " --mode rank", " --suite fast",
    ]  # fmt: skip
