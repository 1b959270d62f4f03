"""A plugin's source: run from exact bytes, judged by its functions' names and marks."""

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
"""Name of the plugin mark, of the hookspecs and of the entry point group."""


def module_from_source(content: bytes, path: Path) -> ModuleType:
    """A module from source bytes: no import path, no byte code that somebody left beside it."""
    name = f"bench_entry_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def why_no_plugin(module: ModuleType) -> str:
    """Why a module is no plugin, judged by its functions' names and marks; empty when it is."""
    functions: list[tuple[str, FunctionType]] = inspect.getmembers(module, inspect.isfunction)
    marked = {name: f for name, f in functions if hasattr(f, f"{PLUGGY_PROJECT}_impl")}
    known = [
        name for name, spec in vars(hookspecs).items() if hasattr(spec, f"{PLUGGY_PROJECT}_spec")
    ]
    for name, function in marked.items():
        options = getattr(function, f"{PLUGGY_PROJECT}_impl")
        hook = options["specname"] or name
        if hook not in known:
            return f"answers {hook!r}, which no hook asks{did_you_mean(hook, known)}"
        if options["wrapper"] or options["hookwrapper"]:
            return f"wraps {hook}, and could change what others offer; offer only your own"
    forgotten = [name for name, _ in functions if name in known and name not in marked]
    if forgotten:
        return f"has {forgotten[0]} without @hookimpl above it, so it is not asked; mark it"
    if not marked:
        return "has no function marked @hookimpl, so it offers nothing"
    return ""


def plugin_modules(package: ModuleType) -> Iterator[str]:
    """Names of the modules in a package; an underscore in front says: no plugin."""
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if info.name.rpartition(".")[2].startswith("_"):
            continue
        if info.ispkg:
            yield from plugin_modules(import_module(info.name))
        else:
            yield info.name
