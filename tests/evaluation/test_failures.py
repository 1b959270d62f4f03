"""Whose mistake it is: what a plugin raises is its own, by whatever name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench.core.cells import Culprit, Failure
from bench.core.errors import UnavailableError
from bench.evaluation import failures as blaming
from bench.evaluation.failures import failure_of
from bench.registry.loader import module_from_source
from bench.registry.submission import did_you_mean

HEAD = "import json\nimport torch\nfrom bench.core.errors import UnavailableError\n"
Make = Callable[[str], ModuleType]


def failed(function: Callable[[], object]) -> Failure:
    """What is said of the exception."""
    try:
        function()
    except BaseException as error:
        return failure_of(error)
    raise AssertionError("nothing was raised")


@pytest.fixture
def submitted(tmp_path: Path) -> Make:
    """A submission whose function `go` does this."""

    def make(statement: str) -> ModuleType:
        path = tmp_path / "plugin.py"
        return module_from_source(f"{HEAD}def go():\n    {statement}\n".encode(), path)

    return make


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The same in a subpackage of an installed plugin."""

    def make(statement: str) -> ModuleType:
        folder = tmp_path / "lib" / "site-packages"
        net = folder / "stranger_blamed" / "net"
        net.mkdir(parents=True)
        (net.parent / "__init__.py").write_text("")
        (net.parent / "entry.py").write_text("from stranger_blamed.net import go\n")
        (net / "__init__.py").write_text(f"{HEAD}def go():\n    {statement}\n")
        monkeypatch.syspath_prepend(folder)
        point = EntryPoint("stranger", "stranger_blamed.entry", "bench")
        monkeypatch.setattr(blaming, "entry_points", lambda group: [point], raising=False)
        for name in [name for name in sys.modules if name.startswith("stranger_blamed")]:
            monkeypatch.delitem(sys.modules, name)
        return import_module("stranger_blamed.entry")

    return make


FORGED = (
    "raise MemoryError()", "raise MemoryError('CUDA out of memory')",
    "raise torch.OutOfMemoryError('CUDA out of memory')", "raise UnavailableError('no weights')",
)  # fmt: skip


@pytest.mark.parametrize("door", ["submitted", "installed"])
@pytest.mark.parametrize("statement", [*FORGED, "{}['a']", "json.loads('{')", "torch.eye(-1)"])
def test_what_a_plugin_raises_is_its_own(
    request: pytest.FixtureRequest, door: str, statement: str
) -> None:
    make: Make = request.getfixturevalue(door)
    module = make(statement)
    found = failed(module.go)
    assert found.culprit is Culprit.PLUGIN
    name = Path(module.go.__code__.co_filename).name
    assert f" in {name}, line 5" in found.reason
    assert found.reason.endswith(".") and not found.reason.endswith(": .")


@pytest.mark.parametrize("door", ["submitted", "installed"])
def test_memory_that_really_ran_out_is_nobodys_mistake(
    request: pytest.FixtureRequest, door: str
) -> None:
    make: Make = request.getfixturevalue(door)
    found = failed(make("bytearray(2**62)").go)
    assert found.culprit is Culprit.INFRASTRUCTURE
    assert "memory ran out" in found.reason


def test_memory_that_ran_out_inside_torch_is_nobodys_mistake(submitted: Make) -> None:
    library: dict[str, Callable[[], object]] = {}
    content = "import torch\ndef full():\n    raise torch.OutOfMemoryError('CUDA out of memory')\n"
    exec(compile(content, str(Path(torch.__file__).parent / "planted.py"), "exec"), library)
    module = submitted("full()")
    vars(module)["full"] = library["full"]
    assert failed(module.go).culprit is Culprit.INFRASTRUCTURE


def test_what_the_house_says_to_its_user_stays_so() -> None:
    def missing() -> None:
        raise UnavailableError("there is no database")

    code = missing.__code__.replace(co_filename=str(blaming.HARNESS / "store" / "store.py"))
    missing.__code__ = code
    assert failed(missing) == Failure(Culprit.USER, "there is no database.")


def test_what_the_house_gets_wrong_is_its_own() -> None:
    assert failed(lambda: did_you_mean(3, ["a"])).culprit is Culprit.HARNESS  # type: ignore[arg-type]


def test_a_library_that_is_no_plugin_is_not_to_blame() -> None:
    assert failed(lambda: json.loads("{")).reason.startswith("JSONDecodeError in test_failures.py")
