"""The figures of detectors, from small databases and from a real run."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.core.cards import DefenseCard
from bench.core.cells import CLEAN
from bench.core.statistics import roc
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.registry.registry import Registry
from bench.results.defense_report import defense_report
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard
from bench.results.matrix import load_matrix
from bench.results.ranking import load_ranking
from bench.results.text_report import text_report
from bench.store import Store
from tests.fixtures.small_store import World, outcomes, some
from tests.results.small_results import matrix_of, ranking_of

N = 20
SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(SCORES, SCORES)
@settings(deadline=None)
def test_the_area_is_the_probability_that_an_attacked_image_scores_higher(
    clean: list[int], attacked: list[int]
) -> None:
    curve = roc(np.array(clean, float), np.array(attacked, float))
    pairs = [(a > c) + (a == c) / 2 for a in attacked for c in clean]
    assert curve.area == pytest.approx(np.mean(pairs))
    for shares in (curve.negative, curve.positive):
        assert shares[0] == 0 and shares[-1] == 1 and (np.diff(shares) >= 0).all()


def test_every_point_is_a_pair_of_shares_at_one_threshold() -> None:
    curve = roc(np.array([0.0, 1, 2, 2]), np.array([2.0, 3]))
    assert curve.negative.tolist() == [0, 0, 0.5, 0.75, 1]
    assert curve.positive.tolist() == [0, 0.5, 1, 1, 1]


def test_scores_of_one_kind_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="0 negative and 1 positive"):
        roc(np.zeros(0), np.ones(1))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A detector with a clean pass: 16 of 20 are right, two rejected and two misclassified."""
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        made = World(store, n=N)
        made.threat("linf", "pgd")
        made.attack("pgd")
        made.digests["defense", "d"] = made.digests["attack", "pgd"]
        digest = made.digests["defense", "d"]
        store.record_cards([DefenseCard(name="d", origin="built-in", digest=digest, rejects=0.05)])
        rejection = np.where(np.arange(N) < 2, 0.5, -1.0)
        wrong = some(N, 0, 1, 2, 3)
        label = np.where(some(N, 2, 3), 1, 0)
        found = outcomes(wrong, rejection=rejection, label=label, step=np.full(N, -1),
                         distance=np.zeros(N))  # fmt: skip
        made.record(made.cell("d", CLEAN), found)
        yield made


def attacked(world: World) -> None:
    """Items 2 and 3 are misclassified; of the others 6 pass, 8 are rejected, 4 are robust."""
    broken = some(N, 2, 3, *range(4, 10))
    label = np.where(np.arange(N) < 16, 1, 0)
    score = np.where(broken, -0.5, np.where(np.arange(N) < 16, 2.0, -2.0))
    distance = np.where(some(N, 2, 3), 0.0, 0.1)
    world.evaluate("d", "pgd", broken, rejection=score, label=label, distance=distance)


def test_each_attack_has_its_counts_and_its_area(world: World) -> None:
    attacked(world)
    (cell,) = matrix_of(world.store, None)
    found = cell.detection
    assert found is not None
    # Two are left out: they are wrong and accepted without a change, so nothing was attacked.
    assert (found.rejected.k, found.rejected.n) == (8, 18)
    assert (found.fooled.k, found.passed.k, found.passed.n) == (14, 6, 18)
    # Clean: 2 at .5, 18 at -1. Attacked: 8 at 2, 6 at -.5, 4 at -2.
    assert found.auc == pytest.approx((8 * 20 + 6 * 18) / (18 * 20))
    assert cell.robust is not None and cell.robust.k == 10


def test_a_row_states_the_rejected_clean_images(world: World) -> None:
    attacked(world)
    (row,) = ranking_of(world.store, None)
    assert row.rejects is not None and row.rejects.declared == 0.05
    assert (row.rejects.clean.k, row.rejects.clean.n) == (2, N)
    assert (row.clean.k, row.robust.k) == (16, 10)


def test_a_defense_without_a_detector_needs_no_attack_on_detectors(world: World) -> None:
    world.threat("linf", "pgd", "both")
    world.attack("both", joint=True)
    world.defense("plain")
    world.clean("plain", ~some(N, 0))
    world.evaluate("plain", "pgd", some(N, 0, 1))
    attacked(world)
    rows = {row.defense: row.coverage for row in ranking_of(world.store, None)}
    assert (rows["plain"].done, rows["plain"].required) == (1, 1)
    assert (rows["d"].done, rows["d"].required) == (1, 2)


def test_a_report_has_roc_curves_with_the_threshold_of_the_defense(world: World) -> None:
    attacked(world)
    found = defense_report(world.store, find_leaderboard(world.store, None), "d").rocs["pgd"]
    assert found.at == (2 / 20, 8 / 18)
    assert any(
        np.allclose(found.at, pair) for pair in zip(found.clean, found.attacked, strict=True)
    )


def test_the_terminal_shows_rejected_and_accepted_images(world: World) -> None:
    attacked(world)
    world.defense("plain")
    world.clean("plain", ~some(N, 0))
    screen = Console(file=io.StringIO(), width=120)
    screen.print(text_report(json_report(world.store)))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    (line,) = (line.split() for line in text.splitlines() if line.split()[:2] == ["d", "pgd"])
    assert line == ["d", "pgd", "0.744", "2/20", "8/18", "14/18", "6/18"]


def test_a_defense_without_a_detector_has_no_such_figures(world: World) -> None:
    world.defense("plain")
    world.clean("plain", ~some(N, 0))
    world.evaluate("plain", "pgd", some(N, 1))
    leaderboard = find_leaderboard(world.store, None)
    assert load_matrix(world.store, leaderboard)[0].detection is None
    assert defense_report(world.store, leaderboard, "plain").rocs == {}
    (row,) = (row for row in load_ranking(world.store, leaderboard) if row.defense == "plain")
    assert row.rejects is None


def test_a_rejected_image_is_no_nearest_adversarial_example(world: World) -> None:
    world.threat("nearest", "pgd", goal="nearest", eps=1.0)
    score = np.where(some(N, 4), 1.0, -1.0)
    label = np.where(some(N, 4, 5), 1, 0)
    broken = some(N)
    world.evaluate("d", "pgd", broken, threat="nearest", rejection=score, label=label)
    curve = defense_report(world.store, find_leaderboard(world.store, "nearest"), "d").distances[
        "pgd"
    ]
    assert curve.correct.tolist() == [16, 15]


def test_a_real_run_reports_detection_and_the_joint_attack(tmp_path: Path) -> None:
    """From the plugins through engine, referee and store to the report."""
    names = ("detector-binary", "undefended")
    chosen = Selection(("digits-linf",), names, ("fgsm", "joint-pgd"), examples=32)
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        MatrixWorker(Registry.load(), store, chosen, RunSettings(torch.device("cpu"), 32)).run()
        told = json.loads(json.dumps(json_report(store, "digits-linf")))
        assert told == json.loads(json.dumps(json_report(store, "digits-linf")))
        leaderboard = find_leaderboard(store, "digits-linf")
        rows = {row.defense: row for row in load_ranking(store, leaderboard)}
        cells = {(s.defense, s.attack): s for s in load_matrix(store, leaderboard)}
    mine = {cell["attack"]: cell for cell in told["matrix"]
            if cell["defense"] == "detector-binary"}  # fmt: skip
    joint, plain = mine["joint-pgd"], mine["fgsm"]
    assert set(joint["detection"]) == {"auc", "rejected", "fooled", "passed"}
    assert joint["robust"]["k"] < plain["robust"]["k"]
    assert plain["detection"]["rejected"]["k"] > joint["detection"]["rejected"]["k"]
    assert cells["undefended", "joint-pgd"].state == "not applicable"
    assert "no detector" in cells["undefended", "joint-pgd"].reason
    (row,) = (row for row in told["ranking"] if row["defense"] == "detector-binary")
    assert row["rejects"] == {"declared": 0.05, "clean": asdict(rows[row["defense"]].clean) | {
        name: row["rejects"]["clean"][name] for name in ("k", "low", "high")}}  # fmt: skip
    assert rows["undefended"].rejects is None
