"""Helpers of the diagnostics: a seeded random state, logits, and gradients of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Evidence, Finding, Subject

COSTLY_FORWARDS = 20
"""Above so many passes of the network per query a diagnostic makes fewer queries."""
ATTACK_ROWS = 128
"""Rows of a full batch of an attack; a model may answer otherwise in batches of this size."""


@contextmanager
def seeded_random_state(x: Tensor, seed: int = 0) -> Iterator[None]:
    """Seed torch's random state on the device of x [n, C, H, W], and restore it afterwards."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        yield


def input_gradient(module: nn.Module, x: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient [n, C, H, W] of value(logits) [n] at x; zero where there is no graph to x."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        total = value(module(leaf)).sum()
        if not total.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def repeated(rows: Tensor, size: int) -> Tensor:
    """`size` rows: those of a tensor [n, ...], n >= 1, again and again."""
    return rows[torch.arange(size, device=rows.device) % len(rows)]


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """Logits [n, K] of a copy of x [n, C, H, W], without a graph."""
    with torch.no_grad():
        logits: Tensor = module(x.clone())
    return logits


def seeded_logits(module: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    """Logits [n, K] of x [n, C, H, W], drawn from a torch generator with this seed."""
    with seeded_random_state(x, seed):
        return logits_of(module, x)


def relative_change(a: Tensor, b: Tensor) -> float:
    """The largest |a - b| over the largest |b|, for logits [n, K].

    Infinite where one is not finite.
    """
    scale = b.abs().max().clamp_min(torch.finfo(b.dtype).tiny)
    value = float((a - b).abs().max() / scale)
    return value if value == value else float("inf")


def random_signs(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs [n, C, H, W], -1 or 1, drawn on the CPU."""
    return (2 * torch.randint(0, 2, x.shape, generator=generator) - 1).to(x)


def uniform_noise(x: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Images x [n, C, H, W] with uniform noise up to a size, which lie off the 8-bit grid."""
    noise = (2 * torch.rand(x.shape, generator=generator) - 1).to(x)
    return (x + size * noise).clamp(0, 1)


def draws_of(defense: Defense) -> int:
    """Draws over which an attacker averages a gradient; 1 for a deterministic defense."""
    return 1 if defense.randomness is None else defense.randomness.draws


def rounding(logits: Tensor) -> Tensor:
    """The size of rounding errors of logits [n, K] in float32, for each image [n]."""
    # Eight units in the last place of the largest logit: sums of a few hundred terms stay below.
    unit: Tensor = 8 * torch.finfo(torch.float32).eps * logits.detach().abs().amax(1)
    return unit.clamp_min(1e-30)


class ModelDiagnostic:
    """A diagnostic that tests nothing where there are no images or logits are not finite."""

    images = 64
    """At most so many images are examined."""

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """The finding for clean images x [n, C, H, W] with labels y [n]."""
        return self.examine_subject(Subject(module, x, y, defense))

    def examine_subject(self, subject: Subject) -> Evidence:
        """The finding for a built defense."""
        limited = subject._replace(x=subject.x[: self.images], y=subject.y[: self.images])
        if not len(limited.x):
            return Evidence(Finding.NOT_TESTED, "There are no images.")
        with seeded_random_state(limited.x):
            finite = torch.isfinite(seeded_logits(limited.module, limited.x)).all(1)
            if not finite.all():
                bad = int((~finite).sum())
                sentence = f"Logits are not finite on {bad} of {len(finite)} images."
                return Evidence(Finding.NOT_TESTED, sentence)
            return self.finding(limited)

    def finding(self, subject: Subject) -> Evidence:
        """The finding for a defense with finite logits on at least one image."""
        raise NotImplementedError


def warn_if(raised: bool, sentence: str) -> Evidence:
    """A warning, or a check that passed, with its sentence."""
    return Evidence(Finding.WARNING if raised else Finding.PASSED, sentence)
