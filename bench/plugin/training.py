"""Contract of a training recipe: its batches, inner attacks and hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from bench.threats.norms import PerturbationSet


class TrainingBatch(NamedTuple):
    """One training batch, the argument of a recipe's loss."""

    model: nn.Module
    x: Tensor
    """[n, C, H, W]: clean images, after augmentation."""
    y: Tensor
    """[n] int64: labels."""
    adv: Tensor
    """[n, C, H, W]: the inner attack's result on x, detached; x itself without an inner attack."""
    teacher: nn.Module | None = None
    """The built defense that `Recipe.teacher` names, frozen; None without one."""
    transferred: Tensor | None = None
    """[n, C, H, W]: the result on x of `Recipe.transfer` against the teacher, detached."""


@dataclass(frozen=True)
class InnerAttack:
    """A registered attack that is run inside training."""

    attack: str
    """Its name."""
    ball: PerturbationSet
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the attack to change, as `{"steps": 7}`."""


@dataclass(frozen=True)
class FreeTraining:
    """Free adversarial training (arXiv:1904.12843) in place of an inner attack.

    Each batch is used `replays` times in a row. One backward pass gives the gradients of weights
    and images; both are updated, and the perturbation is kept for the next batch.
    """

    ball: PerturbationSet
    replays: int = 8
    rate: float = 1.0
    """Step length, in radii of the ball."""


@dataclass(frozen=True)
class Recipe:
    """How the weights of a defense are trained."""

    model: Callable[[tuple[int, int, int], int], nn.Module]
    """((C, H, W), classes) -> a new module, initialised with torch's seeded generator."""
    loss: Callable[[TrainingBatch], Tensor] | None = None
    """A scalar or [n]; None where nothing is trained by gradient (`epochs=0`)."""
    inner: InnerAttack | FreeTraining | None = None
    epochs: int = 30
    """Passes over the training half; 0 with `fit` alone."""
    batch: int = 64
    rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    optimiser: str = "adam"
    """`adam` or `sgd` (momentum 0.9)."""
    schedule: str = "constant"
    """`constant`, `cosine`, `cyclic` (up, then down to zero; arXiv:2001.03994) or `steps` (a tenth
    of the rate after half of the training, a hundredth after three quarters; arXiv:1706.06083)."""
    augment: Callable[[Tensor], Tensor] | None = None
    """Images [n, C, H, W] -> the same shape, in [0, 1]; applied before any attack."""
    teacher: str = ""
    """Name of another defense with a recipe, which is trained first; `TrainingBatch.teacher`."""
    transfer: InnerAttack | None = None
    """An attack on the teacher, for `TrainingBatch.transferred`."""
    fit: Callable[[TrainingBatch], None] | None = None
    """Called once after the last epoch with up to 2,048 training images, the model in eval mode.

    Sets buffers of the model in place that are not trained by gradient."""
    monitor: InnerAttack | None = None
    """A monitoring attack on 256 training images after each epoch. Where robust accuracy falls
    more than 20 points below its best, training stops (catastrophic overfitting, arXiv:2001.03994)
    and the weights of the best epoch are kept."""
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters of the loss, which the digest must contain."""
