"""Tests of bench.engine.fast_forms: the same function and the same gradient as the module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import UnavailableError
from bench.engine.fast_forms import (
    SIDES,
    BlockedGradientConv,
    CudaGraphModel,
    ReorderedFlatten,
    block_first_gradient,
    has_few_channels,
)
from bench.engine.model_access import freeze
from tests.fixtures.known_models import digits, gaussian, small_cnn


def convolution(channels: int, size: int, pad: int, kind: torch.dtype = torch.float64) -> nn.Conv2d:
    """A convolution with five random filters."""
    conv = nn.Conv2d(channels, 5, size, padding=pad).to(kind)
    with torch.no_grad():
        conv.weight.copy_(gaussian(*conv.weight.shape))
        conv.bias.copy_(gaussian(5))  # type: ignore[union-attr]
    return freeze(conv)  # type: ignore[return-value]


def answer_and_gradient(layer: nn.Module, images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The answer [n, ...], and the gradient [n, C, H, W] of its weighted sum."""
    leaf = images.clone().requires_grad_()
    answer = layer(leaf)
    return answer.detach(), torch.autograd.grad((answer * weight).sum(), leaf)[0]


@pytest.mark.parametrize("channels", SIDES)
@pytest.mark.parametrize(("size", "pad"), [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (5, 2), (5, 4)])
def test_the_blocked_gradient_is_the_gradient(channels: int, size: int, pad: int) -> None:
    conv, x = convolution(channels, size, pad), gaussian(3, channels, 8, 12).double()
    weight = gaussian(*conv(x).shape, seed=1).double()
    (expected, gradient), (answer, blocked) = (
        answer_and_gradient(m, x, weight) for m in (conv, freeze(BlockedGradientConv(conv)))
    )
    assert torch.equal(answer, expected)
    assert torch.allclose(blocked, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(10, 12), (12, 9)])
def test_images_that_do_not_divide_into_blocks_use_the_plain_gradient(
    shape: tuple[int, int],
) -> None:
    conv, x = convolution(1, 3, 1), gaussian(2, 1, *shape).double()
    weight = gaussian(*conv(x).shape, seed=1).double()
    assert torch.equal(
        answer_and_gradient(BlockedGradientConv(conv), x, weight)[1],
        answer_and_gradient(conv, x, weight)[1],
    )


def test_blocks_apply_to_plain_convolutions_with_few_channels() -> None:
    assert has_few_channels(nn.Conv2d(3, 8, 3, padding=1))
    for other in (
        nn.Conv2d(8, 8, 3), nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(3, 8, 3, dilation=2),
        nn.Conv2d(2, 8, 3, groups=2), nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 8, (3, 5)), nn.Conv2d(3, 8, 3, padding=3), nn.Conv2d(3, 8, 3, padding="same"),
        nn.ConvTranspose2d(3, 8, 3), nn.Linear(3, 8),
    ):  # fmt: skip
        assert not has_few_channels(other), other
    with pytest.raises(UnavailableError, match="no convolution of few channels"):
        block_first_gradient(nn.Sequential(nn.Conv2d(8, 8, 3)))


def test_several_gradients_can_be_taken_of_one_answer() -> None:
    layer, leaf = freeze(block_first_gradient(small_cnn())), digits(32)[0].requires_grad_()
    answer, expected = layer(leaf), small_cnn()(leaf)
    for column in range(3):
        one, two = (
            torch.autograd.grad(logits[:, column].sum(), leaf, retain_graph=True)[0]
            for logits in (answer, expected)
        )
        assert torch.allclose(one, two, atol=1e-5)


def test_a_second_derivative_is_refused() -> None:
    layer, leaf = freeze(block_first_gradient(small_cnn())), digits(32)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(layer(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(gradient.sum())


def test_inputs_that_are_no_images_are_flattened_as_usual() -> None:
    linear, rows = nn.Linear(12, 2), torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(ReorderedFlatten(linear)(rows), linear(rows.flatten(1)))


def test_a_cuda_graph_gives_the_answers_of_the_module() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    device = torch.device("cuda")
    model, x = copy.deepcopy(small_cnn()).to(device), digits(64)[0].to(device)
    graphed = CudaGraphModel(model)
    for images in (x, 1 - x):
        one, two = (images.clone().requires_grad_() for _ in range(2))
        logits, expected = graphed(one), model(two)
        assert torch.allclose(logits, expected, atol=1e-4)
        (gradient,) = torch.autograd.grad(logits.sum(), one)
        (plain,) = torch.autograd.grad(expected.sum(), two)
        assert torch.allclose(gradient, plain, atol=1e-4)
