"""Plugins planted by tests: source text in, a registry out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pluggy

from bench import hooks
from bench.registry import Plugin, Registry
from bench.source import executed

HEAD = """
from bench.plugin import *
from dataclasses import dataclass
import torch
from torch import nn
"""

ATTACK = '''
class Nudge:
    """One step along the gradient."""

    name = "{name}"
    needs = Access.GRADIENTS
    steps = 1

    def start(self, problem):
        return problem.x.clone()

    def step(self, problem, adv):
        return adv


@hookimpl
def bench_attacks():
    yield Nudge()
'''

CARD = """
schema = 1
kind = "{kind}"
name = "{name}"
title = "An entry"
authors = ["Somebody"]
licence = "MIT"
"""


def module(folder: Path, name: str, text: str, origin: str = "entry-point") -> Plugin:
    """A plugin module from source text, named so that sentences can quote it."""
    path = folder / f"{name}.py"
    path.write_text(HEAD + text)
    made = executed(path.read_bytes(), path)
    made.__name__ = name
    return Plugin(made, origin, "0" * 64)


def registry(folder: Path, sources: Mapping[str, str]) -> Registry:
    """A registry that holds these plugins and no others."""
    filled = Registry(manager=pluggy.PluginManager("bench"))
    filled.manager.add_hookspecs(hooks)
    filled.admit([module(folder, name, text) for name, text in sources.items()])
    return filled


def entry(folder: Path, name: str, text: str, kind: str = "attack", card: str = "") -> Path:
    """A submission's folder."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "card.toml").write_text(CARD.format(kind=kind, name=name) + card)
    (place / "plugin.py").write_text(HEAD + text)
    return place
