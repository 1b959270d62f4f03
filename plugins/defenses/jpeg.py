"""JPEG compression before the network: what an eye would not miss is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from bench.kit import straight_through
from bench.plugin import Defense, hookimpl
from plugins.defenses._filtered import undefended_behind

QUALITY = 75


def compressed(images: Tensor, quality: int) -> Tensor:
    """Each image of [n, 1 or 3, H, W] in [0, 1] through the codec and back, in 256 shades."""
    shades = images.detach().mul(255).round().to("cpu", torch.uint8)
    decoded = [decode_jpeg(encode_jpeg(image, quality)) for image in shades]
    return torch.stack(decoded).to(images).div(255)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the quality that Guo et al. took."""
    change = partial(compressed, quality=QUALITY)
    yield Defense(
        name="jpeg",
        cite="arXiv:1711.00117",
        summary=f"Every image through JPEG at quality {QUALITY}, then the undefended network.",
        build=undefended_behind(change),
        # The codec rounds, so it has no slope; the image that it gives is near the one it got.
        stand_in=undefended_behind(straight_through(change)),
        quick=False,
        detail={"rows": ("F01",)},
    )
