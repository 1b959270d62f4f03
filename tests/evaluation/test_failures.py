"""Failures: an exception is the fault of the code that raised it, whatever its type."""

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
from bench.evaluation import failures
from bench.evaluation.failures import failure_of
from bench.registry.loader import module_from_source
from bench.registry.submission import did_you_mean

HEAD = "import json\nimport torch\nfrom bench.core.errors import UnavailableError\n"
Make = Callable[[str], ModuleType]


def failed(function: Callable[[], object]) -> Failure:
    """The failure recorded for the exception that `function` raises."""
    try:
        function()
    except BaseException as error:
        return failure_of(error)
    raise AssertionError("nothing was raised")


@pytest.fixture
def submitted(tmp_path: Path) -> Make:
    """Make a submission whose function `go` executes a statement."""

    def make(statement: str) -> ModuleType:
        path = tmp_path / "plugin.py"
        return module_from_source(f"{HEAD}def go():\n    {statement}\n".encode(), path)

    return make


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make an installed plugin with that function in a subpackage."""

    def make(statement: str) -> ModuleType:
        folder = tmp_path / "lib" / "site-packages"
        net = folder / "installed_plugin" / "net"
        net.mkdir(parents=True)
        (net.parent / "__init__.py").write_text("")
        (net.parent / "entry.py").write_text("from installed_plugin.net import go\n")
        (net / "__init__.py").write_text(f"{HEAD}def go():\n    {statement}\n")
        monkeypatch.syspath_prepend(folder)
        point = EntryPoint("plugin", "installed_plugin.entry", "bench")
        monkeypatch.setattr(failures, "entry_points", lambda group: [point], raising=False)
        for name in [name for name in sys.modules if name.startswith("installed_plugin")]:
            monkeypatch.delitem(sys.modules, name)
        return import_module("installed_plugin.entry")

    return make


HARNESS_ERRORS = (
    "raise MemoryError()", "raise MemoryError('CUDA out of memory')",
    "raise torch.OutOfMemoryError('CUDA out of memory')", "raise UnavailableError('no weights')",
)  # fmt: skip


@pytest.mark.parametrize("origin", ["submitted", "installed"])
@pytest.mark.parametrize(
    "statement", [*HARNESS_ERRORS, "{}['a']", "json.loads('{')", "torch.eye(-1)"]
)
def test_what_a_plugin_raises_is_its_fault(
    request: pytest.FixtureRequest, origin: str, statement: str
) -> None:
    make: Make = request.getfixturevalue(origin)
    module = make(statement)
    found = failed(module.go)
    assert found.culprit is Culprit.PLUGIN
    name = Path(module.go.__code__.co_filename).name
    assert f" in {name}, line 5" in found.reason
    assert found.reason.endswith(".") and not found.reason.endswith(": .")


LINF = "from bench.plugin import Fraction, Linf; ball = Linf(Fraction(1, 10)); "
X = "torch.zeros(3, 1, 2, 2)"
WRONG_VALUES = (
    f"{LINF}ball.project(torch.zeros(2, 1, 2, 2), {X})",
    f"{LINF}ball.project(None, {X})",
    f"{LINF}ball.distance({X}, [0.5])",
    f"from bench.plugin import margin; margin({X}, torch.zeros(3))",
    "from bench.plugin import cross_entropy as ce; ce(torch.zeros(3, 4), torch.zeros(2).long())",
    "from bench.plugin import example_key; example_key('0', 3, 'x', None)",
)


@pytest.mark.parametrize("origin", ["submitted", "installed"])
@pytest.mark.parametrize("statement", WRONG_VALUES)
def test_a_value_that_the_contract_cannot_use_is_the_fault_of_the_plugin(
    request: pytest.FixtureRequest, origin: str, statement: str
) -> None:
    make: Make = request.getfixturevalue(origin)
    module = make(statement)
    found = failed(module.go)
    assert found.culprit is Culprit.PLUGIN
    assert f" in {Path(module.go.__code__.co_filename).name}, line 5" in found.reason


def test_an_error_deep_in_the_harness_below_a_plugin_is_the_harness_fault(submitted: Make) -> None:
    found = failed(
        submitted("from bench.registry.submission import did_you_mean; did_you_mean(3, ['a'])").go
    )
    assert found.culprit is Culprit.HARNESS


def test_memory_that_torch_cannot_get_is_the_infrastructures_fault(submitted: Make) -> None:
    found = failed(submitted("torch.empty(2**52)").go)
    assert found.culprit is Culprit.INFRASTRUCTURE


@pytest.mark.parametrize("origin", ["submitted", "installed"])
def test_memory_that_ran_out_is_the_infrastructures_fault(
    request: pytest.FixtureRequest, origin: str
) -> None:
    make: Make = request.getfixturevalue(origin)
    found = failed(make("bytearray(2**62)").go)
    assert found.culprit is Culprit.INFRASTRUCTURE
    assert "memory ran out" in found.reason


def test_memory_that_ran_out_inside_torch_is_the_infrastructures_fault(submitted: Make) -> None:
    library: dict[str, Callable[[], object]] = {}
    content = "import torch\ndef full():\n    raise torch.OutOfMemoryError('CUDA out of memory')\n"
    exec(compile(content, str(Path(torch.__file__).parent / "planted.py"), "exec"), library)
    module = submitted("full()")
    vars(module)["full"] = library["full"]
    assert failed(module.go).culprit is Culprit.INFRASTRUCTURE


def test_an_error_of_the_harness_for_its_user_keeps_its_sentence() -> None:
    def missing() -> None:
        raise UnavailableError("there is no database")

    code = missing.__code__.replace(co_filename=str(failures.HARNESS_FOLDER / "store" / "store.py"))
    missing.__code__ = code
    assert failed(missing) == Failure(Culprit.USER, "there is no database.")


def test_an_error_inside_the_harness_is_its_fault() -> None:
    assert failed(lambda: did_you_mean(3, ["a"])).culprit is Culprit.HARNESS  # type: ignore[arg-type]


def test_an_error_inside_a_library_is_its_callers_fault() -> None:
    assert failed(lambda: json.loads("{")).reason.startswith("JSONDecodeError in test_failures.py")
