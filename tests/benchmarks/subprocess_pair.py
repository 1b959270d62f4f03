"""One target, measured in a process of its own, ours and the peer's turns in the same one.

The allocator learns from what a process has played, so a figure would hang on what was asked for
before it.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from rich.console import Console

from bench.core.errors import UnavailableError
from bench.engine.fast_forms import has_bfloat16
from tests.benchmarks import strength, targets
from tests.benchmarks.row import Row, Scale, Target

OUT = Console(width=200)


def chosen(names: list[str], device: str, strong: bool) -> list[Target]:
    """The targets of these names; KeyError where a name fits none."""
    return strength.chosen(names) if strong else targets.chosen(names, device)


def apart(name: str, scale: Scale, strong: bool) -> Row:
    """Measure the target of this name; UnavailableError where it cannot be measured here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(single, name, scale, strong).result()


def single(name: str, scale: Scale, strong: bool) -> Row:
    """The same in this process; say what came of it."""
    torch.set_num_threads(1)
    (target,) = chosen([name], scale.device, strong)
    if target.bfloat16 and not has_bfloat16(torch.device(scale.device)):
        raise UnavailableError("This device has no bfloat16 instructions.")
    since = time.monotonic()
    row = target.measure(target, scale)
    figure = f"{row.ratio:.2f} (bar {target.bar})"
    told = f"{target.key}: {figure}, {'holds' if row.holds else 'does not hold'}"
    OUT.print(f"{told}, {time.monotonic() - since:.0f} s. {row.note}")
    return row
