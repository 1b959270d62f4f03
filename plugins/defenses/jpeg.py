"""JPEG compression before the network: what an eye would not miss is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from io import BytesIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bench.kit import straight_through
from bench.plugin import Defense, hookimpl
from plugins.defenses._filtered import undefended_behind

QUALITY = 75


def compressed(images: Tensor, quality: int) -> Tensor:
    """Each image of [n, 1 or 3, H, W] in [0, 1] through the codec and back, in 256 shades."""
    shades = images.detach().mul(255).round().to("cpu", torch.uint8)
    decoded = [decoded_again(image, quality) for image in shades.movedim(1, 3).numpy()]
    return torch.from_numpy(np.stack(decoded)).movedim(3, 1).to(images).div(255)


def decoded_again(image: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """One image [H, W, 1 or 3] written as a JPEG file and read back."""
    file = BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
        file, "JPEG", quality=quality
    )
    return np.asarray(Image.open(file)).reshape(image.shape)


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
