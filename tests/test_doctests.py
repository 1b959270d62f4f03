"""The examples in docstrings of `bench` give what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import bench

FOLDER = Path(bench.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in FOLDER.rglob("*.py")
    if ">>> " in path.read_text() and "migrations" not in path.parts
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_some_modules_have_examples() -> None:
    assert MODULES
