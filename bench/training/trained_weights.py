"""Where trained weights are found: in a database, of which the cache folder holds copies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.core.errors import BenchError
from bench.core.folders import cache_folder
from bench.core.machines import Machine
from bench.training.state import write_atomically
from bench.training.weights_cache import WeightsFiles

if TYPE_CHECKING:  # training works without a database and its packages
    from bench.store import Lease, Store


class TrainedWeights(NamedTuple):
    """The weights of one recipe."""

    content: bytes
    """A safetensors file."""
    record: Mapping[str, Any]
    """Machine class and figures of the training."""
    path: Path
    """The file in the cache folder."""


@dataclass(frozen=True)
class WeightsSource:
    """Finds the weights of a recipe, so that all machines of a database use the same ones.

    The folder holds the weights that this machine has trained, by recipe, and copies of a
    database's weights by their SHA-256: two databases may hold different weights of one recipe.
    """

    folder: Path | None = None
    """Holds `weights/` and `training/`; None: the cache folder."""
    store: Store | None = None
    """The database whose weights are used; None: those of the folder alone."""
    pinned: Mapping[str, str] = field(default_factory=dict)
    """Recipe -> SHA-256 of the weights to use, as another process has found them."""

    def files(self, recipe: str) -> WeightsFiles:
        """The files of a recipe that this machine trains."""
        return WeightsFiles(self.folder or cache_folder(), recipe)

    def find(self, recipe: str) -> TrainedWeights | None:
        """The weights of a recipe; None where it has not been trained.

        A database without them gets those of the folder. Raises BenchError where a file or the
        database's row does not have its recorded SHA-256.
        """
        if self.store is None:
            pinned = self.pinned.get(recipe)
            return self._local(recipe, pinned) if pinned else _read(self.files(recipe))
        digest = self.store.weights_digest(recipe)
        if digest is None:
            trained_here = _read(self.files(recipe))
            if trained_here is None or self.store.read_only:
                return trained_here
            self.store.insert_weights(recipe, *self._row(recipe, trained_here))
            digest = self.store.weights_digest(recipe)
        return self._local(recipe, str(digest)) or self._fetch(self.store, recipe)

    def commit(self, recipe: str, lease: Lease) -> None:
        """Record what this machine has trained under a lease of the database, and end the lease.

        Raises LeaseLostError where the lease is lost, BenchError where nothing has been trained or
        there is no database.
        """
        trained_here = _read(self.files(recipe))
        if trained_here is None or self.store is None:
            raise BenchError(f"recipe {recipe[:12]} has no weights to record; train it first.")
        self.store.commit_training(lease, recipe, *self._row(recipe, trained_here))

    def _row(self, recipe: str, found: TrainedWeights) -> tuple[bytes, str, Machine | None]:
        """Content, text of the record and machine class, as the database takes them."""
        machine = found.record.get("machine")
        record = self.files(recipe).record.read_text()
        return found.content, record, None if machine is None else Machine(**machine)

    def _local(self, recipe: str, digest: str) -> TrainedWeights | None:
        """The weights with this SHA-256, trained here or copied; None where neither is there."""
        found = _read(self.files(recipe))
        if found is not None and hashlib.sha256(found.content).hexdigest() == digest:
            return found
        return _read(self._copy(digest))

    def _copy(self, digest: str) -> WeightsFiles:
        return WeightsFiles(self.folder or cache_folder(), digest)

    def _fetch(self, store: Store, recipe: str) -> TrainedWeights | None:
        """The weights of the database, copied into the folder."""
        row = store.weights(recipe)
        if row is None:
            return None
        files = self._copy(row.digest)
        write_atomically(files.weights, lambda path: path.write_bytes(row.content))
        write_atomically(files.record, lambda path: path.write_text(row.record))
        return TrainedWeights(row.content, json.loads(row.record), files.weights)


def _read(files: WeightsFiles) -> TrainedWeights | None:
    content = files.content()
    if content is None:
        return None
    return TrainedWeights(content, json.loads(files.record.read_bytes()), files.weights)
