"""JPEG compression before the network: what an eye would not miss is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.plugin import Defense, hookimpl, straight_through
from plugins.defenses._preprocessing import before_undefended

QUALITY = 75
BLOCK = 8  # pixels: the side of the square that JPEG transforms at once
MAX_ROWS = 65500  # rows of a JPEG file


def jpeg_compress(images: Tensor, quality: int) -> Tensor:
    """Each image of [n, 1 or 3, H, W] in [0, 1] through the codec and back, in 256 shades.

    Colours are not subsampled, so that each 8 x 8 block is coded by itself: many images, their
    edges repeated up to whole blocks, go through as one tall sheet with the bits of each alone.
    """
    height, width = images.shape[2:]
    blocks = F.pad(images.detach(), (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    shades = blocks.mul(255).round().to("cpu", torch.uint8)
    sheets = [
        encode_and_decode(part, quality)
        for part in torch.split(shades, MAX_ROWS // shades.shape[2])
    ]
    return torch.cat(sheets)[:, :, :height, :width].to(images).div(255)


def encode_and_decode(shades: Tensor, quality: int) -> Tensor:
    """uint8 [n, C, H, W], one below the other, written as a JPEG file and read back."""
    n, channels, height, width = shades.shape
    sheet = shades.movedim(1, 3).reshape(n * height, width, channels).numpy()
    file = BytesIO()
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    read = torch.from_numpy(np.array(Image.open(file)))
    return read.view(n, height, width, channels).movedim(3, 1)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the quality that Guo et al. took."""
    change = partial(jpeg_compress, quality=QUALITY)
    yield Defense(
        name="jpeg",
        cite="arXiv:1711.00117",
        summary=f"Every image through JPEG at quality {QUALITY}, then the undefended network.",
        build=before_undefended(change),
        # The codec rounds, so it has no slope; the image that it gives is near the one it got.
        bpda=before_undefended(straight_through(change)),
        quick=False,
    )
