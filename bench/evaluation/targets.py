"""Functions that choose the target class of each example under a targeted goal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.threats.random_numbers import KeyedRandomNumbers, example_key
from bench.threats.threat_model import ThreatModel


def why_no_target(threat: ThreatModel, classes: int) -> str:
    """Why a targeted threat model has no class to aim at; empty where it has, or has no target."""
    if threat.goal.kind != "targeted" or classes >= 2:
        return ""
    count = f"{classes} class" if classes == 1 else f"{classes} classes"
    return (
        f"the goal of {threat.name} is targeted and needs two classes; {threat.dataset} has "
        f"{count}: choose a data set with more, or an untargeted threat model."
    )


def target_classes(
    threat: ThreatModel, y: Tensor, clean_logits: Tensor, classes: int, seed: int
) -> Tensor:
    """The target class of each item, [n], or [n * (K - 1)] for the rule `all`.

    Args:
        threat: a targeted threat model.
        y: [n] labels.
        clean_logits: [n, K].
        classes: K.
        seed: of random targets.

    Raises:
        BenchError: there is no other class.
    """
    reason = why_no_target(threat, classes)
    if reason:
        raise BenchError(reason)
    return TARGET_FUNCTIONS[threat.goal.rule](y, clean_logits, classes, seed)


def _next(y: Tensor, clean_logits: Tensor, classes: int, seed: int) -> Tensor:
    return (y + 1) % classes


def _least_likely(y: Tensor, clean_logits: Tensor, classes: int, seed: int) -> Tensor:
    own = nn.functional.one_hot(y, classes).bool()
    return clean_logits.masked_fill(own, torch.inf).argmin(1)


def _random(y: Tensor, clean_logits: Tensor, classes: int, seed: int) -> Tensor:
    index = torch.arange(len(y), device=y.device)
    key = example_key(seed, "target", index, torch.zeros_like(index))
    numbers = KeyedRandomNumbers(key, torch.zeros_like(index))
    shift = numbers.integers("shift", classes - 1, (1,))[:, 0]
    return (y + 1 + shift) % classes


def _all(y: Tensor, clean_logits: Tensor, classes: int, seed: int) -> Tensor:
    shift = torch.arange(1, classes, device=y.device)
    return ((y[:, None] + shift) % classes).flatten()


TARGET_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "next": _next,
    "least-likely": _least_likely,
    "random": _random,
    "all": _all,
}
"""Goal rule -> function of (labels [n], clean logits [n, K], number of classes, seed) that gives
the target class of each item: [n], or [n * (K - 1)] for `all`."""
