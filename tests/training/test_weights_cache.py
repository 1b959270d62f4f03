"""The weights cache: files that do not fit or were changed are refused, by tensor name."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.training.weights_cache import load_weights
from tests.fixtures.small_defenses import (
    SHAPE,
    linear,
    linear_weights,
    one_thread,
    small_recipe,
    train,
)

__all__ = ["one_thread"]


FITTING = linear_weights()

BAD: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "missing": (lambda: {"1.weight": torch.ones(10, 64)}, "'1.bias' is missing"),
    "extra": (lambda: FITTING | {"2.weight": torch.ones(1)}, "'2.weight' is in the file"),
    "shape": (
        lambda: FITTING | {"1.weight": torch.ones(64, 10)},
        r"'1.weight' is torch.float32 \[64, 10\] in the file, the module expects .*\[10, 64\]",
    ),
    "type": (
        lambda: FITTING | {"1.bias": torch.zeros(10).half()},
        r"'1.bias' is torch.float16",
    ),
    "nan": (
        lambda: FITTING | {"1.bias": torch.full((10,), torch.nan)},
        "'1.bias' .* not finite",
    ),
    "infinite": (
        lambda: FITTING | {"1.weight": torch.full((10, 64), torch.inf)},
        "'1.weight' .* not finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_weights_that_do_not_fit_are_refused_by_name(case: str) -> None:
    make, sentence = BAD[case]
    module = linear(SHAPE, 10)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(BenchError, match=sentence) as error:
        load_weights(module, safetensors.torch.save(make()), "own.safetensors")
    assert str(error.value).startswith("own.safetensors: ")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Executable:
    """A pickle that would run code while it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.putenv, ("SPRUNG", "1"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not weights",
        pickle.dumps(Executable()),
        safetensors.torch.save(FITTING)[:-1],
    ],
)
def test_a_file_that_is_not_safetensors_is_refused_without_unpickling(content: bytes) -> None:
    with pytest.raises(BenchError, match="own is no safetensors file"):
        load_weights(linear(SHAPE, 10), content, "own")


def test_loaded_weights_equal_the_file_exactly() -> None:
    module = linear(SHAPE, 10)
    load_weights(module, safetensors.torch.save(FITTING), "own")
    assert all(torch.equal(value, FITTING[key]) for key, value in module.state_dict().items())


def test_a_changed_weights_file_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, small_recipe())
    (weights,) = tmp_path.rglob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BenchError, match="is not the file that training wrote"):
        train(tmp_path, small_recipe())
    weights.unlink()
    train(tmp_path, small_recipe())


def test_bfloat16_weights_are_refused_where_float32_is_wanted(tmp_path: Path) -> None:
    mixed = train(tmp_path, small_recipe(), mixed=True)
    assert train(tmp_path, small_recipe(), mixed=True) == mixed
    with pytest.raises(BenchError, match=r"is trained already, in bfloat16; delete .*\.json"):
        train(tmp_path, small_recipe())
    (record,) = tmp_path.rglob("*.json")
    record.unlink()
    whole = train(tmp_path, small_recipe())
    assert whole == train(tmp_path / "whole", small_recipe()) != mixed
    assert train(tmp_path, small_recipe(), mixed=True) == whole, "float32 weights serve for both"
