"""Decodes one image file to 8-bit RGB pixels, or says why it cannot."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are decoded, whatever the suffix of the file says."""
OPAQUE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
"""Pillow's modes that are converted to RGB by Pillow, where no pixel is transparent."""
ALPHA = ("LA", "PA", "RGBA")
"""Pillow's modes with an alpha channel."""
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of grey images with 16 bits."""
DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, struct.error, LookupError, TypeError,
    ArithmeticError, MemoryError, NotImplementedError,
)  # fmt: skip
"""What Pillow's decoders raise for damaged files."""


def read_rgb(path: Path) -> Image.Image:
    """The first frame of an image as Pillow's mode RGB, turned as its EXIF orientation says.

    Grey levels become three equal channels, 16-bit values keep their upper 8 bits (as Pillow does
    for colour), palettes are looked up, CMYK becomes RGB by (255 - C)(255 - K) / 255 without a
    colour profile. Raises ValueError, with a sentence that names the file, where it cannot be
    decoded, exceeds Pillow's limit of pixels, has transparent pixels, or has another mode.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason = str(error).partition(",")[0]
        raise ValueError(
            f"{path} has too many pixels to be decoded safely ({reason}); scale it down or remove "
            "it."
        ) from error
    except UnidentifiedImageError as error:
        what = "is no image in a known format" if path.stat().st_size else "is empty"
        raise ValueError(f"{path} {what}; remove it or copy it again.") from error
    except DECODER_ERRORS as error:
        raise ValueError(
            f"{path} cannot be decoded ({str(error) or type(error).__name__}); remove it or copy "
            "it again."
        ) from error
    return _rgb(path, upright)


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB. Raises ValueError, which names the file."""
    if image.mode in ALPHA or "transparency" in image.info:
        return _without_alpha(path, image)
    if image.mode in SIXTEEN_BITS:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in OPAQUE:
        return image.convert("RGB")
    raise ValueError(
        f"{path} has Pillow's mode {image.mode}, whose values have no fixed range; save it with 8 "
        "bits per channel."
    )


def _without_alpha(path: Path, image: Image.Image) -> Image.Image:
    """An image whose pixels are all opaque, as RGB. Raises ValueError, which names the file."""
    opaque = image.mode in (*ALPHA, *OPAQUE)
    rgba = image.convert("RGBA") if opaque else None
    if rgba is None or rgba.getchannel("A").getextrema()[0] != 255:
        raise ValueError(
            f"{path} has transparent pixels, whose colour depends on a background; save it without "
            "transparency."
        )
    return rgba.convert("RGB")


def centre_square(path: Path, image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """The centre of an RGB image as [3, size, size], after the shorter side is 8/7 of `size`.

    Raises ValueError, which names the file, where the scaled image would exceed Pillow's limit.
    """
    from torchvision.transforms import v2  # imported here: it takes seconds

    short, long = sorted(image.size)
    scaled = size * 8 // 7
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and scaled * (scaled * long // short) > limit:
        raise ValueError(
            f"{path} is {image.width} x {image.height} pixels; scaled to a shorter side of "
            f"{scaled} it would exceed {limit} pixels; crop it or remove it."
        )
    crop = v2.Compose([v2.Resize(scaled, antialias=True), v2.CenterCrop(size)])
    return np.ascontiguousarray(np.asarray(crop(image), dtype=np.uint8).transpose(2, 0, 1))
