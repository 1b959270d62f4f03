"""Input normalisation, and a small convolutional network with dropout for the image data sets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COLOUR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
"""Mean and standard deviation of the training half of CIFAR-10; those of CIFAR-100 are close."""
GREY = ((0.25,), (0.35,))
"""Values between those of MNIST, Fashion-MNIST and the digits."""


class Normalize(nn.Module):
    """Input normalisation: (x - mean) / deviation for each channel.

    It is part of the network, so that attacks and perturbation sets apply to pixels in [0, 1].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        mean, deviation = COLOUR if channels == 3 else GREY
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to normalised values of the same shape."""
        return (images - self.mean) / self.deviation


def dropout_cnn(
    shape: tuple[int, int, int], classes: int, width: int = 16, share: float = 0.5
) -> nn.Sequential:
    """Three blocks of two convolutions, then two dense layers with dropout before each.

    Args:
        shape: (C, H, W), with sides of at least 8 pixels, as each block halves them.
        classes: K.
        width: channels of the first block; each further block has twice as many.
        share: of the units that dropout zeroes in train mode.

    Returns:
        A module from images [n, *shape] in [0, 1] to logits [n, K].
    """
    from torchvision.ops import Conv2dNormActivation  # imported here: it takes seconds

    channels, height, across = shape
    layers: list[nn.Module] = [Normalize(channels)]
    for outputs in (width, 2 * width, 4 * width):
        layers += [
            Conv2dNormActivation(channels, outputs),
            Conv2dNormActivation(outputs, outputs),
            nn.MaxPool2d(2),
        ]
        channels = outputs
    features = channels * (height // 8) * (across // 8)
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(share),
        nn.Linear(features, 8 * width),
        nn.ReLU(),
        nn.Dropout(share),
        nn.Linear(8 * width, classes),
    )
