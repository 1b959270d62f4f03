"""The source digest of an installed plugin depends on its subpackages."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from bench.threats.fingerprint import source_digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed plugin whose network is in a subpackage, which imports a module of its own."""
    net = tmp_path / "example_deep" / "net"
    net.mkdir(parents=True)
    (net.parent / "__init__.py").write_text("")
    (net / "__init__.py").write_text("from .layer import WIDTH\n")
    (net / "layer.py").write_text("WIDTH = 8\n")
    (net / "alone.py").write_text("WIDTH = 8\n")
    return net.parent


def digest(package: Path, statement: str) -> str:
    (package / "main.py").write_text(statement + "\n")
    module = ModuleType("example_deep.main")
    module.__file__ = str(package / "main.py")
    return source_digest(module)


IMPORTS = (
    "import example_deep.net",
    "from example_deep.net import WIDTH",
    "from example_deep import net",
    "from .net import WIDTH",
    "from . import net",
    "from .net.alone import WIDTH",
)


@pytest.mark.parametrize("statement", IMPORTS)
@pytest.mark.parametrize("file", ["__init__.py", "layer.py"])
def test_the_digest_depends_on_an_imported_subpackage(
    package: Path, statement: str, file: str
) -> None:
    before = digest(package, statement)
    changed = package / "net" / file
    changed.write_text(changed.read_text() + "WIDTH = 9\n")
    assert digest(package, statement) != before


def test_the_digest_does_not_depend_on_modules_that_are_not_imported(package: Path) -> None:
    before = digest(package, "from .net import WIDTH")
    (package / "net" / "alone.py").write_text("WIDTH = 9\n")
    assert digest(package, "from .net import WIDTH") == before


def test_the_digest_of_a_plugin_package_depends_on_its_modules(package: Path) -> None:
    (package / "__init__.py").write_text("from .net import WIDTH\n")
    module = ModuleType("example_deep")
    module.__file__ = str(package / "__init__.py")
    before = source_digest(module)
    (package / "net" / "layer.py").write_text("WIDTH = 9\n")
    assert source_digest(module) != before


def test_the_digest_does_not_depend_on_an_init_file_without_code(package: Path) -> None:
    before = digest(package, "from .net.alone import WIDTH")
    (package / "__init__.py").write_text('"""A docstring."""\n')
    assert digest(package, "from .net.alone import WIDTH") == before
    (package / "__init__.py").write_text("import torch\n")
    assert digest(package, "from .net.alone import WIDTH") != before
