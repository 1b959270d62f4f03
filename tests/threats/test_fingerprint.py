"""Fingerprints: parameters as JSON, and digests of a source file with what it imports."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench.core.errors import PluginError
from bench.plugin import losses
from bench.registry.loader import module_from_source
from bench.threats import random_numbers
from bench.threats.fingerprint import class_source_digest, parameters_of, source_digest


@dataclass(frozen=True)
class Parameters:
    steps: int = 3
    rate: Fraction = Fraction(1, 4)
    loss: losses.Loss = losses.margin
    shape: tuple[int, ...] = (1, 2)
    weight: float = float("inf")


def test_parameters_are_json_with_functions_by_name() -> None:
    assert parameters_of(Parameters()) == {
        "steps": 3,
        "rate": "1/4",
        "loss": "bench.plugin.losses.margin",
        "shape": [1, 2],
        "weight": "inf",
    }


def test_a_lambda_is_refused_as_a_parameter() -> None:
    with pytest.raises(PluginError, match=r"Parameters\.loss is .* use a number"):
        parameters_of(Parameters(loss=lambda logits, label: logits[:, 0]))


def test_parameters_of_different_tensors_and_partials_differ() -> None:
    class Plain:
        def __init__(self, value: object) -> None:
            self.value = value

    values = [
        torch.zeros(2),
        torch.ones(2),
        functools.partial(random_numbers.name_to_int64, "a"),
        {"b": 1},
    ]
    assert len({str(parameters_of(Plain(value))) for value in values}) == len(values)


def test_a_cached_property_is_not_a_parameter() -> None:
    class Worked:
        def __init__(self) -> None:
            self.side = 3

        @functools.cached_property
        def area(self) -> int:
            return self.side**2

    worked = Worked()
    assert worked.area == 9
    assert parameters_of(worked) == parameters_of(Worked()) == {"side": 3}


def test_a_source_digest_depends_on_the_modules_that_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "example_family"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("WIDTH = 8\n")
    (package / "alone.py").write_text("WIDTH = 8\n")
    (package / "main.py").write_text("from example_family.part import WIDTH\n")
    module = ModuleType("example_family.main")
    module.__file__ = str(package / "main.py")
    before = source_digest(module)
    (package / "alone.py").write_text("WIDTH = 9\n")
    assert source_digest(module) == before
    (package / "part.py").write_text("WIDTH = 9\n")
    assert source_digest(module) != before


@pytest.mark.parametrize("statement", ["from . import part", "from .part import WIDTH"])
def test_a_source_digest_depends_on_relative_imports(tmp_path: Path, statement: str) -> None:
    package = tmp_path / "example_near"
    package.mkdir()
    (package / "part.py").write_text("WIDTH = 8\n")
    (package / "main.py").write_text(statement)
    module = ModuleType("example_near.main")
    module.__file__ = str(package / "main.py")
    before = source_digest(module)
    assert before != hashlib.sha256((package / "main.py").read_bytes()).hexdigest()
    (package / "part.py").write_text("WIDTH = 9\n")
    assert source_digest(module) != before


def test_the_source_digest_of_a_class_is_that_of_the_file_that_was_run(tmp_path: Path) -> None:
    path = tmp_path / "main.py"
    path.write_text("class Patch: side = 1\n")
    first = module_from_source(path.read_bytes(), path).Patch
    before = class_source_digest(first)
    path.write_text("class Patch: side = 5\n")
    assert class_source_digest(first) == before
    assert class_source_digest(module_from_source(path.read_bytes(), path).Patch) != before


def test_a_class_without_a_source_file_is_refused() -> None:
    with pytest.raises(PluginError, match="int is defined in builtins, which is not a Python file"):
        class_source_digest(int)
