"""Training state: checkpoints continue only in their own arithmetic; files are written whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.core.errors import BenchError
from bench.training import loop, recipes, state, weights_cache
from tests.fixtures.small_defenses import (
    DIGITS,
    defense,
    one_thread,
    registry,
    small_recipe,
    train,
)

__all__ = ["one_thread"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02K\x01."])
def test_a_checkpoint_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes) -> None:
    known = registry(defense("student", small_recipe()))
    files = weights_cache.WeightsFiles(tmp_path, recipes.recipe_digest(known, "student", DIGITS))
    files.checkpoint.parent.mkdir(parents=True)
    files.checkpoint.write_bytes(content)
    with pytest.raises(BenchError, match="delete it to begin that training again"):
        loop.train_weights(known, "student", DIGITS, folder=tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    state.write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail_halfway(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        state.write_atomically(path, fail_halfway)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


class StoppedError(Exception):
    """Ends a training between two epochs."""


def stop(report: state.EpochReport) -> None:
    """A listener that ends the training after its first epoch."""
    raise StoppedError


@pytest.mark.parametrize(
    ("mixed", "sentence"),
    [(True, "bfloat16 on cpu, and float32 on cpu"), (False, "float32 on cpu, and bfloat16 on cpu")],
)
def test_a_training_continues_only_in_the_precision_it_was_begun_in(
    tmp_path: Path, mixed: bool, sentence: str
) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, small_recipe(), mixed=mixed, progress=stop)
    with pytest.raises(BenchError, match=f"begun in {sentence} was asked for; .* delete it"):
        train(tmp_path, small_recipe(), mixed=not mixed)
    whole = train(tmp_path / "whole", small_recipe(), mixed=mixed)
    assert train(tmp_path, small_recipe(), mixed=mixed) == whole


def test_a_training_continues_only_on_the_kind_of_device_it_was_begun_on(
    tmp_path: Path,
) -> None:
    known = registry(defense("student", small_recipe()))
    begun = state.initial_state(known, "student", DIGITS, None, torch.device("cpu"), mixed=False)
    state.save_checkpoint(begun, tmp_path / "state.pt")
    state.load_checkpoint(begun, tmp_path / "state.pt")
    begun.device = torch.device("meta")
    with pytest.raises(BenchError, match="begun in float32 on cpu, and float32 on meta was asked"):
        state.load_checkpoint(begun, tmp_path / "state.pt")
