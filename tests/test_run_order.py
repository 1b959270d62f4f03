"""The order of the files of tests: the longest first, then those of many tests."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import LONGEST_FILES, run_order

ROOT = Path(__file__).parents[1]


def test_long_files_are_first_and_then_those_of_many_tests() -> None:
    one, two = LONGEST_FILES[1], LONGEST_FILES[0]
    files = ["a.py", "b.py", "b.py", one, "c.py", two, "b.py", two]
    assert [files[position] for position in run_order(files)] == [
        two, two, one, "b.py", "b.py", "b.py", "a.py", "c.py",
    ]  # fmt: skip


def test_every_test_runs_once_and_those_of_a_file_keep_their_order() -> None:
    files = ["x.py", LONGEST_FILES[2], "y.py", "x.py", LONGEST_FILES[2], "x.py"]
    order = run_order(files)
    assert sorted(order) == list(range(len(files)))
    for file in set(files):
        own = [position for position in order if files[position] == file]
        assert own == sorted(own)


def test_the_long_files_have_slow_tests() -> None:
    assert len(set(LONGEST_FILES)) == len(LONGEST_FILES)
    for file in LONGEST_FILES:
        assert "slow" in (ROOT / file).read_text(), file
