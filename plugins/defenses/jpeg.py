"""JPEG compression of the image in front of the network.

Guo et al. 2018, arXiv:1711.00117.
"""

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
BLOCK = 8  # pixels, the side of a block of the JPEG transform
MAX_ROWS = 65500  # largest height of a JPEG file


def jpeg_compress(images: Tensor, quality: int) -> Tensor:
    """Each image of [n, 1 or 3, H, W] in [0, 1] through the JPEG codec and back, in 256 levels.

    Colours are not subsampled, so each 8 x 8 block is coded independently. Many images, padded to
    whole blocks by repeating their edges, are coded as one tall image with the same result.
    """
    height, width = images.shape[2:]
    blocks = F.pad(images.detach(), (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    levels = blocks.mul(255).round().to("cpu", torch.uint8)
    sheets = [
        encode_and_decode(part, quality)
        for part in torch.split(levels, MAX_ROWS // levels.shape[2])
    ]
    return torch.cat(sheets)[:, :, :height, :width].to(images).div(255)


def encode_and_decode(levels: Tensor, quality: int) -> Tensor:
    """The uint8 images [n, C, H, W], stacked into one JPEG file and read back."""
    n, channels, height, width = levels.shape
    sheet = levels.movedim(1, 3).reshape(n * height, width, channels).numpy()
    file = BytesIO()
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    read = torch.from_numpy(np.array(Image.open(file)))
    return read.view(n, height, width, channels).movedim(3, 1)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the quality of the paper."""
    change = partial(jpeg_compress, quality=QUALITY)
    yield Defense(
        name="jpeg",
        cite="arXiv:1711.00117",
        summary=f"JPEG compression at quality {QUALITY} in front of the undefended network.",
        build=before_undefended(change),
        # The codec rounds and has no gradient; its output is close to its input.
        bpda=before_undefended(straight_through(change)),
        quick=False,
    )
