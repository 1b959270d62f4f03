"""A database or disk that stays away ends the run; no cell fails, and the run continues later."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench.core.cells import CellState, Culprit
from bench.core.errors import StorageError
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.cell_task import failure_or_end
from bench.evaluation.failures import failure_of
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Defense, Loader
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.store import Store

SELECTION = Selection(("digits-linf",), ("linear",), ("random", "fgsm"), examples=32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def make(store: Store, tmp_path: Path, **changes: Any) -> MatrixWorker:
    registry = changes.pop("registry", None) or Registry.load(tmp_path / "no submissions")
    options = {"selection": SELECTION, "certifiers": "none", **changes}
    settings = RunSettings(torch.device("cpu"), 32)
    return MatrixWorker(registry, store, settings=settings, player=CellPlayer("all"), **options)


def of_the_harness(statement: str) -> Callable[..., None]:
    """A function of a file of the harness, because what a test raises counts as a plugin's."""
    file = Path(bench.__file__).parent / "store" / "store.py"
    made: dict[str, Any] = {"StorageError": StorageError, "errno": errno, "os": os}
    exec(compile(f"def fail(*_, **__):\n    {statement}\n", str(file), "exec"), made)
    function: Callable[..., None] = made["fail"]
    return function


no_space = of_the_harness("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/disk/file')")
no_server = of_the_harness("raise StorageError('the server does not answer.', temporary=True)")


@pytest.mark.parametrize(
    ("target", "name", "error", "words"),
    [
        (os, "fsync", no_space, "no images can be written to"),
        (Store, "record", no_server, "does not answer"),
        (Store, "evidence", no_server, "does not answer"),
        (Store, "keep_examples", no_space, "the disk of /disk/file is full"),
    ],
)
def test_what_is_away_ends_the_run_and_no_cell_fails(
    target: Any, name: str, error: Callable[..., None], words: str,
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(target, name, error)
        with pytest.raises(StorageError, match=words):
            make(store, tmp_path).run()
        states = {row.state for row in store.cells()}
        assert states <= {CellState.MISSING, CellState.DONE}
    make(store, tmp_path).run()
    assert {row.state for row in store.cells()} == {CellState.DONE}


def fail_as_the_store(loader: Loader) -> torch.nn.Module:
    raise StorageError("everything is full.", temporary=True)


def test_a_plugin_cannot_end_the_run_with_an_error_of_the_store(
    store: Store, tmp_path: Path
) -> None:
    registry = Registry.load(tmp_path / "no submissions")
    defense = Defense("full", fail_as_the_store)
    registry.defenses["full"] = Registration(defense, "entry-point", "tests", "0" * 64)
    selection = Selection(("digits-linf",), ("full", "linear"), ("fgsm",), examples=32)
    make(store, tmp_path, registry=registry, selection=selection).run()
    found = {(r.cell.attack, r.cell.defense): (r.state, r.culprit) for r in store.cells()}
    assert found["fgsm", "full"] == (CellState.FAILED, Culprit.PLUGIN)
    assert found["fgsm", "linear"] == (CellState.DONE, None)


@pytest.mark.parametrize("temporary", [True, False])
def test_an_error_of_the_store_is_never_the_users_fault(temporary: bool) -> None:
    with pytest.raises(StorageError) as caught:
        of_the_harness(f"raise StorageError('the disk is full.', temporary={temporary})")()
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)  # type: ignore[union-attr]
    assert failure_of(error).culprit is Culprit.INFRASTRUCTURE
    with pytest.raises(StorageError):
        failure_or_end(error)
