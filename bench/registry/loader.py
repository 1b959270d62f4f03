"""Loads plugin modules from source and checks which hooks they implement."""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

from bench.registry import hookspecs
from bench.registry.submission import did_you_mean

PLUGGY_PROJECT = "bench"
"""Project name in pluggy: of `hookimpl`, of the hookspecs and of the entry point group."""


def module_from_source(content: bytes, path: Path) -> ModuleType:
    """Run source bytes as a module, without the import path and without cached byte code.

    An exception of the source is passed on; the module is then removed from `sys.modules`.
    """
    name = f"bench_entry_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def why_no_plugin(module: ModuleType) -> str:
    """Why a module is not a plugin, as the end of a sentence; empty where it is one.

    Judged by the names of its functions and by their `@hookimpl` marks.
    """
    functions: list[tuple[str, FunctionType]] = inspect.getmembers(module, inspect.isfunction)
    marked = {name: f for name, f in functions if hasattr(f, f"{PLUGGY_PROJECT}_impl")}
    known = [
        name for name, spec in vars(hookspecs).items() if hasattr(spec, f"{PLUGGY_PROJECT}_spec")
    ]
    for name, function in marked.items():
        options = getattr(function, f"{PLUGGY_PROJECT}_impl")
        hook = options["specname"] or name
        if hook not in known:
            return f"implements {hook!r}, which is not a hook{did_you_mean(hook, known)}"
        if options["wrapper"] or options["hookwrapper"]:
            return f"wraps {hook}, which could change other plugins; implement it without a wrapper"
    forgotten = [name for name, _ in functions if name in known and name not in marked]
    if forgotten:
        return (
            f"has {forgotten[0]} without @hookimpl above it, so it is never called; add @hookimpl"
        )
    if not marked:
        return "has no function marked @hookimpl, so it registers nothing"
    return ""


def plugin_modules(package: ModuleType) -> Iterator[str]:
    """Names of the plugin modules in a package; names that begin with an underscore are skipped."""
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if info.name.rpartition(".")[2].startswith("_"):
            continue
        if info.ispkg:
            yield from plugin_modules(import_module(info.name))
        else:
            yield info.name
