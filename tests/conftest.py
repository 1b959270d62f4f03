"""One torch thread and a fixed torch seed for every test; the longest files of tests first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """Fix the seed for random numbers that a test module draws on import."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fix the seed for random numbers of a test and its fixtures."""
    torch.manual_seed(0)


SAFE_PATH = os.environ.get("PYTHONSAFEPATH", "")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Undo what `bench.cli.main` sets for the processes that it starts; later tests run others."""
    os.environ["PYTHONSAFEPATH"] = SAFE_PATH


LONGEST_FILES = (
    "tests/docs/test_challenge.py",
    "tests/planted/test_planted.py",
    "tests/docs/test_checkpoint.py",
    "tests/sandbox/test_attack_proxy.py",
    "tests/sandbox/test_process.py",
    "tests/docs/test_tutorials.py",
    "tests/docs/test_commands.py",
    "tests/test_device_benchmark.py",
    "tests/contract/test_registered_plugins.py",
    "tests/plugins/defenses/test_adversarial_training.py",
    "tests/plugins/defenses/test_obfuscated_gradients.py",
    "tests/plugins/defenses/test_detectors.py",
    "tests/evaluation/test_known_answers.py",
    "tests/evaluation/test_hidden_linear.py",
)
"""Files whose slow tests take more than a minute, the longest first.

A file runs in one process, so a long one that begins last leaves the other processes idle. xdist
alone would begin with the files of many tests (`--loadscope-reorder`).
"""


def run_order(files: Sequence[str]) -> list[int]:
    """The positions of tests, given the file of each, in the order in which they should run."""
    count = Counter(files)
    places = {file: place for place, file in enumerate(LONGEST_FILES)}

    def key(position: int) -> tuple[int, int, str]:
        file = files[position]
        return places.get(file, len(places)), -count[file], file

    return sorted(range(len(files)), key=key)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the selected tests."""
    order = run_order([item.nodeid.partition("::")[0] for item in items])
    items[:] = [items[position] for position in order]
