"""A small residual network for CIFAR-10, trained and verified at L-infinity 2/255.

The weights are published with the alpha-beta-CROWN verifier.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import (
    Claim,
    Defense,
    Fraction,
    LeaderboardProtocol,
    Linf,
    Loader,
    ThreatModel,
    hookimpl,
)

REPOSITORY = "https://github.com/Verified-Intelligence/alpha-beta-CROWN"
PUBLISHED = "7828015f3676449a96b0374327e76d73d250f5a8d30c9282d8fb63ab4b4fdb6c"
MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2471, 0.2435, 0.2616)


class Block(nn.Module):
    """The block relu(conv(relu(conv(x))) + shortcut(x)), without batch normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Sequential()
        if (inputs, stride) != (outputs, 1):
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """Values [n, inputs, H, W] to [n, outputs, H / stride, W / stride]."""
        residual: Tensor = self.conv2(self.conv1(x).relu())
        shortcut: Tensor = self.shortcut(x)
        return (residual + shortcut).relu()


class ResNet2b(nn.Module):
    """One convolution, two residual blocks, one hidden layer; attributes are weight keys."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(8, 16, stride=2), Block(16, 16, stride=1))
        self.linear1 = nn.Linear(1024, 100)
        self.linear2 = nn.Linear(100, 10)
        # Not persistent: the published file has no normalisation.
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 3, 32, 32] in [0, 1] to logits [n, 10]."""
        features = self.layer1(self.conv1((images - self.mean) / self.std).relu())
        logits: Tensor = self.linear2(self.linear1(features.flatten(1)).relu())
        return logits


def build(loader: Loader) -> nn.Module:
    """The network with the published weights."""
    return loader.weights(ResNet2b(), "resnet2b-cifar10-linf-2.safetensors", sha256=PUBLISHED)


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Register the threat model of the published figures."""
    yield ThreatModel(
        "cifar10-linf-2",
        "cifar10",
        Linf(Fraction(2, 255)),
        protocol=LeaderboardProtocol(
            required=("fgsm", "pgd", "pgd-margin", "transfer-learned", "square", "hopskipjump")
        ),
        order=16,
        summary="Linf changes up to 2/255 on cifar10; white-box.",
    )


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the published network."""
    yield Defense(
        name="resnet2b-cifar10",
        datasets=("cifar10",),
        cite=REPOSITORY,
        summary="Published weights of the verifier's benchmark: 69.25 % clean, 26.88 % verified.",
        claims=(Claim("cifar10-linf-2", 0.2688, REPOSITORY),),
        build=build,
        surrogate="undefended-images",
        quick=False,
    )
