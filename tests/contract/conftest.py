"""Fixtures: the registry of built-in and installed plugins, and a small classifier."""

from __future__ import annotations

import pytest
import torch

from bench.contract.fixtures import RidgeClassifier, fitted_fixture
from bench.data import datasets
from bench.registry.registry import Registry


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.without_submissions()


@pytest.fixture(scope="module")
def classifier(registry: Registry) -> RidgeClassifier:
    """A classifier of digits, fitted in closed form."""
    digits = datasets.load_dataset(registry.datasets["digits"].value)
    assert digits.train is not None
    return fitted_fixture(digits.train, 10, torch.zeros(1), torch.zeros(1)).model  # type: ignore[return-value]
