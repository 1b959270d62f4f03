"""Builds a defense for its checks and queries it on a few test images."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from bench.contract.fixtures import RandomState
from bench.core.batches import default_batch
from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, UnavailableError
from bench.core.isolation import Isolation
from bench.data import datasets
from bench.engine import answers, model_access
from bench.engine.plugin_calls import plugin_error
from bench.plugin import Dataset, Defense
from bench.registry.registry import Registry
from bench.sandbox.defense_proxy import DefenseProxy
from bench.training.defense_builder import DefenseBuilder


@dataclass(frozen=True)
class DefenseFixture:
    """A defense, with test images of the first of its data sets that can be read."""

    registry: Registry
    defense: Defense

    @property
    def full_batch(self) -> int:
        """As many images as a run queries at once."""
        return default_batch(self.dataset.shape)

    @cached_property
    def dataset(self) -> Dataset:
        """The first of the defense's data sets that can be read.

        Raises UnavailableError where none can be read.
        """
        missing = []
        for name in self.defense.datasets:
            found: Dataset = self.registry.find("dataset", name).value
            try:
                datasets.load_dataset(found)
            except UnavailableError as error:
                missing.append(str(error))
            else:
                return found
        raise UnavailableError(f"none of its data sets can be read here: {' '.join(missing)}")

    @property
    def examples(self) -> tuple[Tensor, Tensor]:
        """Images [n, C, H, W] and labels [n]: 256, or 64 where images are larger than 28 x 28.

        They are made anew each time, because the defense may have written into the last ones.
        """
        n = 256 if np.prod(self.dataset.shape) <= 28 * 28 else 64
        examples = datasets.first_examples(self.dataset, min(n, self.dataset.test_size))
        return examples.tensor(), torch.from_numpy(examples.labels.copy())

    @property
    def x(self) -> Tensor:
        """The first 32 of these images, [32, C, H, W], or all where there are fewer."""
        return self.examples[0][:32].clone()

    @property
    def is_random(self) -> bool:
        """Whether the defense declares randomness."""
        return self.defense.randomness is not None

    @property
    def loader(self) -> DefenseBuilder:
        """A new loader for a new build of the defense."""
        return DefenseBuilder(self.registry, self.defense.name, self.dataset)

    @property
    def is_built_in(self) -> bool:
        """Whether the defense is built in."""
        return self.registry.find("defense", self.defense.name).origin == "built-in"

    @property
    def rejects(self) -> bool:
        """Whether the last column of its logits is a rejection score."""
        return self.defense.rejects is not None

    def build(self) -> nn.Module:
        """A new build of the defense; in the sandbox one build for all checks, to save time."""
        return self.sandboxed_module or self.loader.build()

    @cached_property
    def sandboxed_module(self) -> DefenseProxy | None:
        """The defense in its sandbox worker; None where its code runs in this process."""
        if self.registry.find("defense", self.defense.name).isolation is not Isolation.SANDBOXED:
            return None
        module = self.loader.build()
        return module if isinstance(module, DefenseProxy) else None

    def logits(self, module: nn.Module) -> Tensor:
        """Logits [32, K] of the images `x`, as `logits_of`."""
        return logits_of(module, self.x)

    def accuracy(self, module: nn.Module, images: Tensor, labels: Tensor) -> float:
        """Share of images [n, C, H, W] whose predicted label is that of `labels` [n]."""
        return float((self.labels(module, images) == labels).double().mean())

    def labels(self, module: nn.Module, images: Tensor) -> Tensor:
        """Predicted labels [n] of images [n, C, H, W]; REJECTED where an image is rejected."""
        return answers.predicted_labels(logits_of(module, images), rejects=self.rejects)


def logits_of(module: nn.Module, images: Tensor, seed: int = 0) -> Tensor:
    """Logits [n, K] of images [n, C, H, W] without a graph, as `seeded_logits`."""
    with torch.no_grad():
        return seeded_logits(module, images, seed).detach()


def seeded_logits(module: nn.Module, images: Tensor, seed: int) -> Tensor:
    """Logits [n, K] of images [n, C, H, W]; global generators seeded and restored.

    Raises PluginError where the module fails or returns anything but logits of these rows.
    """
    before = RandomState.snapshot()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        logits = module(images)
    except (BenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except PLUGIN_EXCEPTIONS as error:
        raise plugin_error("the defense", error) from error
    finally:
        before.restore()
    return answers.checked_logits(logits, len(images))


def gradient_of_weighted(module: nn.Module, images: Tensor, weight: Tensor) -> Tensor:
    """Gradient [n, C, H, W] of <weight, logits>, weight [n, K]; zero where there is no graph."""
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        return model_access.input_gradient((seeded_logits(module, leaf, 0) * weight).sum(), leaf)


def same_logits(one: Tensor, two: Tensor) -> bool:
    """Whether two logits [n, K] are equal to the bit; NaN is equal to NaN."""
    return one.shape == two.shape and not _differ(one, two).any()


def relative_difference(one: Tensor, two: Tensor) -> float:
    """Largest difference of two logits [n, K], as a share of the largest finite logit.

    Infinite where a logit is not finite in one and another value in the other.
    """
    differ = _differ(one, two)
    if not differ.any():
        return 0.0
    far = (one - two)[differ].abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()
    finite = one[one.isfinite()].abs()
    scale = finite.max() if len(finite) else one.new_ones(())
    return float(far / scale.clamp_min(1e-12))


def _differ(one: Tensor, two: Tensor) -> Tensor:
    """Which logits [n, K] differ in any bit."""
    return ~((one == two) | (one.isnan() & two.isnan()))


def logit_weights(logits: Tensor) -> Tensor:
    """Fixed random weights [n, K] for logits [n, K], so that every class counts."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(logits.shape, generator=generator)
