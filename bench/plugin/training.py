"""What a recipe is made of: lessons, the attacks inside training, and the numbers of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from bench.threats.norms import PerturbationSet


class TrainingBatch(NamedTuple):
    """One batch of training, as a recipe's loss sees it."""

    model: nn.Module
    x: Tensor
    y: Tensor
    adv: Tensor
    """What the inner attack made of x; x itself without one. Detached, inside ball and box."""
    teacher: nn.Module | None = None
    """The defense that the recipe learns from, frozen; None where it names none."""
    transferred: Tensor | None = None
    """What `Recipe.transfer` made of x against the teacher; detached, inside ball and box."""


@dataclass(frozen=True)
class InnerAttack:
    """An attack inside training, by name, with the fields to change."""

    attack: str
    ball: PerturbationSet
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FreeTraining:
    """Free adversarial training (arXiv:1904.12843) in place of an inner attack.

    Each batch is learned `replays` times in a row. One backward pass gives the gradient of the
    weights and of the images; the perturbation follows it and is carried to the next batch.
    """

    ball: PerturbationSet
    replays: int = 8
    rate: float = 1.0
    """Step length, in radii of the ball."""


@dataclass(frozen=True)
class Recipe:
    """How a defense's weights come about."""

    model: Callable[[tuple[int, int, int], int], nn.Module]
    """(shape, classes) -> a fresh module, its weights drawn from torch's seeded generator."""
    loss: Callable[[TrainingBatch], Tensor] | None = None
    """A scalar or [n]; may be missing where nothing is learned by gradient (`epochs=0`)."""
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
    from half of the training on, a hundredth from three quarters on; arXiv:1706.06083)."""
    augment: Callable[[Tensor], Tensor] | None = None
    """[n, C, H, W] -> the same shape, in [0, 1]; before any attack, with torch's generator."""
    teacher: str = ""
    """Another defense with a recipe of its own, trained first: `TrainingBatch.teacher`."""
    transfer: InnerAttack | None = None
    """An attack on the teacher, for `TrainingBatch.transferred`."""
    fit: Callable[[TrainingBatch], None] | None = None
    """Called once after the last epoch, the model in eval mode, with up to 2,048 training images as
    one lesson: for what is not learned by gradient. It fills buffers of the model in place."""
    monitor: InnerAttack | None = None
    """An attack on 256 training images after each epoch. Where their robust accuracy falls by more
    than 20 points below its best, training stops (catastrophic overfitting, arXiv:2001.03994) and
    the weights of the best epoch are kept."""
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Numbers the loss closes over, so that they are part of the digest."""
