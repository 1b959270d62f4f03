"""Several sets in one score: paired on shared examples, with the sets that a row lacks.

Covers bench.cli.union_tables and the page.
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.core.errors import BenchError
from bench.core.statistics import count_interval, wilson
from bench.results import set_unions
from bench.results.set_unions import average_interval, load_set_union, union_table
from leaderboard.union_tables import union_score_table
from tests.fixtures.small_store import Bits, World, first
from tests.results.small_results import ALL

N = 600
SETS = {"linf": "Linf", "l2": "L2", "rotation": "rotation-translation", "corruptions": "corruption"}


def last(k: int) -> Bits:
    """[600] bool: the last k."""
    return first(k)[::-1].copy()


@pytest.fixture
def several(world: World) -> World:
    """Two sets with ranks and two without, in which one attack each is required."""
    for order, (name, kind) in enumerate(SETS.items(), 1):
        more: dict[str, Any] = {"ranked": order < 3, "norm": kind, "order": order}
        world.threat(name, "pgd", **more)
    return world


def enter(world: World, defense: str, right: Bits, **broken: Bits) -> None:
    """A defense with its clean pass and what PGD broke in each set."""
    world.defense(defense)
    world.clean(defense, right)
    for threat, bits in broken.items():
        world.evaluate(defense, "pgd", bits, threat=threat)


def test_the_union_is_what_no_set_broke_and_the_average_the_mean_of_the_sets(
    several: World,
) -> None:
    enter(several, "d", ~last(20), linf=first(100), l2=first(150), rotation=last(80),
          corruptions=first(10))  # fmt: skip
    (row,) = load_set_union(several.store).rows
    kept = [N - 20 - 100, N - 20 - 150, N - 80, N - 20 - 10]
    assert [figure.robust for figure in row.sets.values()] == [count_interval(k, N) for k in kept]
    assert row.union == count_interval(N - 80 - 150, N)
    assert row.average == pytest.approx(sum(kept) / (4 * N))
    assert row.clean == count_interval(N - 20, N)
    assert row.missing == ("L1",) and row.note == "without L1"
    assert row.union.k <= min(kept) <= row.average * N


def test_only_examples_that_every_set_evaluated_count(several: World) -> None:
    several.attack("fgsm", steps=1, examples=60)
    enter(several, "d", ALL, linf=first(20))
    several.evaluate("d", "fgsm", last(10)[-60:], threat="l2")
    (row,) = load_set_union(several.store).rows
    assert row.union == count_interval(60 - 20 - 10, 60)
    assert row.sets["Linf"].robust == count_interval(60 - 20, 60)
    assert row.clean.n == 60 and row.note.endswith("required attacks open in L2")


def test_a_required_attack_that_is_open_is_named(several: World) -> None:
    several.threat("l1", "pgd", "fgsm", norm="L1", order=9)
    enter(several, "d", ALL, linf=first(1), l2=first(1), rotation=first(1), corruptions=first(1),
          l1=first(2))  # fmt: skip
    (row,) = load_set_union(several.store).rows
    assert row.missing == () and row.note == "required attacks open in L1"


def test_rows_with_all_sets_come_first_and_are_compared_in_pairs(several: World) -> None:
    several.threat("l1", "pgd", norm="L1", order=9)
    few = dict.fromkeys((*SETS, "l1"), first(100))
    enter(several, "a", ALL, **few)
    enter(several, "b", ALL, **(few | {"l1": last(101)}))
    enter(several, "c", ALL, **(few | {"linf": first(103)}))
    enter(several, "lacks", ALL, linf=first(0), l2=first(0))
    found = load_set_union(several.store, "digits")
    assert [row.defense for row in found.rows] == ["a", "c", "b", "lacks"]
    assert {row.defense: row.tied for row in found.rows} == {
        "a": ("c",), "c": ("a",), "b": (), "lacks": (),
    }  # fmt: skip
    assert found.rows[-1].union.k == N, "it stands below, because it met two sets alone"


def test_results_of_another_version_of_the_defense_are_left_out(several: World) -> None:
    enter(several, "d", ALL, linf=first(100))
    several.defense("d", version="2")
    several.clean("d", ALL)
    several.evaluate("d", "pgd", first(7), threat="l2")
    several.evaluate("d", "pgd", first(9), threat="rotation")
    (row,) = load_set_union(several.store).rows
    assert set(row.sets) == {"L2", "rotation-translation"} and row.union.k == N - 9


def test_half_radii_targets_and_labels_are_no_sets_of_the_score(several: World) -> None:
    several.threat("half", "pgd", eps=0.1, order=0, ranked=False)
    several.threat("target", "pgd", norm="L1", goal="targeted", rule="next", order=0)
    enter(several, "d", ALL, linf=first(100), l2=first(100), half=first(1), target=first(1))
    (row,) = load_set_union(several.store).rows
    assert {figure.threat for figure in row.sets.values()} == {"linf", "l2"}


def test_one_set_is_no_score(several: World) -> None:
    enter(several, "d", ALL, linf=first(100))
    with pytest.raises(BenchError, match=r"digits has Linf\. Evaluate another one"):
        load_set_union(several.store)


@pytest.mark.parametrize("k", [0, 1, 250, 499, 500])
def test_the_interval_of_shares_of_zero_and_one_is_that_of_a_count(k: int) -> None:
    assert average_interval(k / 500, 500) == pytest.approx(wilson(k, 500))
    assert average_interval(0.0, 0) == (0, 1)


def test_the_interval_holds_a_mean_of_shares_in_19_of_20_samples() -> None:
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        shares = draws.integers(0, 6, 200) / 5
        low, high = average_interval(float(shares.mean()), 200)
        held += low <= 0.5 <= high
    assert held >= 380


def test_the_table_and_the_page_show_the_same_figures(several: World) -> None:
    enter(several, "d", ALL, linf=first(100), l2=first(150), rotation=last(80))
    found = load_set_union(several.store)
    table = union_table(found)
    assert len(table.columns) == len(table.rows[0]) == 5 + len(set_unions.HEADINGS) + 2
    page = union_score_table(found)
    for figure in ("500/600", "450/600", "520/600", "370/600", "600/600", "without L1, corruption"):
        assert figure in page
    words = ["report", "--table", "union", "--db", several.store.url]
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 0 and "370/600" in text.stdout and "without L1" in text.stdout
    written = CliRunner().invoke(app, [*words, "--threat", "l2", "--format", "csv"])
    (read,) = csv.DictReader(io.StringIO(written.stdout))
    assert (read["defense"], read["union_k"], read["rotation_k"]) == ("d", "370", "520")
