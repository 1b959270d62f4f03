"""Known results of the default threat models, which every version must reproduce."""

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
class KnownResults:
    """Results under the two threat models, read once."""

    robust: dict[tuple[str, str, str], Bits]
    """(threat, attack, defense) -> which examples are right; threat empty for the clean pass."""
    proof: CertificateRow
    flags: dict[str, dict[str, str]]

    def worst(self, defense: str, threat: str = "digits-linf") -> Bits:
        """Right on the clean image and under every attack."""
        mine = [b for (t, _, d), b in self.robust.items() if d == defense and t in ("", threat)]
        return np.asarray(np.logical_and.reduce(mine), dtype=np.bool_)

    def under(self, attack: str, defense: str, threat: str = "digits-linf") -> float:
        """Robust accuracy under one attack."""
        return float(self.robust[threat, attack, defense].mean())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> KnownResults:
    """Evaluate what is missing; $BENCH_TRUTHS_DB may name a database with most cells."""
    fresh = f"sqlite:///{tmp_path_factory.mktemp('truths')}/bench.db"
    matrix_run = MatrixRun(SELECTION, os.environ.get("BENCH_TRUTHS_DB") or fresh, quiet=True)
    assert matrix_run.run() == 0
    with Store.open(matrix_run.url, read_only=True) as store:
        rows = [row for row in current_cells(store) if row.cell.threat in ("", *SELECTION.threats)]
        rows = [row for row in rows if row.state == "done" and row.cell.items == 500]
        robust = {
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
    return KnownResults(robust, proof, flags)


pytestmark = pytest.mark.slow


def test_the_undefended_model_is_broken(results: KnownResults) -> None:
    assert results.worst("undefended").mean() <= 0.05


@pytest.mark.parametrize("defense", ["pgd-training", "trades"])
def test_adversarial_training_is_forty_points_more_robust(
    results: KnownResults, defense: str
) -> None:
    assert results.worst(defense).mean() >= results.worst("undefended").mean() + 0.40


def test_one_random_draw_breaks_few_examples(results: KnownResults) -> None:
    clean = results.robust["", CLEAN, "undefended"].mean()
    assert clean - results.under("random", "undefended") <= 0.08


@pytest.mark.parametrize("defense", DEFENSES)
def test_pgd_leaves_no_more_robust_examples_than_fgsm(results: KnownResults, defense: str) -> None:
    assert results.under("pgd", defense) <= results.under("fgsm", defense) + 0.01


def test_masked_gradients_are_flagged_and_circumvented(results: KnownResults) -> None:
    assert results.flags["argmax-only"]["zero-gradients"] == "raised"
    # The true gradient of bit-depth is zero, and its BPDA approximation is used and tested.
    assert results.flags["bit-depth"]["approximation-ascends"] == "clear"
    for defense in ("bit-depth", "linear", "undefended", "pgd-training", "trades"):
        assert results.flags[defense]["zero-gradients"] == "clear"
    assert results.under("pgd", "bit-depth") <= 0.15  # with the BPDA approximation
    assert results.under("pgd", "argmax-only") >= 0.85  # its gradient is zero
    assert results.under("transfer-standard", "argmax-only") <= 0.15  # gradients of a surrogate
    assert results.flags["argmax-only"]["black-box-beats-white-box"] == "raised"


def test_no_attack_breaks_a_certified_example(results: KnownResults) -> None:
    certified = results.proof.certified
    assert results.proof.exact and 0 < certified.sum() < 50
    for (threat, attack, defense), unbroken in results.robust.items():
        if (threat, defense) == ("digits-linf", "linear"):
            assert unbroken[certified].all(), attack
    margin = results.robust["digits-linf", "pgd-margin", "linear"]
    assert np.array_equal(margin & results.robust["", CLEAN, "linear"], certified)


@pytest.mark.parametrize(
    ("defense", "most"), [("undefended", 0.15), ("argmax-only", 0.15), ("bit-depth", 0.50)]
)
def test_a_decision_attack_needs_labels_only(
    results: KnownResults, defense: str, most: float
) -> None:
    assert results.under("boundary", defense, "digits-labels") < most


def test_our_robust_accuracy_lies_between_the_published_figures(tmp_path: Path) -> None:
    """The network of arXiv:1711.00851: certified to 94.2 %, 96.1 % robust under PGD."""
    if not (datasets.data_folder() / "MNIST").is_dir() or not _weights("convex-mnist-linf-0.1"):
        pytest.skip("BENCH_DATA names no folder with MNIST and weights/convex-mnist-linf-0.1")
    whole = Selection(("mnist-linf",), ("convex-mnist",), ("pgd",), examples=10_000)
    matrix_run = MatrixRun(whole, f"sqlite:///{tmp_path}/bench.db", batch=256, quiet=True)
    assert matrix_run.run() == 0
    with Store.open(matrix_run.url, read_only=True) as store:
        (row,) = store.cells("mnist-linf")
    assert row.figures is not None and row.cell.items == 10_000 and row.figures.refused == 0
    assert 0.942 <= row.figures.robust / row.cell.items <= 0.961


def _weights(name: str) -> bool:
    places = (datasets.data_folder(), datasets.data_folder() / "weights")
    return any((place / f"{name}.safetensors").is_file() for place in places)
