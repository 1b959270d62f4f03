"""A built defense under examination: its images, and the questions that laws put to it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from bench.contract.check import DoesNotApply
from bench.contract.fixtures import RandomState
from bench.core.errors import UnavailableError
from bench.core.isolation import Isolation
from bench.data import datasets
from bench.engine import answers, model_access
from bench.plugin import Dataset, Defense
from bench.registry.registry import Registry
from bench.sandbox.defense_proxy import DefenseProxy
from bench.training.defense_builder import DefenseBuilder


@dataclass(frozen=True)
class DefenseFixture:
    """A defense on the first data set it names, with a few test images."""

    registry: Registry
    defense: Defense

    @cached_property
    def dataset(self) -> Dataset:
        """The first that can be read here."""
        missing = []
        for name in self.defense.datasets:
            found: Dataset = self.registry.find("dataset", name).value
            try:
                datasets.load_dataset(found)
            except UnavailableError as error:
                missing.append(str(error))
            else:
                return found
        raise DoesNotApply(f"none of its data sets can be read here: {' '.join(missing)}")

    @cached_property
    def examples(self) -> tuple[Tensor, Tensor]:
        """Images and labels; fewer where an image is large."""
        n = 256 if np.prod(self.dataset.shape) <= 28 * 28 else 64
        examples = datasets.first_examples(self.dataset, min(n, self.dataset.test_size))
        return examples.tensor(), torch.from_numpy(examples.labels.copy())

    @property
    def x(self) -> Tensor:
        """32 of the images: one unit of rows."""
        return self.examples[0][:32]

    @property
    def is_random(self) -> bool:
        """Whether it declares randomness."""
        return self.defense.randomness is not None

    @property
    def loader(self) -> DefenseBuilder:
        """A fresh one: each law gets a build of its own."""
        return DefenseBuilder(self.registry, self.defense.name, self.dataset)

    @property
    def is_built_in(self) -> bool:
        """Whether it comes with the project."""
        return self.registry.find("defense", self.defense.name).origin == "built-in"

    @property
    def rejects(self) -> bool:
        """Whether its answers end with a rejection score."""
        return self.defense.rejects is not None

    def build(self) -> nn.Module:
        """A fresh copy of the defense; one for all laws where each copy is a process."""
        return self.sandboxed_module or self.loader.build()

    @cached_property
    def sandboxed_module(self) -> DefenseProxy | None:
        """The copy that a worker holds; None where the code is in this process."""
        if self.registry.find("defense", self.defense.name).isolation is not Isolation.SANDBOXED:
            return None
        module = self.loader.build()
        return module if isinstance(module, DefenseProxy) else None

    def labels(self, module: nn.Module, images: Tensor) -> Tensor:
        """[n]: the classes that it names, REJECTED where it refuses."""
        return answers.predicted_labels(logits_of(module, images), rejects=self.rejects)


def logits_of(module: nn.Module, images: Tensor, seed: int = 0) -> Tensor:
    """Logits without a graph, the global generators seeded and put back."""
    with torch.no_grad():
        return seeded_logits(module, images, seed).detach()


def seeded_logits(module: nn.Module, images: Tensor, seed: int) -> Tensor:
    """Logits, with whatever graph the caller asked for."""
    before = RandomState.snapshot()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        answer: Tensor = module(images)
    finally:
        before.restore()
    return answer


def gradient_of_weighted(module: nn.Module, images: Tensor, weight: Tensor) -> Tensor:
    """The gradient of <weight, logits>, zero where no graph leads back to the images."""
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        return model_access.input_gradient((seeded_logits(module, leaf, 0) * weight).sum(), leaf)


def relative_difference(one: Tensor, two: Tensor) -> float:
    """The largest difference, in units of the largest logit."""
    return float((one - two).abs().max() / one.abs().max().clamp_min(1e-12))


def logit_weights(logits: Tensor) -> Tensor:
    """Fixed random weights of the logits, so that no class is left out."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(logits.shape, generator=generator)
