"""Errors have exit codes of their own and read as one line."""

from __future__ import annotations

import pytest

from bench.core.errors import (
    BenchError,
    PluginError,
    UnavailableError,
    error_text,
    require_type,
)


def test_each_error_has_its_exit_code() -> None:
    assert [kind.exit_code for kind in (BenchError, PluginError, UnavailableError)] == [2, 3, 5]


def test_a_value_of_the_required_type_is_returned() -> None:
    assert require_type("a", str, "the name") == "a"


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (3, "int")])
def test_a_value_of_another_type_is_the_plugins_error(value: object, kind: str) -> None:
    with pytest.raises(PluginError, match=f"the name is {kind}; str was expected"):
        require_type(value, str, "the name")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BenchError("no such\n  file."), "no such file"),
        (ValueError("bad\tvalue."), "ValueError: bad value"),
        (KeyError(), "KeyError"),
        (SystemExit(3), "SystemExit: 3"),
        (OSError("no file \udcff.png"), r"OSError: no file \udcff.png"),
        (BenchError("\ud83d and \U0001f600"), "\\ud83d and \U0001f600"),
    ],
)
def test_an_error_reads_as_one_line(error: BaseException, text: str) -> None:
    assert error_text(error) == text


def test_a_long_text_is_cut() -> None:
    assert len(error_text(BenchError("x" * 1000))) == 300
