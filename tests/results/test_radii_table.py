"""Robust accuracy by radius: the table of one command, and what contradicts it.

Covers bench.cli.radii_tables.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import bench
from bench.cli import app
from bench.core.errors import BenchError
from bench.data.datasets import data_folder, load_dataset
from bench.evaluation.memory_plugins import memory_registry
from bench.results import radii_table as module
from bench.results.curves import results_over_radii
from bench.results.evaluation_result import WORST_CASE
from bench.results.leaderboards import find_leaderboard
from bench.results.radii_table import radii_table
from bench.results.report_tables import cell_text
from bench.store import Store
from tests.fixtures.known_models import gaussian, linear

N = 40
EPS = (0.02, 0.1, 0.3)
RP01 = ("0.001", "0.01", "0.05", "0.1", "0.3", "0.5")
"""The radii of published table A."""


def called(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A linear model under two attacks within three radii."""
    path = str(tmp_path_factory.mktemp("radii") / "net.db")
    x = torch.randint(40, 216, (N, 1, 8, 8), generator=torch.Generator().manual_seed(5)).byte()
    net = linear(gaussian(2, 64, seed=3))
    with torch.no_grad():
        y = net(x.float() / 255).argmax(1)
    y[:4] = 1 - y[:4]
    attacks = ["fgsm", "pgd[steps=3,rate=0.5]"]
    bench.evaluate(net, (x, y), eps=EPS, attacks=attacks, db=path, progress=False)
    return path


@pytest.mark.row("E03")
def test_a_figure_is_that_of_its_radius(db: str) -> None:
    with Store.open(db, read_only=True) as store:
        board = find_leaderboard(store, None)
        found = radii_table(store, board)
        results = results_over_radii(store, board)["model"]
    assert [column.name for column in found.table.columns] == [
        "Defense", "Attack", "0", "0.02", "0.1", "0.3",
    ]  # fmt: skip
    rows = {str(row[1]): [cell_text(cell) for cell in row[2:]] for row in found.table.rows}
    assert list(rows) == ["fgsm", "pgd[steps=3,rate=0.5]", WORST_CASE]
    assert all(row[0] == f"{N - 4}/{N}" for row in rows.values())
    for at, (radius, result) in enumerate(results, 1):
        assert radius == EPS[at - 1]
        for name in list(rows)[:2]:
            assert rows[name][at] == f"{result.robust([name]).sum()}/{N}"
        assert rows[WORST_CASE][at] == f"{result.robust().sum()}/{N}"
    assert len(set(rows["fgsm"])) == 4, "each radius breaks more of a linear model"
    assert found.contradictions == ()


def test_the_radii_of_a_run_alone_are_shown(db: str) -> None:
    with Store.open(db, read_only=True) as store:
        board = find_leaderboard(store, None)
        found = radii_table(store, board, {0.02, 0.3}, attacks=["fgsm"])
        assert [column.name for column in found.table.columns[2:]] == ["0", "0.02", "0.3"]
        assert [row[1] for row in found.table.rows] == ["fgsm"]
        with pytest.raises(BenchError, match="no attack is done within two radii"):
            radii_table(store, board, {0.02})


def test_figures_that_rise_or_fall_below_one_step_are_named(
    db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of two radii are exchanged, and FGSM is given what PGD has within the larger."""
    with Store.open(db, read_only=True) as store:
        board = find_leaderboard(store, None)
        (_, small), _, (_, large) = results_over_radii(store, board)["model"]
        pgd = "pgd[steps=3,rate=0.5]"
        strong = replace(small.attacks["fgsm"], broken=large.attacks["fgsm"].broken)
        mixed = replace(small, attacks={"fgsm": strong, pgd: small.attacks[pgd]})
        monkeypatch.setattr(
            module, "results_over_radii",
            lambda *_: {"model": [(0.01, large), (0.02, mixed), (0.05, mixed)]},
        )  # fmt: skip
        found = radii_table(store, board)
    assert len(found.contradictions) == 3
    rising, *weaker = found.contradictions
    assert rising.startswith(f"{pgd} on model leaves ")
    assert rising.endswith("a larger radius leaves more.") and "within 0.02" in rising
    assert [text.split("within ")[1].split()[0] for text in weaker] == ["0.02", "0.05"]
    assert all("the iterative attack is weaker" in text for text in weaker)


@pytest.mark.parametrize("format_", ["text", "csv", "markdown", "latex"])
def test_every_format_has_the_table(db: str, format_: str) -> None:
    done = called("report", "--db", db, "--table", "radii", "--format", format_)
    assert done.exit_code == 0, done.output
    assert "No figure rises with the radius" in done.stderr
    assert "worst case" in done.stdout and "0.1" in done.stdout.replace("0_1", "0.1")
    if format_ == "csv":
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert [row["attack"] for row in rows] == ["fgsm", "pgd[steps=3,rate=0.5]", WORST_CASE]
        assert rows[0]["0_02_n"] == str(N) and rows[0]["0_k"] == str(N - 4)


@pytest.mark.slow
@pytest.mark.row("RP01")
def test_the_table_of_published_table_a_on_cifar10(tmp_path: Path) -> None:
    """FGSM and PGD on an undefended network: no figure rises, and PGD leaves no more than FGSM."""
    if not (data_folder() / "cifar-10-batches-py").is_dir():
        pytest.skip("BENCH_DATA names no folder that holds CIFAR-10")
    db = str(tmp_path / "net.db")
    result = bench.evaluate(
        undefended(), ("cifar10", 100), eps=RP01, attacks=["fgsm", "pgd"], db=db, progress=False
    )
    assert result.clean.k > 25
    done = called("report", "--db", db, "--table", "radii", "--format", "csv")
    assert done.exit_code == 0, done.output
    assert "warning" not in done.stderr
    rows = {row["attack"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    names = [eps.replace(".", "_") for eps in ("0", *RP01)]
    figures = {name: [int(row[f"{eps}_k"]) for eps in names] for name, row in rows.items()}
    for row in figures.values():
        assert row == sorted(row, reverse=True), figures
    for at, eps in enumerate(names):
        assert figures["pgd"][at] <= int(rows["fgsm"][f"{eps}_k"]) + 1, figures
    assert figures["fgsm"][1] > 0.8 * figures["fgsm"][0], "within .001, a quarter of a grey level"
    assert figures["pgd"][1] > 0.8 * figures["pgd"][0], "table A has 27.75 of 100 here"
    assert figures["pgd"][4] == 0


def undefended() -> nn.Module:
    """A small network, trained on clean CIFAR-10 images for seconds."""
    half = load_dataset(memory_registry().find("dataset", "cifar10").value).train
    assert half is not None
    x, y = torch.tensor(half.images[:3000]).float() / 255, torch.tensor(half.labels[:3000])
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(4):
        for images, labels in zip(torch.split(x, 64), torch.split(y, 64), strict=True):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(net(images), labels))
            optimizer.step()
    return net
