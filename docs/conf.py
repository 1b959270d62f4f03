"""Sphinx configuration: `python -m sphinx -W -n docs site` builds the documentation.

Two pages of the reference are written at build time: the one of `bench.plugin` from its docstrings,
the one of the command line from the Typer application.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "Gauntlet"
author = "the authors of Gauntlet"
copyright = author  # noqa: A001  (Sphinx reads this name)
version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "literal"  # docstrings write `name` for code

add_module_names = False  # authors import every name from bench.plugin
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"Gauntlet {version}"
html_copy_source = False
html_show_sphinx = False
# The theme uses the fonts of the system, and nothing is loaded from another host.

SECTIONS = {
    "bench.plugin.attack": "Attacks",
    "bench.plugin.external": "Attacks that run themselves",
    "bench.plugin.losses": "Losses",
    "bench.plugin.defense": "Defenses",
    "bench.plugin.bpda": "Backward-pass approximations",
    "bench.plugin.training": "Training recipes",
    "bench.plugin.dataset": "Data sets",
    "bench.threats.threat_model": "Threat models",
    "bench.threats.access": "Access and budget",
    "bench.threats.norms": "Perturbation sets",
    "bench.plugin.certifier": "Certifiers",
    "bench.plugin.diagnostic": "Diagnostics",
    "bench.threats.random_numbers": "Random numbers",
}
"""The order of the reference; names that are defined elsewhere follow under "Other names"."""


def defining_module(surface: Any, name: str) -> str:
    """The module that defines a public name of `bench.plugin`, by the imports of its source."""
    for node in ast.parse(inspect.getsource(surface)).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return str(node.module)
    return str(surface.__name__)


def plugin_reference() -> str:
    """The page of `bench.plugin`: one section per module that defines public names."""
    surface = importlib.import_module("bench.plugin")
    homes: dict[str, list[str]] = {module: [] for module in SECTIONS}
    for name in surface.__all__:
        homes.setdefault(defining_module(surface, name), []).append(name)
    known = [(SECTIONS[module], module, homes[module]) for module in SECTIONS]
    rest = [("Other names", m, names) for m, names in homes.items() if m not in SECTIONS]
    lines: list[str] = []
    for title, module, names in known + rest:
        if names and (not lines or f"## {title}" not in lines):
            lines += ["", f"## {title}", ""]
        for name in sorted(names, key=lambda name: (name.isupper() and len(name) > 2, name)):
            lines += ["```{eval-rst}", *directive(surface, module, name), "```", ""]
    return "\n".join(lines)


def directive(surface: Any, module: str, name: str) -> Iterator[str]:
    """The autodoc directive of one public name."""
    value = getattr(surface, name)
    if inspect.isclass(value):
        yield f".. autoclass:: {module}.{name}"
        yield "   :members:"
        yield "   :exclude-members: __init__, __new__"
    elif inspect.isfunction(value):
        yield f".. autofunction:: {module}.{name}"
    else:
        yield f".. autodata:: {module}.{name}"
        yield "   :no-value:"


def command_reference() -> str:
    """The page of the command line, as Typer documents the application."""
    import typer
    from typer.cli import get_docs_for_click

    from bench.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="bench")
    return text.split("\n", 1)[1]


GENERATED = {"reference/plugin": plugin_reference, "reference/cli": command_reference}


def insert_generated(app: Any, page: str, source: list[str]) -> None:
    """Append the generated part of a reference page to its introduction."""
    if page in GENERATED:
        source[0] += GENERATED[page]()


def restructure(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn the Markdown of a docstring into reStructuredText.

    Backticks are code by `default_role`; outside of them `*`, `|` and a trailing `_` are text. An
    indented paragraph is a code block.
    """
    told, lines[:] = lines[:], []
    in_code = False
    for line in told:
        indented = line.startswith("    ")
        if indented and not in_code and lines and not lines[-1].strip():
            lines += ["::", ""]
            in_code = True
        in_code = in_code and (indented or not line.strip())
        lines.append(line if in_code else escaped(line))


def escaped(line: str) -> str:
    """A line of text whose marks outside of backticks are plain characters."""
    bullet = re.match(r"\s*[*-] |", line)
    start = bullet.end() if bullet else 0
    parts = line[start:].split("`")
    parts[::2] = [re.sub(r"([*|]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    return line[:start] + "`".join(parts)


def without_protocol(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leave out the signature of a Protocol, which is never called."""
    return ("", "") if getattr(obj, "_is_protocol", False) else None


def setup(app: Any) -> None:
    """Register the handlers."""
    app.connect("autodoc-process-signature", without_protocol)
    app.connect("source-read", insert_generated)
    app.connect("autodoc-process-docstring", restructure)
