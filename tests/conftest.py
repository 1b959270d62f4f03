"""One thread for every test, and the same draws: torch seeds itself anew in each process."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """What a test module draws as it is imported."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test and its fixtures draw."""
    torch.manual_seed(0)
