"""Attack suites: which attacks a run with `--suite` plans for which threat models."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.registry.registry import Registry
from bench.threats import suites
from bench.threats.suites import SUITES, Suite

TINY = Suite("tiny", {"Linf": ("bim", "fgsm"), "L1": ("fgm-l1",)}, "Two.", "")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "SUITES", {**SUITES, "tiny": TINY})


def plan(folder: Path, *threats: str, **more: object) -> dict[str, list[str]]:
    """Threat model -> the attacks of a run, in order."""
    selection = Selection(threats, ("linear",), suite="tiny", **more)  # type: ignore[arg-type]
    found: dict[str, list[str]] = {}
    for row in MatrixRun(selection, f"sqlite:///{folder / 'bench.db'}").plan():
        found.setdefault(row["threat"], []).append(row["attack"])
    return found


def test_a_suite_adds_its_attacks_to_those_that_are_named(tmp_path: Path) -> None:
    more = plan(tmp_path, "digits-linf", attacks=("pgd", "fgsm"))
    assert more == {"digits-linf": ["pgd", "fgsm", "bim"]}
    cascade = plan(tmp_path, "digits-linf", attacks=("pgd", "random"), mode="rank")
    assert cascade == {"digits-linf": ["fgsm", "bim", "pgd", "random"]}


@pytest.mark.parametrize(
    ("threat", "suite"), [("digits-linf", ["bim", "fgsm"]), ("digits-l1", ["fgm-l1"])]
)
def test_a_suite_alone_adds_what_the_protocol_requires(
    tmp_path: Path, threat: str, suite: list[str]
) -> None:
    """Finding 17: the suite alone gave 0 of 3 required attacks and no rank."""
    found = plan(tmp_path, threat)
    protocol = Registry.without_submissions().find("threat", threat).value.protocol
    wanted = {*protocol.required, *suite}
    assert wanted <= set(found[threat])
    assert set(found) == {threat, *protocol.evidence}
    # The suite is for the ranked leaderboard; its evidence is as in a run without a suite.
    assert {tuple(found[name]) for name in protocol.evidence} == {("pgd",)}


def test_a_suite_runs_where_a_leaderboard_that_is_evidence_is_named(tmp_path: Path) -> None:
    assert plan(tmp_path, "digits-box")["digits-box"] == ["unbounded", "bim", "fgsm"]
    cascade = plan(tmp_path, "digits-l1", mode="rank")["digits-l1"]
    protocol = Registry.without_submissions().find("threat", "digits-l1").value.protocol
    assert {*protocol.required, "fgm-l1"} <= set(cascade)


def test_threat_models_that_a_suite_does_not_cover_are_left_out_unless_named(
    tmp_path: Path,
) -> None:
    covered = {"digits-linf", "digits-l1", "digits-box"}
    radii = {f"digits-{norm}-{word}" for norm in ("linf", "l1") for word in ("half", "double")}
    assert set(plan(tmp_path)) == covered | radii
    for threat, message in (
        ("digits-l2", "suite tiny covers Linf, L1; digits-l2 is L2"),
        ("digits-labels", "suite tiny covers Linf, L1; digits-labels is L2"),
        ("digits-targeted", "digits-targeted has access gradients and goal targeted"),
    ):
        with pytest.raises(BenchError, match=message):
            plan(tmp_path, threat)
    with pytest.raises(BenchError, match="lab has access labels and goal untargeted"):
        TINY.attacks_for("lab", "Linf", "labels", "untargeted")


def test_an_unknown_suite_or_attack_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchError, match="--suite is 'plus'; use one of standard, tiny"):
        MatrixRun(Selection(suite="plus"), f"sqlite:///{tmp_path}/bench.db").plan()
    strange = Suite("tiny", {"Linf": ("fgsm", "unknown-attack")}, "", "")
    monkeypatch.setattr(suites, "SUITES", {"tiny": strange})
    with pytest.raises(
        BenchError, match="runs unknown-attack under digits-linf, which no plugin registers"
    ):
        plan(tmp_path, "digits-linf")


def test_the_standard_suite_has_four_attacks_for_each_norm() -> None:
    standard = SUITES["standard"]
    assert set(standard.attacks) == {"Linf", "L2", "L1"}
    for attacks in standard.attacks.values():
        assert len(set(attacks)) == 4
        assert [name.split("-")[0] for name in attacks] == ["apgd", "apgd", "fab", "square"]
