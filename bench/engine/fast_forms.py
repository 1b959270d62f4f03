"""The same function in cheaper arithmetic: the forms in which an attack may ask a defense.

Each returns a new module and leaves its input unchanged; `UnavailableError` where it cannot.
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
"""Of a block, by channels of the image: together they fill a register of eight to sixteen."""


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Each BatchNorm that follows a convolution becomes part of it, in a copy."""
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        raise UnavailableError("it has no BatchNorm")
    return freeze(fuse(module))


def block_first_gradient(module: nn.Module) -> nn.Module:
    """Convolutions of images with few channels take their slope in blocks, in a copy."""
    copied = copy.deepcopy(module)
    found = {name: part for name, part in copied.named_modules() if name and has_few_channels(part)}
    if not found:
        raise UnavailableError("it has no convolution of few channels at stride 1")
    for name, part in found.items():
        copied.set_submodule(name, BlockedGradientConv(cast(nn.Conv2d, part)))
    return freeze(copied)


def has_few_channels(part: nn.Module) -> bool:
    """Whether a part is a plain convolution of stride 1 that reads few channels."""
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
    """A convolution whose slope to the image is one strided convolution of the slope above it.

    dx[i] = sum_k w[k] g[i - k + p]. Training never asks for it, and with one to four channels it
    leaves most of a vector register empty. So the pixels of a block are channels, which
    `pixel_shuffle` lays out (arXiv:1609.05158): its kernel is w, flipped, once for each pixel.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        size, pad, side = conv.kernel_size[0], int(conv.padding[0]), SIDES[conv.in_channels]
        wide = size + side - 1
        self.conv, self.side = conv, side
        self.slope = nn.Conv2d(
            conv.out_channels, conv.in_channels * side**2, wide,
            stride=side, padding=size - 1 - pad, bias=False,
        )  # fmt: skip
        flipped = conv.weight.detach().flip(2, 3).transpose(0, 1)
        kernel = flipped.new_zeros(conv.in_channels, side, side, conv.out_channels, wide, wide)
        for row, column in itertools.product(range(side), repeat=2):
            kernel[:, row, column, :, row : row + size, column : column + size] = flipped
        self.slope.weight = nn.Parameter(kernel.flatten(0, 2))

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] to [n, K, H', W'], as the convolution does."""
        whole = images.shape[2] % self.side == 0 == images.shape[3] % self.side
        climbed = whole and images.requires_grad
        answer: Tensor = _InBlocks.apply(images, self) if climbed else self.conv(images)
        return answer


class _InBlocks(torch.autograd.Function):
    """The convolution of a `Blocked` going forward, its blocks going back."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, layer: BlockedGradientConv) -> Tensor:
        ctx.layer = layer
        answer: Tensor = layer.conv(images)
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return F.pixel_shuffle(ctx.layer.slope(slope), ctx.layer.side), None


def relu_in_place(module: nn.Module) -> nn.Module:
    """Each ReLU writes over what it has read, in a copy: a layer less to fetch and to keep."""
    copied = freeze(copy.deepcopy(module))
    found = [part for part in copied.modules() if type(part) is nn.ReLU and not part.inplace]
    if not found:
        raise UnavailableError("it has no ReLU of its own memory")
    for part in found:
        part.inplace = True
    return copied


class ChannelsLast(nn.Module):
    """The module over images whose channels are the fastest index, as convolutions like them."""

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
        """[n, C, H, W] in any layout -> [n, K]."""
        logits: Tensor = self.module(images.contiguous(memory_format=torch.channels_last))
        return logits


def reorder_flatten(layers: nn.Sequential) -> None:
    """Let each Linear behind a Flatten read images as they lie, so that no pixel is moved."""
    for place, (one, other) in enumerate(itertools.pairwise(layers)):
        if type(one) is nn.Flatten and type(other) is nn.Linear:
            layers[place], layers[place + 1] = nn.Identity(), ReorderedFlatten(other)


class ReorderedFlatten(nn.Module):
    """Flatten and the Linear behind it, over images in channels last."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.shape: torch.Size | None = None
        """Of an image; the columns of the weight are put in order when it is known."""

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, features]; what is no image is flattened as ever."""
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
    """The module in bfloat16, where the device computes in it."""
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    if not has_bfloat16(device):
        raise UnavailableError("this device has no bfloat16 instructions")
    return Bfloat16Model(module, device.type)


class Bfloat16Model(nn.Module):
    """Convolutions and products in bfloat16; logits in float32."""

    def __init__(self, module: nn.Module, device: str) -> None:
        super().__init__()
        self.module, self.device = freeze(copy.deepcopy(module)), device
        for part in self.module.modules():
            # What autocast would round anew at each call.
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] float32 -> [n, K] float32."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            logits: Tensor = self.module(images)
        return logits.float()


class CudaGraphModel(nn.Module):
    """The module as one CUDA graph for each shape of batch whose gradient is asked."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.graphs: dict[torch.Size, Callable[[Tensor], Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, K]."""
        if not images.requires_grad:
            logits: Tensor = self.module(images)
            return logits
        if images.shape not in self.graphs:
            sample = torch.zeros_like(images).requires_grad_()
            copied = freeze(copy.deepcopy(self.module))
            graph = torch.cuda.make_graphed_callables(copied, (sample,))
            self.graphs[images.shape] = cast(Callable[[Tensor], Tensor], graph)
        # A graph answers in the same memory at each call: what leaves it is a copy, both ways.
        return self.graphs[images.shape](images * 1).clone()


def has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are instructions here, not emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
