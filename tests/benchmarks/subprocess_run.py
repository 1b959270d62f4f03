"""Measures one target in a new process, this project and the peer alternately.

The state of the memory allocator depends on earlier work, so in a shared process a figure would
depend on the targets measured before it.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from rich.console import Console

from bench.core.errors import UnavailableError
from bench.engine.fast_forms import has_bfloat16
from tests.benchmarks import speed_targets, strength_targets
from tests.benchmarks.comparison import Scale, Target, TargetResult

OUT = Console(width=200)


def selected(names: list[str], device: str, strong: bool) -> list[Target]:
    """The targets of these names; KeyError for an unknown name."""
    return strength_targets.selected(names) if strong else speed_targets.selected(names, device)


def in_subprocess(name: str, scale: Scale, strong: bool) -> TargetResult:
    """Measure a target in a new process; UnavailableError where it cannot be measured here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(in_process, name, scale, strong).result()


def in_process(name: str, scale: Scale, strong: bool) -> TargetResult:
    """Measure a target in this process and print its figure; UnavailableError as above."""
    torch.set_num_threads(1)
    (target,) = selected([name], scale.device, strong)
    if target.bfloat16 and not has_bfloat16(torch.device(scale.device)):
        raise UnavailableError("This device has no bfloat16 instructions.")
    since = time.monotonic()
    row = target.measure(target, scale)
    figure = f"{row.ratio:.2f} (threshold {target.threshold})"
    verdict = "holds" if row.holds else "does not hold"
    OUT.print(f"{target.key}: {figure}, {verdict}, {time.monotonic() - since:.0f} s. {row.note}")
    return row
