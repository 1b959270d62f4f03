"""What a defense computes for one answer: passes of its network, and gradients of its own.

A defense that optimises while it answers (arXiv:2202.13711) shows in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bench.plugin import AnswerWork

NO_TASK = -1
"""Number of the backward pass that torch gives outside one."""


def work_of_answer(module: nn.Module, images: Tensor) -> AnswerWork:
    """The work of one answer to images [n, C, H, W] without a gradient; the answer is dropped.

    Passes are the calls of the module with parameters that is called least, so that a layer that
    a recurrent network repeats is no pass. Backward passes are known by what they read, however
    they are started; those of `torch.func`, which forbids to watch them, count as one.
    """
    backward: set[int] = set()

    def noted(kept: Tensor) -> Tensor:
        task = torch._C._current_graph_task_id()
        if task != NO_TASK:
            backward.add(task)
        return kept

    with torch.no_grad(), counted_calls(module) as calls:
        try:
            with saved_tensors_hooks(Tensor.detach, noted):
                module(images.clone())
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            backward.add(NO_TASK)
            calls.clear()
            module(images.clone())
    return AnswerWork(min(calls.values(), default=0), len(backward))


@contextmanager
def counted_calls(module: nn.Module) -> Iterator[Counter[nn.Module]]:
    """Counts the calls of each part of a module that has parameters of its own."""
    calls: Counter[nn.Module] = Counter()

    def count(part: nn.Module, _: tuple[Any, ...]) -> None:
        calls[part] += 1

    own = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    hooks = [part.register_forward_pre_hook(count) for part in own]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
