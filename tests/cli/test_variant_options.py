"""`bench run --eps` and `--norm`: threat models of other budgets, their rows and their reruns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.cli.variant_options import read_settings, threat_variants_of, variants_of
from bench.core.errors import BenchError
from bench.results.leaderboards import leaderboards
from bench.store import Store
from leaderboard import words
from leaderboard.snapshot import write_snapshot

NAMES = ["digits-linf[eps=4/255]", "digits-linf[eps=8/255]"]
RUN = ["run", "--threat", "digits-linf", "--defense", "linear", "--examples", "64"]


def called(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


def reported(db: Path, threat: str) -> dict[str, Any]:
    done = called("report", "--threat", threat, "--db", str(db), "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FGSM and two settings of PGD within three radii, one of them the registered one."""
    path = tmp_path_factory.mktemp("radii") / "bench.db"
    done = called(
        *RUN, "--eps", "8/255, 4/255,0.2", "--attack", "fgsm", "--set", "pgd.steps=2,40",
        "--db", str(path),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.count("Robust examples by Linf radius on digits") == 1, "one table"
    assert done.stdout.index("4/255") < done.stdout.index("8/255") < done.stdout.index("0.2")
    named = [line for line in done.stderr.splitlines() if line.startswith("full report: ")]
    threats = (*NAMES, "digits-linf[eps=0.2]")
    commands = [f"bench report --threat '{name}' --db {path}" for name in threats]
    assert named == [f"full report: {command}" for command in commands]
    return path


def test_each_radius_has_a_leaderboard_and_the_registered_one_its_name(db: Path) -> None:
    with Store.open(str(db), read_only=True) as store:
        boards = [(one.name, one.set["eps"], one.ranked) for one in leaderboards(store)]
    assert boards == [
        ("digits-linf", "1/5", True), (NAMES[0], "4/255", False), (NAMES[1], "8/255", False),
    ]  # fmt: skip


def test_more_radius_breaks_more_and_iterations_break_no_less(db: Path) -> None:
    robust = []
    for name in (*NAMES, "digits-linf"):
        done = [cell for cell in reported(db, name)["matrix"] if cell["robust"]]
        cells = {cell["attack"]: cell["robust"]["k"] for cell in done}
        assert cells["pgd"] <= cells["pgd[steps=2]"] + 1 and cells["pgd"] <= cells["fgsm"] + 1
        robust.append(cells["pgd"])
    assert 64 > robust[0] > robust[1] > robust[2]


def test_a_report_finds_every_spelling_of_a_radius(db: Path) -> None:
    named = reported(db, NAMES[1])
    assert named["threat"]["name"] == NAMES[1] and named["threat"]["set"]["eps"] == "8/255"
    for spelling in ("digits-linf[eps=0.03137254901960784]", "digits-linf[norm=Linf,eps=16/510]"):
        assert reported(db, spelling) == named
    assert reported(db, "digits-linf[eps=1/5]") == reported(db, "digits-linf")
    radii = [point["radius"] for point in named["ranking"][0]["distortion"]]
    assert radii == pytest.approx([0, 4 / 255, 8 / 255, 0.2])
    missing = called("report", "--threat", "digits-linf[eps=7/255]", "--db", str(db))
    assert "no leaderboard of a threat model named" in str(missing.exception)


def test_rows_of_other_radii_have_no_rank_and_are_no_evidence(db: Path) -> None:
    (row,) = reported(db, NAMES[0])["ranking"]
    assert row["rank"] is None and "evidence only" in row["note"]
    (ranked,) = reported(db, "digits-linf")["ranking"]
    checks = {flag["name"]: flag["evidence"] for flag in ranked["flags"]}
    assert checks["larger-bound-does-not-help"].startswith("No attack is done here and within")


def test_a_second_run_evaluates_nothing(db: Path) -> None:
    def recorded() -> list[tuple[str, float, float]]:
        with Store.open(str(db), read_only=True) as store:
            return [(row.key, row.seconds, row.updated) for row in store.cells()]

    before = recorded()
    spelled = [name for radius in ("0.2", "16/510") for name in
               ("--threat", f"digits-linf[eps={radius}]")]  # fmt: skip
    settings = ["--attack", "fgsm", "--set", "pgd.steps=2,40", "--db", str(db)]
    plan = called(*RUN[:1], *spelled, *RUN[3:], *settings, "--dry-run")
    assert [line.split("\t")[-1] for line in plan.stdout.splitlines()] == ["done"] * 6
    again = called(*RUN, "--eps", "4/255,8/255,0.2", *settings)
    assert again.exit_code == 0, again.output
    assert recorded() == before


def test_the_pages_show_every_radius(db: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_text() for path in write_snapshot(str(db), tmp_path)}
    with Store.open(str(db), read_only=True) as store:
        labels = list(words.leaderboards_by_label(leaderboards(store)))
    assert labels[1:] == NAMES
    for name in NAMES:
        assert name in files["index.html"]
    pages = [text for name, text in files.items() if name.startswith("leaderboard-digits-linf-eps")]
    assert sum("no pixel may change by more than 4/255 (= 0.01569)" in page for page in pages) == 1


def test_norms_and_radii_are_combined() -> None:
    assert threat_variants_of(["a", "b"], "1/2,0.5,1") == [
        "a[eps=0.5]", "a[eps=1]", "b[eps=0.5]", "b[eps=1]",
    ]  # fmt: skip
    assert threat_variants_of(["a"], norm="L1") == ["a[norm=L1]"]
    assert threat_variants_of(["a"]) == ["a"] and threat_variants_of([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eps", "1/0"], "eps is '1/0'; a number such as 8/255 was expected."),
        (["--eps", "0.1,,0.2"], "eps is ''; a number such as 8/255 was expected."),
        (["--eps", "-0.1"], "eps is -0.1; it must not be negative."),
        (["--norm", "l3"], "--norm is 'l3'; use one of linf, l2, l1."),
        (["--threat", "digits-l2[eps=1]", "--eps", "2"], "give the set there or by --eps"),
        (["--set", "steps=2"], "--set is 'steps=2'; write attack.parameter=values"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_sentence(options: list[str], message: str) -> None:
    done = called(*RUN, *options, "--dry-run")
    assert isinstance(done.exception, BenchError) and message in str(done.exception)
    assert done.stdout == ""


def test_a_radius_needs_a_threat_model() -> None:
    for named in ([], ["--threat", "all"]):
        done = called("run", *named, "--eps", "0.1")
        assert "--eps came without a name in --threat" in str(done.exception)
    assert "--norm came without" in str(called("run", "--norm", "l2").exception)


def test_settings_of_several_attacks_are_read_once_for_all_commands() -> None:
    grids = read_settings(["pgd.steps=10, 20", "pgd.rate=0.1", "bim.steps=5"])
    assert grids == {"pgd": {"steps": ["10", "20"], "rate": ["0.1"]}, "bim": {"steps": ["5"]}}
    assert variants_of(["pgd.steps=10,20"]) == ["pgd[steps=10]", "pgd[steps=20]"]
