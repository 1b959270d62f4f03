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
    """Where the files of one recipe lie."""

    folder: Path
    recipe: str
    """Recipe digest."""

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.folder / "weights" / f"{self.recipe}.safetensors"

    @property
    def record(self) -> Path:
        """Their SHA-256, and how they came about. Written last: with it the recipe is done."""
        return self.weights.with_suffix(".json")

    @property
    def checkpoint(self) -> Path:
        """The state after the last whole epoch of an unfinished training."""
        return self.folder / "training" / f"{self.recipe}.pt"

    @property
    def mixed(self) -> bool:
        """Whether the weights were trained in bfloat16, as their record says."""
        return bool(json.loads(self.record.read_bytes())["mixed"])

    def content(self) -> bytes | None:
        """The weights file, if this recipe is done; BenchError if it is not what was written."""
        try:
            record = self.record.read_bytes()
            content = self.weights.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest().encode() not in record:
            raise BenchError(
                f"{self.weights} is not the file that training wrote; delete it and train again."
            )
        return content


def load_weights(module: nn.Module, content: bytes, path: Path | str) -> nn.Module:
    """The module with the weights of a safetensors file; BenchError names what does not fit."""
    try:
        weights = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise BenchError(
            f"{path} is no safetensors file ({error}); write it with safetensors.torch.save_file."
        ) from error
    wanted = module.state_dict()
    for key in sorted(wanted.keys() | weights.keys()):
        wrong = tensor_mismatch(wanted.get(key), weights.get(key))
        if wrong:
            raise BenchError(f"{path}: {key!r} {wrong}.")
    module.load_state_dict(weights)
    return module


def tensor_mismatch(wanted: Tensor | None, came: Tensor | None) -> str:
    """Why one tensor cannot take the other's place; empty when it can."""
    if came is None:
        return "is missing, and the module needs it"
    if wanted is None:
        return "is in the file, and the module has no place for it"
    if wanted.shape != came.shape or wanted.dtype != came.dtype:
        return (
            f"is {came.dtype} {list(came.shape)} in the file, the module expects {wanted.dtype} "
            f"{list(wanted.shape)}"
        )
    if came.is_floating_point() and not bool(came.isfinite().all()):
        return "holds values that are not finite"
    return ""
