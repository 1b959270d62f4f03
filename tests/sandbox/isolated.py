"""Entries that lie in a folder, and the registry that holds them behind walls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import psutil

from bench.registry.registry import Registry
from bench.sandbox import process
from bench.sandbox.adapter import isolate_submissions

CARD = """
schema = 1
kind = "{kind}"
name = "{name}"
title = "{name}"
authors = ["Somebody"]
licence = "MIT"
weights = "{weights}"
"""

PLAIN = '''
"""A network of one layer, whose weights come from nowhere."""

import torch
from torch import nn

from bench.plugin import Defense, hookimpl


class Net(nn.Module):
    def __init__(self, loader):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images):
        return self.layer(images.flatten(1))


def build(loader):
    return Net(loader)


@hookimpl
def bench_defenses():
    yield Defense(name="{name}", build=build)
'''


def entry(folder: Path, source: str, name: str = "mine", kind: str = "defense") -> Path:
    """An entry's folder with this source."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "card.toml").write_text(CARD.format(kind=kind, name=name, weights=""))
    (place / "plugin.py").write_text(dedent(source).replace("{name}", name))
    return place


def locked(folder: Path) -> Registry:
    """The registry of everything built in and of these entries, their code behind walls."""
    registry = Registry.load(folder)
    isolate_submissions(registry)
    return registry


def opened(folder: Path) -> Registry:
    """The same, their code in this process."""
    return Registry.load(folder, allow_unsandboxed=True)


def workers() -> Iterator[psutil.Process]:
    """All processes of workers below this one, but the spare's."""
    spare = process.SPARE.next
    waiting = spare.guardian.process.pid if spare is not None else 0
    for child in psutil.Process().children():
        if child.pid != waiting and child.name() == "bwrap":
            yield child
            yield from child.children(recursive=True)


def none_left(seconds: float = 5.0) -> bool:
    """Whether every worker has gone, soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(process.is_running() for process in workers()):
            return True
        time.sleep(0.05)
    return False
