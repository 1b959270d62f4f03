"""Workers are ended with the test that started them; without bubblewrap nothing is tested here."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from bench.sandbox import isolation, process
from tests.sandbox.isolated import none_left


@pytest.fixture
def walls() -> Iterator[None]:
    """The machine can lock code in; afterwards no worker is left."""
    if isolation.why_unavailable():
        pytest.skip(isolation.why_unavailable())
    yield
    gc.collect()
    assert none_left(), "a worker has outlived its test"


@pytest.fixture(scope="session", autouse=True)
def spare() -> Iterator[None]:
    """The spare worker goes when the tests are over."""
    yield
    if process.SPARE.next is not None:
        process.SPARE.next.close()
