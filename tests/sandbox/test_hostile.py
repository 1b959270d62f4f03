"""Hostile submissions beside an honest row: contained, and with the result that each declares.

The tests play a share of them; `python -m tests.tools.hostile` plays all.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import BenchError
from bench.store import Store
from bench.submissions.intake import accept_submission
from tests.sandbox.hostile.archives import write_archive
from tests.sandbox.hostile.case import CODES, HELPERS, End, HostileCase, attack, defense
from tests.sandbox.hostile.cases import CASES, QUICK, SLOW, named
from tests.sandbox.hostile.playing import LIMITS, Honest, Played, faults, play
from tests.sandbox.hostile.python_tricks import ARCHIVES
from tests.sandbox.isolated import write_submission

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def honest() -> Iterator[Honest]:
    """The outcomes of honest rows."""
    yield Honest()


def parameters() -> list[object]:
    """The quick cases, and those of the slow tests."""
    slow = [pytest.param(case, marks=pytest.mark.slow, id=case.name) for case in named(*SLOW)]
    return [*(pytest.param(case, id=case.name) for case in named(*QUICK)), *slow]


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("case", parameters())
def test_a_hostile_submission_ends_as_declared(case: HostileCase, honest: Honest) -> None:
    played = play(case, honest)
    assert played.faults == [], played.message
    assert played.contained


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
def test_a_case_that_declares_another_result_is_named(honest: Honest) -> None:
    case = next(case for case in CASES if case.name == "escapes-in-an-error")
    assert play(replace(case, code="timeout"), honest).faults == ["the message has another code"]


def test_every_requirement_is_checked() -> None:
    case = HostileCase("x", "family", defense(), "timeout", End.FAILED, "told")
    good = Played("x", "family", "timeout", End.FAILED, "x gave no answer within 5 s; told.")
    good.culprits, good.control = ["plugin"], True
    assert faults(case, good) == []
    wrong: dict[str, Any] = {
        "end": End.FINISHED, "culprits": ["harness"], "control": False, "survivors": 1,
        "files": ["/tmp/x"], "descriptors": 1, "peak": 2 * LIMITS.memory, "growth": 1 << 30,
        "machine": 3 * LIMITS.memory, "message": "another\nsentence",
    }  # fmt: skip
    for name, value in wrong.items():
        assert faults(case, replace(good, **{name: value})), name
    assert good.contained
    for name in ("control", "survivors", "files", "peak", "machine"):
        assert not replace(good, **{name: wrong[name]}).contained, name
    assert len(faults(case, replace(good, message="another\nsentence"))) == 4


def test_the_cases_are_many_distinct_and_of_known_codes() -> None:
    assert len(CASES) >= 100
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.code for case in CASES} <= set(CODES)
    assert len({case.family for case in CASES}) >= 12
    for case in CASES:
        ast.parse(case.source)


@pytest.mark.parametrize(("kind", "part"), [("defense", "forward"), ("attack", "step")])
def test_code_that_runs_at_import_is_told_from_the_template(kind: str, part: str) -> None:
    made = {"defense": defense, "attack": attack}[kind]

    def alike(source: str) -> bool:
        case = HostileCase("x", "", source, "ok", End.FAILED, kind=kind)
        return case.imports_like_the_template()

    assert alike(made())
    assert alike(made(**{part: "1 / 0"}))
    assert alike(made(top=HELPERS[0], **{part: "1 / 0"}))
    assert not alike(made(top="1 / 0"))
    assert not alike(made().replace("{name}", "other"))
    assert not alike(made() + "1 / 0\n")


@pytest.mark.parametrize("fault", [case.name for case in ARCHIVES])
def test_a_faulty_archive_is_rejected(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    case = next(case for case in ARCHIVES if case.name == fault)
    path = write_archive(write_submission(tmp_path / "work", case.source, "mine"), fault)
    with (
        Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store,
        pytest.raises(BenchError, match=case.sentence) as caught,
    ):
        accept_submission(path, store)
    assert "mine" in str(caught.value) and str(caught.value).isprintable()
    assert not list((tmp_path / "in").iterdir())


def test_no_array_file_is_accepted_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    place = write_submission(tmp_path / "work", defense(), "mine")
    (place / "data.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff" + b" " * 100)
    with (
        Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store,
        pytest.raises(BenchError, match=r"data\.npy"),
    ):
        accept_submission(place, store)
    for folder in ("bench", "plugins", "leaderboard"):
        for file in (ROOT / folder).rglob("*.py"):
            calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(file.read_text()))
                     if isinstance(n, ast.Call)}  # fmt: skip
            assert not calls & {"np.load", "numpy.load", "pickle.load", "pickle.loads"}, file
