"""Fixtures of the sandbox tests, which are skipped without bubblewrap; no process may be left."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from bench.sandbox import isolation, process
from tests.sandbox.isolated import no_process_left


@pytest.fixture
def sandbox() -> Iterator[None]:
    """Skips where this machine has no sandbox; checks that the test leaves no worker process."""
    if isolation.why_unavailable():
        pytest.skip(isolation.why_unavailable())
    yield
    gc.collect()
    assert no_process_left(), "a worker process has outlived its test"


@pytest.fixture(scope="session", autouse=True)
def spare() -> Iterator[None]:
    """Ends the spare worker process after the tests."""
    yield
    if process.SPARE_PROCESS.next is not None:
        process.SPARE_PROCESS.next.close()
