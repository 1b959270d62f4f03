"""Diagnostics of hidden state: earlier queries, gradient mode, and the process do not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl
from plugins.diagnostics._model_probe import (
    COSTLY_FORWARDS,
    ModelDiagnostic,
    input_gradient,
    random_signs,
    relative_change,
    seeded_logits,
    seeded_random_state,
    warn_if,
)

TOLERANCE = 1e-4
"""In units of the largest logit."""
CALLS = 300
"""Queries between the two that are compared; every second one computes a gradient."""
FEW_CALLS = 30
"""The same for defenses that take many passes of a network per query."""
SIZE = 8 / 255
FRESH_IMAGES = 32


class Stateless(ModelDiagnostic):
    """Whether many queries, with and without gradients, leave the logits as they were."""

    name = "stateless"
    summary = f"Raised when logits change after {CALLS} queries."
    images = 32

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the change of the logits of the first images."""
        calls = FEW_CALLS if subject.defense.forwards > COSTLY_FORWARDS else CALLS
        before = seeded_logits(subject.module, subject.x)
        query(subject.module, subject.x, calls)
        moved = relative_change(seeded_logits(subject.module, subject.x), before)
        sentence = (
            f"after {calls} queries, half of them with a gradient, logits change by {moved:.2g} of"
            " the largest logit"
        )
        return warn_if(moved > TOLERANCE, f"{sentence}.")


def query(module: nn.Module, x: Tensor, calls: int) -> None:
    """Query single images of x [n, C, H, W] and images beside them, as attacks do."""
    generator = torch.Generator().manual_seed(0)
    for call in range(calls):
        row = x[call % len(x)][None]
        moved = (row + SIZE * random_signs(row, generator)).clamp(0, 1)
        if call % 2:
            input_gradient(module, moved, lambda logits: logits.logsumexp(1))
        else:
            with torch.no_grad():
                module(moved)


class GradientMode(ModelDiagnostic):
    """Whether logits are the same with a gradient, without one, and in inference mode."""

    name = "gradient-mode"
    summary = "Raised when logits or train flags depend on whether gradients are computed."
    images = 32

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the largest change between the modes."""
        module, x = subject.module, subject.x
        flags = train_flags(module)
        plain = seeded_logits(module, x)
        switched = False
        changes = {}
        for mode, evaluate in MODES.items():
            logits = evaluate(module, x)
            switched |= flags != train_flags(module)
            if logits is not None:
                changes[mode] = relative_change(logits, plain)
        where, moved = max(changes.items(), key=lambda item: item[1])
        sentence = (
            f"{', '.join(changes)}, logits change by at most {moved:.2g} of the largest logit"
            f" ({where}); train flags {'change' if switched else 'stay'}"
        )
        return warn_if(moved > TOLERANCE or switched, f"{sentence}.")


def logits_with_gradient(module: nn.Module, x: Tensor) -> Tensor:
    """Logits [n, K] of x [n, C, H, W] as a leaf that requires a gradient, which is computed."""
    with seeded_random_state(x), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits: Tensor = module(leaf)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    return logits.detach()


def logits_with_grad_mode(module: nn.Module, x: Tensor) -> Tensor:
    """Logits [n, K] of x [n, C, H, W], which requires no gradient, with gradients enabled."""
    with seeded_random_state(x), torch.enable_grad():
        logits: Tensor = module(x.clone())
    return logits.detach()


def logits_in_inference_mode(module: nn.Module, x: Tensor) -> Tensor | None:
    """Logits [n, K] of x [n, C, H, W]; None for a module that itself computes gradients."""
    try:
        with seeded_random_state(x), torch.inference_mode():
            logits: Tensor = module(x.clone())
    except RuntimeError:
        return None
    return logits.clone()


MODES: Mapping[str, Callable[[nn.Module, Tensor], Tensor | None]] = {
    "with a gradient": logits_with_gradient,
    "with gradients enabled": logits_with_grad_mode,
    "in inference mode": logits_in_inference_mode,
}


def train_flags(module: nn.Module) -> list[bool]:
    """The train flags of a module and of all its parts."""
    return [part.training for part in module.modules()]


class FreshProcess(ModelDiagnostic):
    """Whether the defense gives the same logits when it is built in another process."""

    name = "fresh-process"
    summary = "Raised when another process, with another clock and hash seed, gives other logits."
    images = FRESH_IMAGES

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the largest change."""
        if subject.fresh_process is None:
            return Evidence(Finding.NOT_TESTED, "It cannot be built in another process.")
        here = seeded_logits(subject.module, subject.x)
        there = subject.fresh_process(subject.x)
        if isinstance(there, str):
            return Evidence(Finding.NOT_TESTED, f"It was not built in another process: {there}.")
        if there.shape != here.shape:
            shapes = f"{list(there.shape)} there and {list(here.shape)} here"
            return Evidence(Finding.WARNING, f"logits are {shapes}.")
        moved = relative_change(there.to(here), here)
        sentence = f"in another process logits change by {moved:.2g} of the largest logit"
        return warn_if(moved > TOLERANCE, f"{sentence}.")


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the three diagnostics."""
    yield Stateless()
    yield GradientMode()
    yield FreshProcess()
