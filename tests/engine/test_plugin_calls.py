"""Tests of bench.engine.plugin_calls: what a model raises is its fault, with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.cells import Culprit
from bench.core.errors import PluginError
from bench.engine.model_access import ModelAccess
from bench.evaluation.failures import failure_of
from bench.plugin import cross_entropy
from tests.fixtures.known_models import digits

LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Calls(nn.Module):
    """A model of one function: images [n, C, H, W] to its answer."""

    def __init__(self, function: Callable[[Tensor], Any], body: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.body = function, body

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def made_in_inference_mode() -> nn.Module:
    """A linear model whose weights are inference tensors."""
    with torch.inference_mode():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def ascent(images: Tensor) -> Tensor:
    """Logits at images that were moved along a gradient, without enable_grad."""
    leaf = images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(LINEAR(leaf).sum(), leaf)
    answer: Tensor = LINEAR(images + gradient)
    return answer


def ascent_of_input(images: Tensor) -> Tensor:
    """Logits at images moved along a gradient at the input itself."""
    (gradient,) = torch.autograd.grad(LINEAR(images).sum(), images)
    answer: Tensor = LINEAR(images + gradient)
    return answer


def ascent_in_grad_mode(images: Tensor) -> Tensor:
    """Logits at images moved along a gradient, with enable_grad and an input without a graph."""
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(LINEAR(images).sum(), images)
    answer: Tensor = LINEAR(images + gradient)
    return answer


def adapted(images: Tensor) -> Tensor:
    """Logits of a layer after one step of an optimiser at test time."""
    layer = nn.Linear(64, 10)
    layer(images.flatten(1)).logsumexp(1).sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    answer: Tensor = layer(images.flatten(1))
    return answer


def purified(images: Tensor) -> Tensor:
    """Logits at images that an optimiser has moved."""
    moved = images.detach().clone().requires_grad_()
    LINEAR(moved).square().sum().backward()
    torch.optim.SGD([moved], 0.1).step()
    answer: Tensor = LINEAR(moved)
    return answer


def overwriting(images: Tensor) -> Tensor:
    """Logits of an exponential whose result is overwritten before the backward pass."""
    found = images.flatten(1)[:, :10].exp()
    return found.add_(1)


def in_place(images: Tensor) -> Tensor:
    """Logits of images clamped in place."""
    answer: Tensor = LINEAR(images.clamp_(0.2, 0.8))
    return answer


RAISING: list[tuple[nn.Module, str]] = [
    (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half(), r"call \.float\(\) on the module"),
    (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()).half(), r"call \.float\(\) on the module"),
    (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()).double(), r"call \.float\(\) on the mod"),
    (nn.Sequential(nn.LayerNorm(8).half(), nn.Flatten()), r"call \.float\(\) on the module"),
    (made_in_inference_mode(), r"made under torch\.inference_mode\(\)"),
    (Calls(ascent), r"torch\.enable_grad\(\)"),
    (Calls(ascent_of_input), r"torch\.enable_grad\(\)"),
    (Calls(ascent_in_grad_mode), "an input with requires_grad"),
    (Calls(adapted), r"torch\.enable_grad\(\)"),
    (Calls(purified), r"torch\.enable_grad\(\)"),
    (Calls(in_place), r"work on images\.clone\(\)"),
    (Calls(lambda images: LINEAR(images.zero_())), r"work on images\.clone\(\)"),
    (Calls(overwriting), "work on a copy"),
]


@pytest.mark.parametrize(("model", "remedy"), RAISING)
def test_a_model_that_torch_refuses_is_at_fault_and_told_what_to_do(
    model: nn.Module, remedy: str
) -> None:
    """Right: one sentence with a remedy; a gradient at test time once had no hint at all."""
    x, y = digits(4)
    access = ModelAccess(model)
    with pytest.raises(PluginError, match=remedy) as error:
        access.logits(x)
        access.gradient(x, lambda logits: cross_entropy(logits, y))
    failure = failure_of(error.value)
    assert failure.culprit is Culprit.PLUGIN
    assert "the defense" in failure.reason and "\n" not in failure.reason


VALUES: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda images: LINEAR(images).half(), "returned torch.float16 logits; torch.float32"),
    (lambda images: LINEAR(images).bfloat16(), "returned torch.bfloat16 logits; torch.float32"),
    (lambda images: LINEAR(images).argmax(1), r"returned torch.int64 \[4\] for 4 images"),
    (lambda images: LINEAR(images)[:3], r"returned torch.float32 \[3, 10\] for 4 images"),
    (lambda images: LINEAR(images)[:, :, None], r"torch.float32 \[4, 10, 1\] for 4 images"),
    (lambda images: (LINEAR(images), images), "a value of type tuple; .*return the logits alone"),
    (lambda images: {"logits": LINEAR(images)}, r"return one entry of it \(logits\)"),
    (lambda images: LINEAR(images).detach().numpy(), "a numpy array float32"),
    (lambda images: None, "the defense returned None"),
]


@pytest.mark.parametrize(("function", "sentence"), VALUES)
def test_an_answer_that_cannot_be_used_is_named(
    function: Callable[[Tensor], Any], sentence: str
) -> None:
    x, _ = digits(4)
    with pytest.raises(PluginError, match=sentence) as error:
        ModelAccess(Calls(function)).logits(x)
    assert failure_of(error.value).culprit is Culprit.PLUGIN


def test_the_line_of_the_model_is_named() -> None:
    def forward(images: Tensor) -> Tensor:
        raise ValueError("no such layer")

    x, _ = digits(2)
    line = forward.__code__.co_firstlineno + 1
    with pytest.raises(PluginError) as error:
        ModelAccess(Calls(forward), title="the surrogate").logits(x)
    expected = f"the surrogate failed: ValueError in test_plugin_calls.py, line {line}: no such "
    assert str(error.value) == f"{expected}layer."


def test_the_approximation_is_named() -> None:
    x, y = digits(2)
    access = ModelAccess(LINEAR, bpda=Calls(lambda images: None))
    with pytest.raises(PluginError, match=r"^the BPDA approximation of the defense returned None"):
        access.gradient(x, lambda logits: cross_entropy(logits, y))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_ran_out_keeps_its_type(error: Exception) -> None:
    def forward(images: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)):
        ModelAccess(Calls(forward)).logits(digits(2)[0])


def test_double_precision_logits_are_allowed() -> None:
    x, _ = digits(2)
    assert ModelAccess(Calls(lambda images: LINEAR(images).double())).logits(x).shape == (2, 10)
