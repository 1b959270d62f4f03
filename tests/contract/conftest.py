"""The registry as installed, and an honest classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.contract.fixtures import RidgeClassifier, fitted_fixture
from bench.data import datasets
from bench.registry.registry import Registry


@pytest.fixture(scope="module")
def world() -> Registry:
    return Registry.load(Path("no-such-folder"))


@pytest.fixture(scope="module")
def classifier(world: Registry) -> RidgeClassifier:
    """An honest classifier of digits, without any training."""
    digits = datasets.load_dataset(world.datasets["digits"].value)
    assert digits.train is not None
    return fitted_fixture(digits.train, 10, torch.zeros(1), torch.zeros(1)).model  # type: ignore[return-value]
