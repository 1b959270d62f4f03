"""Profiles: which attacks a named battery plays on which boards."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.threats import suites
from bench.threats.suites import SUITES, Suite

TINY = Suite("tiny", {"Linf": ("bim", "fgsm"), "L1": ("fgm-l1",)}, "Two.", "")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "SUITES", {**SUITES, "tiny": TINY})


def plan(folder: Path, *threats: str, **more: object) -> dict[str, list[str]]:
    """The attacks of a run on each board, in the order in which they are played."""
    selection = Selection(threats, ("linear",), suite="tiny", **more)  # type: ignore[arg-type]
    found: dict[str, list[str]] = {}
    for row in MatrixRun(selection, f"sqlite:///{folder / 'bench.db'}").plan():
        found.setdefault(row["threat"], []).append(row["attack"])
    return found


def test_a_profile_stands_for_its_attacks_and_adds_to_those_named(tmp_path: Path) -> None:
    assert plan(tmp_path, "digits-linf") == {"digits-linf": ["bim", "fgsm"]}
    more = plan(tmp_path, "digits-linf", attacks=("pgd", "fgsm"))
    assert more == {"digits-linf": ["pgd", "fgsm", "bim"]}
    cascade = plan(tmp_path, "digits-linf", attacks=("pgd", "random"), mode="rank")
    assert cascade == {"digits-linf": ["fgsm", "bim", "pgd", "random"]}


def test_boards_that_it_does_not_cover_are_left_out_unless_they_are_named(tmp_path: Path) -> None:
    assert set(plan(tmp_path)) == {"digits-linf", "digits-l1", "digits-box"}
    for board, said in (
        ("digits-l2", "suite tiny covers Linf, L1; digits-l2 is L2"),
        ("digits-labels", "suite tiny covers Linf, L1; digits-labels is L2"),
        ("digits-targeted", "digits-targeted reveals gradients and is targeted"),
    ):
        with pytest.raises(BenchError, match=said):
            plan(tmp_path, board)
    with pytest.raises(BenchError, match="lab reveals labels and is untargeted"):
        TINY.on("lab", "Linf", "labels", "untargeted")


def test_what_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="--suite came as 'plus'; use one of standard, tiny"):
        MatrixRun(Selection(suite="plus"), f"sqlite:///{tmp_path}/bench.db").plan()
    strange = Suite("tiny", {"Linf": ("fgsm", "nobodys")}, "", "")
    monkeypatch.setattr(suites, "SUITES", {"tiny": strange})
    with pytest.raises(BenchError, match="plays nobodys on digits-linf, which no plugin offers"):
        plan(tmp_path, "digits-linf")


def test_the_standard_battery_is_four_attacks_for_each_norm() -> None:
    standard = SUITES["standard"]
    assert set(standard.attacks) == {"Linf", "L2", "L1"}
    for attacks in standard.attacks.values():
        assert len(set(attacks)) == 4
        assert [name.split("-")[0] for name in attacks] == ["apgd", "apgd", "fab", "square"]
