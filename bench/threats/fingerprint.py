"""Digests of plugin objects: their parameters as JSON, and the digest of their source files."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from bench.core.errors import PluginError
from bench.core.hashing import digest


def parameters_of(value: object) -> dict[str, Any]:
    """The parameters of an object as JSON values: its dataclass fields or instance attributes.

    Values of a `cached_property` are left out. The proxy of a sandboxed attack states its
    parameters itself. Raises PluginError where a parameter has no JSON value.
    """
    elsewhere = getattr(type(value), "resolved_elsewhere", None)
    if elsewhere is not None:
        return dict(elsewhere(value))
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value)]
    else:
        kept = getattr(value, "__dict__", {})
        names = sorted(name for name in kept if not _is_cached_property(type(value), name))
    return {name: _plain(getattr(value, name), f"{_name_of(value)}.{name}") for name in names}


def _is_cached_property(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), functools.cached_property)


def _name_of(value: object) -> str:
    return str(getattr(value, "name", type(value).__name__))


def _plain(value: object, where: str) -> Any:
    """A value as JSON, the same in every process."""
    match value:
        case Enum():
            return value.name
        case None | bool() | int() | str():
            return value
        case float():
            return value if np.isfinite(value) else str(value)
        case Fraction() | torch.dtype() | Path():
            return str(value)
        case torch.Tensor():
            return _plain(value.detach().cpu().numpy(), where)
        case np.ndarray():
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": content}
        case Mapping():
            return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case set() | frozenset():
            return sorted(_plain(item, where) for item in value)
        case functools.partial():
            parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
            return _plain(parts, where)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {"type": type(value).__name__, **parameters_of(value)}
        case _ if callable(value) and "<lambda>" not in getattr(value, "__qualname__", "<lambda>"):
            return f"{value.__module__}.{value.__qualname__}"  # type: ignore[attr-defined]
    raise PluginError(
        f"{where} is {short_repr(value)}, which has no digest; use a number, a string, a named "
        "function or a dataclass."
    )


def short_repr(value: object) -> str:
    """A value for a message: its repr, or its type and the beginning of that."""
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:40]}…"


def source_digest(module: ModuleType) -> str:
    """SHA-256 of a module's file, and of the files of its own package that it imports."""
    path = Path(str(module.__file__))
    depth = module.__name__.count(".") + (path.name == "__init__.py")
    files = _imported_files(path, path.parents[depth], set())
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)]
    return hashes[0] if len(hashes) == 1 else digest(hashes)


@functools.cache
def class_source_digest(kind: type) -> str:
    """Source digest of the module that defines a class, computed once a process.

    Raises PluginError where that is not a file, as in an interpreter.
    """
    module = sys.modules.get(kind.__module__)
    if module is None or not str(getattr(module, "__file__", "")).endswith(".py"):
        raise PluginError(
            f"{kind.__qualname__} is defined in {kind.__module__}, which is not a Python file and "
            "has no digest; define it in the plugin's file."
        )
    return source_digest(module)


def _imported_files(path: Path, home: Path, seen: set[Path]) -> set[Path]:
    """The file, and every file of the same top package that it imports, directly or not."""
    seen.add(path)
    for file in _direct_imports(path, home) - seen:
        if file not in seen:
            _imported_files(file, home, seen)
    return seen


def _direct_imports(path: Path, home: Path) -> set[Path]:
    """The files of its top package that a file imports, with the `__init__.py` files above them."""
    top = path.relative_to(home).parts[0]
    places = [place for node in _imports(path.read_bytes()) for place in _places(node, path, home)]
    modules = {place.with_suffix(".py") for place in places}
    packages = {place / "__init__.py" for place in (*places, *path.parents)}
    there = {file for file in modules | packages if file.is_relative_to(home / top)}
    return {file for file in there if file.is_file() and _is_imported_code(file)}


@functools.cache
def _imports(source: bytes) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """The import statements of a source file, also those inside functions."""
    nodes = ast.walk(ast.parse(source))
    return tuple(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def _is_imported_code(file: Path) -> bool:
    """Whether a file is more than an `__init__.py` with a docstring alone."""
    return file.name != "__init__.py" or _has_code(file.read_bytes())


@functools.cache
def _has_code(source: bytes) -> bool:
    body = ast.parse(source).body
    return not all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in body)


def _places(node: ast.Import | ast.ImportFrom, path: Path, home: Path) -> list[Path]:
    """Paths, without suffix, of the modules that an import statement may name."""
    if isinstance(node, ast.Import):
        return [home.joinpath(*alias.name.split(".")) for alias in node.names]
    base = path.parents[node.level - 1] if node.level else home
    package = base.joinpath(*node.module.split(".")) if node.module else base
    return [package, *(package / alias.name for alias in node.names)]
