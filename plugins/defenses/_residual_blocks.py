"""Residual networks for images of 8 to 32 pixels a side, of torchvision's blocks where possible.

The original block is relu(x + F(x)) (arXiv:1512.03385), the pre-activation block x +
F(relu(norm(x))) (arXiv:1603.05027). The first convolution is 3 x 3 and keeps the size; each stage
but the first halves it; global average pooling precedes the classifier. A shortcut that changes
shape is a 1 x 1 convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from plugins.defenses._dropout_cnn import Normalize

Shape = tuple[int, int, int]
"""(C, H, W)."""
MakeBlock = Callable[[int, int, int], nn.Module]
"""(channels in, channels out, stride) -> one block."""


class Stage(NamedTuple):
    """Blocks of one width; the first of them has the stride."""

    outputs: int
    blocks: int
    stride: int


def doubling_stages(outputs: int, blocks: int, count: int = 3) -> list[Stage]:
    """Stages that double the channels and, except for the first, halve the image."""
    return [Stage(outputs * 2**k, blocks, 2 if k else 1) for k in range(count)]


def blocks_per_stage(depth: int, fixed: int, layers: int) -> int:
    """The number of blocks in each of three stages of a network of `depth` layers.

    `fixed` layers are outside the stages, and a block has `layers`. Raises ValueError where no
    number of blocks fits.
    """
    blocks, rest = divmod(depth - fixed, 3 * layers)
    if rest or blocks < 1:
        raise ValueError(
            f"no network has a depth of {depth}; {fixed} layers and {3 * layers} more for each "
            f"block of the three stages give {fixed + 3 * layers}, {fixed + 6 * layers}, ..."
        )
    return blocks


def stage_blocks(inputs: int, stages: list[Stage], make: MakeBlock) -> Iterator[nn.Module]:
    """The blocks of all stages in order."""
    for stage in stages:
        for number in range(stage.blocks):
            yield make(inputs, stage.outputs, 1 if number else stage.stride)
            inputs = stage.outputs


def classifier_head(features: int, classes: int) -> list[nn.Module]:
    """Global average pooling and one linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def postactivation_network(
    shape: Shape, classes: int, stem: int, stages: list[Stage], make: MakeBlock
) -> nn.Module:
    """A network of blocks that end in a ReLU; `stem` is the width of the first convolution."""
    from torchvision.ops import Conv2dNormActivation  # imported here: it takes seconds

    return nn.Sequential(
        Normalize(shape[0]),
        Conv2dNormActivation(shape[0], stem),
        *stage_blocks(stem, stages, make),
        *classifier_head(stages[-1].outputs, classes),
    )


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The shortcut of a block that changes shape; None where x itself has the right shape."""
    from torchvision.ops import Conv2dNormActivation

    if (inputs, stride) == (outputs, 1):
        return None
    bare: nn.Module = Conv2dNormActivation(inputs, outputs, 1, stride, activation_layer=None)
    return bare


def basic_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The block relu(x + F(x)) with F of two 3 x 3 convolutions."""
    from torchvision.models.resnet import BasicBlock

    block: nn.Module = BasicBlock(inputs, outputs, stride, shortcut(inputs, outputs, stride))
    return block


def se_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The block relu(x + s F(x)), s from each channel's mean (arXiv:1709.01507, reduction 16)."""
    from torchvision.ops import SqueezeExcitation

    block = basic_block(inputs, outputs, stride)
    block.bn2 = nn.Sequential(block.get_submodule("bn2"), SqueezeExcitation(outputs, outputs // 16))
    return block


def bottleneck_block(cardinality: int, width: int) -> MakeBlock:
    """The block relu(x + F(x)), F of three convolutions, one of them grouped (arXiv:1611.05431)."""
    from torchvision.models.resnet import Bottleneck

    def make(inputs: int, outputs: int, stride: int) -> nn.Module:
        """One block."""
        planes, around = outputs // Bottleneck.expansion, shortcut(inputs, outputs, stride)
        block: nn.Module = Bottleneck(inputs, planes, stride, around, cardinality, width)
        return block

    return make


def resnet(shape: Shape, classes: int, depth: int = 20) -> nn.Module:
    """ResNet of 6 n + 2 layers, 16 to 64 channels (arXiv:1512.03385, section 4.2)."""
    return postactivation_network(
        shape, classes, 16, doubling_stages(16, blocks_per_stage(depth, 2, 2)), basic_block
    )


def se_resnet(shape: Shape, classes: int, depth: int = 20) -> nn.Module:
    """ResNet of 6 n + 2 layers with squeeze and excitation in each block (arXiv:1709.01507)."""
    return postactivation_network(
        shape, classes, 16, doubling_stages(16, blocks_per_stage(depth, 2, 2)), se_block
    )


def resnext(
    shape: Shape, classes: int, depth: int = 29, cardinality: int = 8, width: int = 64
) -> nn.Module:
    """ResNeXt of 9 n + 2 layers, `cardinality` x `width`d (arXiv:1611.05431, section 5.3)."""
    stages = doubling_stages(256, blocks_per_stage(depth, 2, 3))
    return postactivation_network(shape, classes, 64, stages, bottleneck_block(cardinality, width))


class PreActivationBlock(nn.Module):
    """The block x + F(relu(norm(x))), F of two convolutions; torchvision has none.

    Where the shape changes, the shortcut also starts from relu(norm(x)).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.project = (
            None
            if (inputs, stride) == (outputs, 1)
            else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Values [n, inputs, H, W] to [n, outputs, H / stride, W / stride]; may be negative."""
        active = self.norm1(x).relu()
        kept = x if self.project is None else self.project(active)
        change: Tensor = self.conv2(self.norm2(self.conv1(active)).relu())
        return change + kept


def preactivation_network(shape: Shape, classes: int, stem: int, stages: list[Stage]) -> nn.Module:
    """A convolution, pre-activation blocks, and a normalisation and a ReLU after them."""
    features = stages[-1].outputs
    return nn.Sequential(
        Normalize(shape[0]),
        nn.Conv2d(shape[0], stem, 3, padding=1, bias=False),
        *stage_blocks(stem, stages, PreActivationBlock),
        nn.BatchNorm2d(features),
        nn.ReLU(),
        *classifier_head(features, classes),
    )


def preresnet(shape: Shape, classes: int, depth: int = 20) -> nn.Module:
    """Pre-activation ResNet of 6 n + 2 layers (arXiv:1603.05027)."""
    return preactivation_network(
        shape, classes, 16, doubling_stages(16, blocks_per_stage(depth, 2, 2))
    )


def wide_resnet(shape: Shape, classes: int, depth: int = 28, widen: int = 10) -> nn.Module:
    """Pre-activation ResNet of 6 n + 4 layers, `widen` times as wide (arXiv:1605.07146)."""
    return preactivation_network(
        shape, classes, 16, doubling_stages(16 * widen, blocks_per_stage(depth, 4, 2))
    )


def preact_resnet18(shape: Shape, classes: int, width: int = 64) -> nn.Module:
    """PreActResNet-18: four stages of two blocks (arXiv:1603.05027, as in arXiv:2001.03994)."""
    return preactivation_network(shape, classes, width, doubling_stages(width, 2, count=4))
