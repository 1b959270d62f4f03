"""Paired comparisons of attacks over defenses and of defenses: counts, tests, examples.

The command is that of bench.cli.compare_commands.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from bench.cli import app
from bench.cli.variant_options import variants_of
from bench.core.errors import BenchError
from bench.results.comparison import compare, compare_defenses
from bench.results.example_results import LeaderboardResults, load_results
from bench.results.leaderboards import find_leaderboard
from bench.store import Store
from tests.fixtures.small_store import World, first, some
from tests.results.small_results import ALL, NONE, enter

RIGHT = ~some(600, 0, 1, 2)
"""[600]: the first three examples are misclassified without an attack."""


@pytest.fixture
def world(store: Store) -> World:
    """Two defenses under two attacks; pgd breaks 40 more of `weak` and one more of `strong`."""
    made = World(store)
    made.threat("linf", "fgsm", "pgd")
    made.attack("fgsm", steps=1)
    made.attack("pgd")
    enter(made, "weak", RIGHT, first(100), first(140) & ~some(600, 5))
    enter(made, "strong", ALL, first(50), first(51))
    return made


def results(world: World) -> LeaderboardResults:
    return load_results(world.store, find_leaderboard(world.store, "linf"))


def test_attacks_are_compared_on_the_examples_that_were_right(world: World) -> None:
    weak, strong = compare(results(world), ["fgsm", "pgd"], ["weak", "strong"])
    assert (weak.defense, weak.a, weak.b, weak.n) == ("weak", "fgsm", "pgd", 597)
    assert (weak.only_a, weak.only_b) == ((5,), tuple(range(100, 140)))
    assert weak.both == 100 - 3 - 1
    assert (strong.only_a, strong.only_b, strong.n) == ((), (50,), 600)


def test_the_tests_are_one_corrected_family(world: World) -> None:
    weak, strong = compare(results(world), ["fgsm", "pgd"], ["weak", "strong"])
    exact = binomtest(1, 41, 0.5).pvalue
    assert weak.p == pytest.approx(exact, rel=1e-9)
    assert weak.adjusted == pytest.approx(2 * exact, rel=1e-9)
    assert (weak.winner, strong.winner) == ("pgd", "")
    assert compare(results(world), ["pgd", "fgsm"], ["weak"])[0].winner == "pgd"


def test_defenses_are_compared_over_their_common_attacks(world: World) -> None:
    world.attack("extra")
    world.evaluate("weak", "extra", ALL)
    (pair,) = compare(results(world), ["weak", "strong"])
    assert (pair.defense, pair.a, pair.b, pair.n) == ("", "weak", "strong", 600)
    assert (pair.both, len(pair.only_a)) == (460, 0)
    assert pair.only_b == tuple(range(51, 140))
    assert pair.winner == "strong"


def test_equal_attacks_are_tied_with_p_of_one(world: World) -> None:
    enter(world, "equal", ALL, first(30), first(30))
    (pair,) = compare(results(world), ["fgsm", "pgd"], ["equal"])
    assert (pair.p, pair.adjusted, pair.winner, pair.both) == (1.0, 1.0, "", 30)


def test_an_attack_on_the_first_examples_is_compared_on_those(world: World) -> None:
    world.attack("limited", examples=100)
    world.evaluate("strong", "limited", NONE[:100])
    (pair,) = compare(results(world), ["pgd", "limited"], ["strong"])
    assert pair.n == 100
    np.testing.assert_array_equal(pair.only_a, np.arange(51))


@pytest.mark.parametrize(
    ("names", "defenses", "message"),
    [
        (["pgd"], [], "1 name came; two attacks or two defenses"),
        (["pgd", "pgd"], [], "1 name came"),
        (["pgd", "pdg"], [], "this leaderboard has no attack or defense 'pdg'"),
        (["pgd", "weak"], [], "has no defense, as another of these names is 'pgd'"),
        (["fgsm", "pgd"], ["weka"], "has no defense 'weka'"),
    ],
)
def test_names_that_cannot_be_compared_are_named(
    world: World, names: list[str], defenses: list[str], message: str
) -> None:
    with pytest.raises(BenchError) as refused:
        compare(results(world), names, defenses)
    assert message in str(refused.value)


def test_the_command_prints_wins_and_examples(world: World, tmp_path: Path) -> None:
    words = ["compare", "fgsm", "pgd", "--db", world.store.url]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "pgd: better in 1 of 2." in done.stdout
    assert "Only pgd, not fgsm against weak: examples 100, 101," in done.stdout
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert {(p["defense"], p["winner"]) for p in found["pairs"]} == {
        ("weak", "pgd"),
        ("strong", ""),
    }


@pytest.mark.parametrize("text", ["steps=10", "pgd.steps", "pgd.=1", "pgd.steps=1,", ".steps=1"])
def test_a_setting_that_cannot_be_read_is_shown(text: str) -> None:
    with pytest.raises(BenchError, match=r"write attack\.parameter=values"):
        variants_of([text])


# Defenses beside one another.


def test_defenses_stand_beside_one_another_over_their_common_attacks(world: World) -> None:
    world.attack("extra")
    world.evaluate("weak", "extra", ALL)
    found = compare_defenses(results(world), ["weak", "strong"])
    assert (found.defenses, found.attacks) == (("weak", "strong"), ("fgsm", "pgd"))
    assert [count.k for count in found.clean] == [597, 600]
    assert [count.k for count in found.robust] == [460, 549]
    assert [[count.k for count in row] for row in found.by_attack] == [[500, 550], [461, 549]]
    assert found.pairs == tuple(compare(results(world), ["weak", "strong"]))
    assert found.labels.tolist() == [0] * 600


@pytest.mark.parametrize(
    ("names", "says"),
    [(["weak"], "1 name came"), (["weak", "weak"], "1 name came"),
     (["weak", "retired"], "no defense 'retired'"), (["fgsm", "pgd"], "no defense 'fgsm', 'pgd'")],
)  # fmt: skip
def test_what_is_no_pair_of_defenses_is_refused(world: World, names: list[str], says: str) -> None:
    with pytest.raises(BenchError, match=says):
        compare_defenses(results(world), names)


def test_the_difference_is_that_of_the_shares(world: World) -> None:
    (pair,) = compare(results(world), ["weak", "strong"])
    difference, low, high = pair.difference
    assert difference == pytest.approx((460 - 549) / 600)
    assert low <= difference <= high < 0
    assert pair.record()["difference"] == {"difference": difference, "low": low, "high": high}
