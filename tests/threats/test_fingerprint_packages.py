"""The digest of an installed plugin covers its subpackages: changed code gets new figures."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from bench.threats.fingerprint import source_digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed plugin whose network lies in a subpackage, which has a part of its own."""
    net = tmp_path / "stranger_deep" / "net"
    net.mkdir(parents=True)
    (net.parent / "__init__.py").write_text("")
    (net / "__init__.py").write_text("from .layer import WIDTH\n")
    (net / "layer.py").write_text("WIDTH = 8\n")
    (net / "alone.py").write_text("WIDTH = 8\n")
    return net.parent


def digest(package: Path, statement: str) -> str:
    (package / "entry.py").write_text(statement + "\n")
    module = ModuleType("stranger_deep.entry")
    module.__file__ = str(package / "entry.py")
    return source_digest(module)


IMPORTS = (
    "import stranger_deep.net",
    "from stranger_deep.net import WIDTH",
    "from stranger_deep import net",
    "from .net import WIDTH",
    "from . import net",
    "from .net.alone import WIDTH",
)


@pytest.mark.parametrize("statement", IMPORTS)
@pytest.mark.parametrize("file", ["__init__.py", "layer.py"])
def test_a_subpackage_belongs_to_the_source(package: Path, statement: str, file: str) -> None:
    before = digest(package, statement)
    changed = package / "net" / file
    changed.write_text(changed.read_text() + "WIDTH = 9\n")
    assert digest(package, statement) != before


def test_what_of_a_subpackage_is_not_imported_is_no_part(package: Path) -> None:
    before = digest(package, "from .net import WIDTH")
    (package / "net" / "alone.py").write_text("WIDTH = 9\n")
    assert digest(package, "from .net import WIDTH") == before


def test_a_package_that_is_the_plugin_itself_covers_its_parts(package: Path) -> None:
    (package / "__init__.py").write_text("from .net import WIDTH\n")
    module = ModuleType("stranger_deep")
    module.__file__ = str(package / "__init__.py")
    before = source_digest(module)
    (package / "net" / "layer.py").write_text("WIDTH = 9\n")
    assert source_digest(module) != before


def test_a_package_that_says_nothing_is_no_part(package: Path) -> None:
    before = digest(package, "from .net.alone import WIDTH")
    (package / "__init__.py").write_text('"""A sentence for readers."""\n')
    assert digest(package, "from .net.alone import WIDTH") == before
    (package / "__init__.py").write_text("import torch\n")
    assert digest(package, "from .net.alone import WIDTH") != before
