"""Stored images are read bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.core.errors import BenchError, UnavailableError
from bench.core.outcomes import Chunk, KeptImage
from bench.store import Store
from tests.store.chunks import leased, planned
from tests.store.workers import tiny_outcomes


def images_of(*items: int) -> npt.NDArray[np.float32]:
    draws = np.random.default_rng(3).random((99, 3, 2, 2), dtype=np.float32)
    return draws[list(items)]


def test_kept_images_come_back_bit_for_bit(store: Store) -> None:
    key = planned(store)
    original = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    kept = tuple(
        KeptImage(item, original, images_of(item)[0], 3, 3, 0.75, 5, 0.5) for item in (4, 1)
    )
    outcomes = tiny_outcomes([4, 1])
    store.record(leased(store, key), Chunk(outcomes, 0.0, images=kept))
    for before, after in zip(reversed(kept), store.images(key), strict=True):
        assert (after.item, after.label, after.clean_confidence) == (before.item, 5, 0.75)
        assert after.original.tobytes() == before.original.tobytes()
        assert after.original.shape == (3, 2, 2)
        assert after.adversarial.tobytes() == before.adversarial.tobytes()
        assert after.adversarial.dtype == np.float32


def test_exact_images_come_back_bit_for_bit_in_item_order(store: Store) -> None:
    key = planned(store)
    assert store.exact_images(key) is None
    lease = leased(store, key)
    for items in ([5, 2], [0, 3]):
        exact = (np.array(items, np.int32), images_of(*items))
        store.record(lease, Chunk(tiny_outcomes(items), 0.0, exact=exact))
    found = store.exact_images(key)
    assert found is not None
    assert found[0].tolist() == [0, 2, 3, 5]
    assert found[1].tobytes() == images_of(0, 2, 3, 5).tobytes()


def test_a_missing_or_altered_file_of_images_is_named(store: Store) -> None:
    key = planned(store)
    exact = (np.array([0], np.int32), images_of(0))
    store.record(leased(store, key), Chunk(tiny_outcomes([0]), 0.0, exact=exact))
    (file,) = store.artifacts.rglob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [fault.text for fault in store.check()] == [f"{file} was altered"]
    with pytest.raises(BenchError, match="was altered"):
        store.exact_images(key)
    file.unlink()
    assert [fault.text for fault in store.check()] == [f"{file} is missing"]
    with pytest.raises(BenchError, match="is missing"):
        store.exact_images(key)


def test_images_that_cannot_be_written_leave_the_chunk_unrecorded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = planned(store)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BENCH_ARTIFACTS", str(tmp_path / "file" / "below"))
    exact = (np.array([0], np.int32), images_of(0))
    with pytest.raises(UnavailableError, match="no images can be written to"):
        store.record(leased(store, key), Chunk(tiny_outcomes([0]), 0.0, exact=exact))
    assert store.finished_items(key).tolist() == []
