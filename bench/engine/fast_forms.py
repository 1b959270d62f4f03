"""Faster forms of a module: the same function in cheaper arithmetic.

Each returns a new module and leaves its input unchanged. UnavailableError where it does not apply.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from bench.core.errors import UnavailableError
from bench.engine.model_access import freeze

SIDES = {1: 4, 2: 2, 3: 2, 4: 2}
"""Block size by image channels: a block has 8 to 16 values, which fill a vector register."""


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """A copy in which each BatchNorm is folded into the convolution before it.

    Raises:
        UnavailableError: the module has no BatchNorm.
    """
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        raise UnavailableError("it has no BatchNorm")
    return freeze(fuse(module))


def block_first_gradient(module: nn.Module) -> nn.Module:
    """A copy whose convolutions with few input channels compute their input gradient in blocks.

    Raises:
        UnavailableError: the module has no such convolution.
    """
    copied = copy.deepcopy(module)
    found = {name: part for name, part in copied.named_modules() if name and has_few_channels(part)}
    if not found:
        raise UnavailableError("it has no convolution of few channels at stride 1")
    for name, part in found.items():
        copied.set_submodule(name, BlockedGradientConv(cast(nn.Conv2d, part)))
    return freeze(copied)


def has_few_channels(part: nn.Module) -> bool:
    """Whether a part is a plain convolution of stride 1 with few input channels."""
    return (
        type(part) is nn.Conv2d
        and part.in_channels in SIDES
        and part.stride == part.dilation == (1, 1)
        and part.groups == 1
        and part.padding_mode == "zeros"
        and part.kernel_size[0] == part.kernel_size[1]
        and part.padding in [(pad, pad) for pad in range(part.kernel_size[0])]
    )


class BlockedGradientConv(nn.Module):
    """A convolution whose input gradient is one strided convolution of the output gradient.

    dx[i] = sum_k w[k] g[i - k + p]. With one to four channels the usual kernel leaves most of a
    vector register empty. Here the pixels of a block are channels, which `pixel_shuffle` lays out
    (arXiv:1609.05158); the kernel holds w, flipped, once for each pixel of a block.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        size, pad, side = conv.kernel_size[0], int(conv.padding[0]), SIDES[conv.in_channels]
        span = size + side - 1
        self.conv, self.side = conv, side
        self.slope = nn.Conv2d(
            conv.out_channels, conv.in_channels * side**2, span,
            stride=side, padding=size - 1 - pad, bias=False,
        )  # fmt: skip
        flipped = conv.weight.detach().flip(2, 3).transpose(0, 1)
        kernel = flipped.new_zeros(conv.in_channels, side, side, conv.out_channels, span, span)
        for row, column in itertools.product(range(side), repeat=2):
            kernel[:, row, column, :, row : row + size, column : column + size] = flipped
        self.slope.weight = nn.Parameter(kernel.flatten(0, 2))

    def forward(self, images: Tensor) -> Tensor:
        """The convolution [n, K, H', W'] of images [n, C, H, W]."""
        whole = images.shape[2] % self.side == 0 == images.shape[3] % self.side
        blocked = whole and images.requires_grad
        answer: Tensor = _BlockedBackward.apply(images, self) if blocked else self.conv(images)
        return answer


class _BlockedBackward(torch.autograd.Function):
    """The convolution in the forward pass, the blocked gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, layer: BlockedGradientConv) -> Tensor:
        """The convolution [n, K, H', W'] of images [n, C, H, W]."""
        ctx.layer = layer
        answer: Tensor = layer.conv(images)
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The input gradient [n, C, H, W] for an output gradient [n, K, H', W']."""
        return F.pixel_shuffle(ctx.layer.slope(gradient), ctx.layer.side), None


def relu_in_place(module: nn.Module) -> nn.Module:
    """A copy in which each ReLU works in place, which saves memory traffic.

    Raises:
        UnavailableError: the module has no ReLU that allocates its output.
    """
    copied = freeze(copy.deepcopy(module))
    found = [part for part in copied.modules() if type(part) is nn.ReLU and not part.inplace]
    if not found:
        raise UnavailableError("it has no ReLU that is not in place")
    for part in found:
        part.inplace = True
    return copied


class ChannelsLast(nn.Module):
    """The module in channels-last memory format, in which convolutions are faster.

    Raises UnavailableError for a module without a convolution.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
            raise UnavailableError("it has no convolution")
        copied = freeze(copy.deepcopy(module))
        for part in list(copied.modules()):
            if type(part) is nn.Sequential:
                reorder_flatten(part)
        self.module = copied.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, K] of images [n, C, H, W] in any memory format."""
        logits: Tensor = self.module(images.contiguous(memory_format=torch.channels_last))
        return logits


def reorder_flatten(layers: nn.Sequential) -> None:
    """Replaces each Flatten and Linear pair, so that channels-last images are not reordered."""
    for place, (one, other) in enumerate(itertools.pairwise(layers)):
        if type(one) is nn.Flatten and type(other) is nn.Linear:
            layers[place], layers[place + 1] = nn.Identity(), ReorderedFlatten(other)


class ReorderedFlatten(nn.Module):
    """A Flatten and the Linear after it, for channels-last images."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.shape: torch.Size | None = None
        """Shape of an image; the weight's columns are reordered once it is known."""

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, features] of images [n, C, H, W], or of any input [n, ...]."""
        if images.dim() == 4:
            self._order(images.shape[1:])
            images = images.permute(0, 2, 3, 1)
        features: Tensor = self.linear(images.flatten(1))
        return features

    def _order(self, shape: torch.Size) -> None:
        if self.shape is None:
            self.shape, weight = shape, self.linear.weight
            columns = weight.view(-1, *shape).permute(0, 2, 3, 1).flatten(1)
            self.linear.weight = nn.Parameter(columns.contiguous(), requires_grad=False)


def to_bfloat16(module: nn.Module) -> nn.Module:
    """The module in bfloat16.

    Raises:
        UnavailableError: the device has no bfloat16 instructions.
    """
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    if not has_bfloat16(device):
        raise UnavailableError("this device has no bfloat16 instructions")
    return Bfloat16Model(module, device.type)


class Bfloat16Model(nn.Module):
    """The module with convolutions and matrix products in bfloat16, and logits in float32."""

    def __init__(self, module: nn.Module, device: str) -> None:
        super().__init__()
        self.module, self.device = freeze(copy.deepcopy(module)), device
        for part in self.module.modules():
            # Autocast would convert these weights again at each call.
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, K] float32 of images [n, C, H, W] float32."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            logits: Tensor = self.module(images)
        return logits.float()


class CudaGraphModel(nn.Module):
    """The module as one CUDA graph for each batch shape, where gradients are computed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.graphs: dict[torch.Size, Callable[[Tensor], Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, K] of images [n, C, H, W]."""
        if not images.requires_grad:
            logits: Tensor = self.module(images)
            return logits
        if images.shape not in self.graphs:
            sample = torch.zeros_like(images).requires_grad_()
            copied = freeze(copy.deepcopy(self.module))
            graph = torch.cuda.make_graphed_callables(copied, (sample,))
            self.graphs[images.shape] = cast(Callable[[Tensor], Tensor], graph)
        # A graph reuses its input and output memory, so both are copied.
        return self.graphs[images.shape](images * 1).clone()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions, so that products are not emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
