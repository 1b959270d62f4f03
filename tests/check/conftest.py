"""The registry as installed, and an honest classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import data
from bench.check.world import Ridge, fitted
from bench.registry import Registry


@pytest.fixture(scope="module")
def world() -> Registry:
    return Registry.load(Path("no-such-folder"))


@pytest.fixture(scope="module")
def classifier(world: Registry) -> Ridge:
    """An honest classifier of digits, without any training."""
    digits = data.read(world.datasets["digits"].value)
    assert digits.train is not None
    return fitted(digits.train, 10, torch.zeros(1), torch.zeros(1)).model  # type: ignore[return-value]
