"""Writes submissions, and loads the registry with their code sandboxed or in this process."""

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
authors = ["A. Author"]
licence = "MIT"
weights = "{weights}"
"""

PLAIN = '''
"""An untrained network of one layer."""

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


def write_submission(folder: Path, source: str, name: str = "mine", kind: str = "defense") -> Path:
    """Write a submission with this source; its folder."""
    submission = folder / name
    submission.mkdir(parents=True)
    (submission / "card.toml").write_text(CARD.format(kind=kind, name=name, weights=""))
    (submission / "plugin.py").write_text(dedent(source).replace("{name}", name))
    return submission


def sandboxed(folder: Path) -> Registry:
    """The registry of all built-in plugins and of these submissions, sandboxed."""
    registry = Registry.load(folder)
    isolate_submissions(registry)
    return registry


def unsandboxed(folder: Path) -> Registry:
    """The same registry, with the submissions in this process."""
    return Registry.load(folder, allow_unsandboxed=True)


def worker_processes() -> Iterator[psutil.Process]:
    """The worker processes of this process and their children, without the spare one."""
    spare = process.SPARE_PROCESS.next
    spare_pid = spare.monitor.process.pid if spare is not None else 0
    for child in psutil.Process().children():
        if child.pid != spare_pid and child.name() == "bwrap":
            yield child
            yield from child.children(recursive=True)


def no_process_left(seconds: float = 5.0) -> bool:
    """Whether every worker process ends within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(process.is_running() for process in worker_processes()):
            return True
        time.sleep(0.05)
    return False
