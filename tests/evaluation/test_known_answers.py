"""Known answers of the boards: what must come out whoever plays them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.core.cells import CLEAN
from bench.core.outcomes import Verdict
from bench.data import datasets
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.results import json_report
from bench.results.current_cells import current_cells
from bench.store import CertificateRow, Store

DEFENSES = ("argmax-only", "bit-depth", "linear", "pgd-training", "trades", "undefended")
SELECTION = Selection(threats=("digits-linf", "digits-labels"), defenses=DEFENSES)
Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Boards:
    """The two boards, read once."""

    held: dict[tuple[str, str, str], Bits]
    """(threat, attack, defense) -> which examples are still right; threat empty for clean."""
    proof: CertificateRow
    flags: dict[str, dict[str, str]]

    def worst(self, defense: str, threat: str = "digits-linf") -> Bits:
        """Right on the clean image and under every attack."""
        mine = [b for (t, _, d), b in self.held.items() if d == defense and t in ("", threat)]
        return np.asarray(np.logical_and.reduce(mine), dtype=np.bool_)

    def under(self, attack: str, defense: str, threat: str = "digits-linf") -> float:
        """Robust accuracy under one attack."""
        return float(self.held[threat, attack, defense].mean())


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Boards:
    """Play what is not there yet; $BENCH_TRUTHS_DB names a database that has most of it."""
    fresh = f"sqlite:///{tmp_path_factory.mktemp('truths')}/bench.db"
    matrix_run = MatrixRun(SELECTION, os.environ.get("BENCH_TRUTHS_DB") or fresh, quiet=True)
    assert matrix_run.run() == 0
    with Store.open(matrix_run.url, read_only=True) as store:
        rows = [row for row in current_cells(store) if row.cell.threat in ("", *SELECTION.threats)]
        rows = [row for row in rows if row.state == "done" and row.cell.items == 500]
        held = {
            (row.cell.threat, row.cell.attack, row.cell.defense): store.outcomes(row.key).verdict
            != Verdict.BROKEN
            for row in rows
        }
        linear = next(
            r for r in rows if (r.cell.threat, r.cell.defense) == ("digits-linf", "linear")
        )
        proofs = store.certificates(linear.cell.threat_id, linear.cell.examples)
        mine = [p for p in proofs if p.defense_digest == linear.cell.defense_digest]
        (proof,) = [p for p in mine if p.certifier == "linear-exact"]
        report = json_report.json_report(store, "digits-linf")
    flags = {
        row["defense"]: {flag["name"]: flag["state"] for flag in row["flags"]}
        for row in report["ranking"]
    }
    return Boards(held, proof, flags)


pytestmark = pytest.mark.slow


def test_nobody_undefended_holds(boards: Boards) -> None:
    assert boards.worst("undefended").mean() <= 0.05


@pytest.mark.parametrize("defense", ["pgd-training", "trades"])
def test_adversarial_training_stands_forty_points_above(boards: Boards, defense: str) -> None:
    assert boards.worst(defense).mean() >= boards.worst("undefended").mean() + 0.40


def test_one_random_draw_is_no_attack(boards: Boards) -> None:
    clean = boards.held["", CLEAN, "undefended"].mean()
    assert clean - boards.under("random", "undefended") <= 0.08


@pytest.mark.parametrize("defense", DEFENSES)
def test_iterating_leaves_no_more_than_one_step(boards: Boards, defense: str) -> None:
    assert boards.under("pgd", defense) <= boards.under("fgsm", defense) + 0.01


def test_hidden_gradients_are_seen_and_walked_around(boards: Boards) -> None:
    for defense in ("bit-depth", "argmax-only"):
        assert boards.flags[defense]["zero-gradients"] == "raised"
    for defense in ("linear", "undefended", "pgd-training", "trades"):
        assert boards.flags[defense]["zero-gradients"] == "clear"
    assert boards.under("pgd", "bit-depth") <= 0.15  # through the stand-in
    assert boards.under("pgd", "argmax-only") >= 0.85  # there is nothing to climb
    assert boards.under("transfer", "argmax-only") <= 0.15  # from the surrogate
    assert boards.flags["argmax-only"]["black-box-beats-white-box"] == "raised"


def test_no_attack_passes_below_the_exact_worst_case(boards: Boards) -> None:
    certified = boards.proof.certified
    assert boards.proof.exact and 0 < certified.sum() < 50
    for (threat, attack, defense), held in boards.held.items():
        if (threat, defense) == ("digits-linf", "linear"):
            assert held[certified].all(), attack
    margin = boards.held["digits-linf", "pgd-margin", "linear"]
    assert np.array_equal(margin & boards.held["", CLEAN, "linear"], certified)


@pytest.mark.parametrize(
    ("defense", "most"), [("undefended", 0.15), ("argmax-only", 0.15), ("bit-depth", 0.50)]
)
def test_labels_alone_are_enough(boards: Boards, defense: str, most: float) -> None:
    assert boards.under("boundary", defense, "digits-labels") < most


def test_published_figures_bracket_ours(tmp_path: Path) -> None:
    """The network of arXiv:1711.00851 is certified to 94.2 %, and falls to 96.1 % under PGD."""
    if not (datasets.data_folder() / "MNIST").is_dir() or not _weights("convex-mnist-linf-0.1"):
        pytest.skip("BENCH_DATA names no folder with MNIST and weights/convex-mnist-linf-0.1")
    whole = Selection(("mnist-linf",), ("convex-mnist",), ("pgd",), examples=10_000)
    matrix_run = MatrixRun(whole, f"sqlite:///{tmp_path}/bench.db", batch=256, quiet=True)
    assert matrix_run.run() == 0
    with Store.open(matrix_run.url, read_only=True) as store:
        (row,) = store.cells("mnist-linf")
    assert row.robust is not None and row.cell.items == 10_000 and row.out_of_ball == 0
    assert 0.942 <= row.robust / row.cell.items <= 0.961


def _weights(name: str) -> bool:
    places = (datasets.data_folder(), datasets.data_folder() / "weights")
    return any((place / f"{name}.safetensors").is_file() for place in places)
