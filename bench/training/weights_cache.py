"""Trained weights on disk, by recipe digest, and loading a weights file into a module."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from bench.core.errors import BenchError


@dataclass(frozen=True)
class WeightsFiles:
    """Paths of the files of one recipe."""

    folder: Path
    """Holds `weights/` and `training/`."""
    recipe: str
    """Recipe digest."""

    @property
    def weights(self) -> Path:
        """The trained weights."""
        return self.folder / "weights" / f"{self.recipe}.safetensors"

    @property
    def record(self) -> Path:
        """SHA-256 of the weights and figures of the training; written last, after the weights."""
        return self.weights.with_suffix(".json")

    @property
    def checkpoint(self) -> Path:
        """The state after the last finished epoch of an unfinished training."""
        return self.folder / "training" / f"{self.recipe}.pt"

    @property
    def mixed(self) -> bool:
        """Whether the record says that the weights were trained in bfloat16."""
        return bool(json.loads(self.record.read_bytes())["mixed"])

    def content(self) -> bytes | None:
        """Content of the weights file; None where the recipe has not been trained.

        Raises BenchError where the file does not have the SHA-256 of the record.
        """
        try:
            record = self.record.read_bytes()
            content = self.weights.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest().encode() not in record:
            raise BenchError(
                f"{self.weights} is not the file that training wrote; delete it: it is then"
                " loaded from the database, or trained again."
            )
        return content


def _parse_weights(content: bytes, path: Path | str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise BenchError(
            f"{path} is no safetensors file ({error}); write it with safetensors.torch.save_file."
        ) from error


def load_weights(module: nn.Module, content: bytes, path: Path | str) -> nn.Module:
    """The module with the weights of a safetensors file.

    Raises BenchError, naming the tensor, where a name, shape or type does not match or a value is
    not finite.
    """
    weights = _parse_weights(content, path)
    expected = module.state_dict()
    for key in sorted(expected.keys() | weights.keys()):
        mismatch = tensor_mismatch(expected.get(key), weights.get(key))
        if mismatch:
            raise BenchError(f"{path}: {key!r} {mismatch}.")
    module.load_state_dict(weights)
    return module


def tensor_mismatch(expected: Tensor | None, found: Tensor | None) -> str:
    """Why a tensor from a file cannot be loaded; empty when it can, shapes [...] being equal."""
    if found is None:
        return "is missing, and the module needs it"
    if expected is None:
        return "is in the file, and the module has no tensor of that name"
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return (
            f"is {found.dtype} {list(found.shape)} in the file, the module expects "
            f"{expected.dtype} {list(expected.shape)}"
        )
    if found.is_floating_point() and not bool(found.isfinite().all()):
        return "holds values that are not finite"
    return ""
