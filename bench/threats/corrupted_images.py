"""Corruptions of images at five severities: noise, blur, contrast, brightness, JPEG, fog, rain.

The kinds are those of Hendrycks and Dietterich (arXiv:1903.12261), computed by code of our own with
severities of our own; lengths are shares of the shorter side, so that images of any size can be
corrupted. Random draws depend on the grey levels of the image alone, and the severities of one kind
share them. All arithmetic is elementwise in float64, the same in every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.threats.random_numbers import KeyedRandomNumbers
from bench.threats.random_patch import content_key
from bench.threats.warps import sine_cosine

NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)
"""Standard deviation of the noise."""
BLUR = (0.03, 0.045, 0.06, 0.08, 0.1)
"""Standard deviation of the blur, as a share of the shorter side."""
CONTRAST = (0.75, 0.6, 0.45, 0.3, 0.15)
"""Factor of the distance from the mean of the image."""
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""What is added to every pixel."""
QUALITY = (25, 18, 15, 10, 7)
"""Of the JPEG coder."""
FOG = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Share of the light that the fog takes away where it is densest."""
FOG_LIGHT = 0.9
"""Grey level of the fog itself."""
FOG_CELLS = (2, 4, 8)
"""Cells of the grids of its density, the coarse ones with more weight."""
STREAKS = (4, 8, 12, 18, 26)
"""Number of rain streaks."""
RAIN = (0.3, 0.4, 0.5, 0.6, 0.7)
"""How opaque a streak is."""
RAIN_LIGHT = 0.8
"""Grey level of a streak."""
HALF_WIDTH = 1 / 64
"""Of a streak, as a share of the shorter side; half a pixel at least."""
BLOCK = 8
"""Side of a JPEG block in pixels."""

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
"""Quantisation of ITU-T T.81, Annex K, for brightness."""
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)  # fmt: skip
"""The same for colour."""


def gaussian_noise(x: Tensor, sigma: float) -> Tensor:
    """Images [n, C, H, W] plus N(0, sigma^2), independent for each value."""
    first, second = _uniform(x, "gaussian-noise", (2, *x.shape[1:])).unbind(1)
    # Box-Muller; half a step of the draws keeps the logarithm finite.
    length = torch.sqrt(-2 * torch.log(first + 2.0**-25))
    return x + sigma * length * sine_cosine(math.pi * (2 * second - 1))[1]


def blur(x: Tensor, share: float) -> Tensor:
    """Images [n, C, H, W] under a Gaussian of `share` of the shorter side; edges are repeated."""
    sigma = share * min(x.shape[2:])
    reach = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-reach, reach + 1)]
    total = math.fsum(weights)
    for axis in (2, 3):
        places = torch.arange(x.shape[axis], device=x.device)
        blurred = torch.zeros_like(x)
        for step, weight in zip(range(-reach, reach + 1), weights, strict=True):
            moved = (places + step).clamp(0, x.shape[axis] - 1)
            blurred = blurred + weight / total * x.index_select(axis, moved)
        x = blurred
    return x


def contrast(x: Tensor, factor: float) -> Tensor:
    """Images [n, C, H, W] whose distance from their mean grey level is `factor` times as large."""
    levels = (x * 255).round().long().flatten(1)  # a sum of whole numbers has no rounding
    mean = (levels.sum(1).double() / (255 * levels.shape[1]))[:, None, None, None]
    return mean + factor * (x - mean)


def brightness(x: Tensor, more: float) -> Tensor:
    """Images [n, C, H, W] plus a constant."""
    return x + more


def fog(x: Tensor, density: float) -> Tensor:
    """Images [n, C, H, W] behind a haze whose density varies smoothly over the image."""
    height, width = x.shape[2:]
    veil = torch.zeros(len(x), height, width, dtype=x.dtype, device=x.device)
    whole = sum(2.0**-place for place in range(len(FOG_CELLS)))
    for place, cells in enumerate(FOG_CELLS):
        nodes = _uniform(x, f"fog {cells}", (cells + 1, cells + 1))
        veil = veil + 2.0**-place / whole * _between_nodes(nodes, height, width)
    lost = (density * (0.5 + 0.5 * veil))[:, None]
    return x + lost * (FOG_LIGHT - x)


def rain(x: Tensor, severity: tuple[int, float]) -> Tensor:
    """Images [n, C, H, W] with bright slanted streaks; `severity` is their number and opacity."""
    count, opacity = severity
    height, width = x.shape[2:]
    unit = _uniform(x, "rain", (max(STREAKS), 3))
    slant = (0.6 * _uniform(x, "slant", (1,)) - 0.3)[:, :, None]
    half = max(0.5, HALF_WIDTH * min(height, width))
    rows = torch.arange(height, dtype=x.dtype, device=x.device)[None, :, None]
    columns = torch.arange(width, dtype=x.dtype, device=x.device)[None, None, :]
    covered = torch.zeros(len(x), height, width, dtype=x.dtype, device=x.device)
    for streak in unit[:, :count].unbind(1):
        top, left, size = (part[:, None, None] for part in streak.unbind(1))
        length = height * (0.15 + 0.25 * size)
        down, right = rows - (1.2 * top - 0.2) * height, columns - left * width
        along = down.clamp(min=0).minimum(length)
        distance = torch.sqrt((down - along) ** 2 + (right - slant * along) ** 2)
        covered = covered.maximum((1.5 - distance / (2 * half)).clamp(0, 1))
    return x + (opacity * covered)[:, None] * (RAIN_LIGHT - x)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Images [n, C, H, W] after JPEG coding at a quality of 1 to 100, without subsampling.

    All steps of the coder that lose information (ITU-T T.81): colour transform, cosine transform of
    blocks of 8 x 8, quantisation, and the way back, in 256 levels. Images that do not have three
    channels are coded channel by channel as brightness.
    """
    height, width = x.shape[2:]
    levels = (x * 255).round()
    down, right = (
        torch.arange(size + -size % BLOCK, device=x.device).clamp(max=size - 1)
        for size in (height, width)
    )
    channels = levels[:, :, down][:, :, :, right].unbind(1)
    colour = len(channels) == 3
    if colour:
        channels = _to_luminance(*channels)
    tables = [CHROMINANCE if colour and place else LUMINANCE for place in range(len(channels))]
    coded = [
        _quantised(channel, _scaled_table(table, quality))
        for channel, table in zip(channels, tables, strict=True)
    ]
    if colour:
        coded = list(_to_colours(*coded))
    return torch.stack(coded, 1)[:, :, :height, :width] / 255


def _to_luminance(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, ...]:
    """Grey levels of red, green, blue as Y, Cb, Cr in whole numbers."""
    return (
        (0.299 * red + 0.587 * green + 0.114 * blue).round(),
        (128 - 0.168735892 * red - 0.331264108 * green + 0.5 * blue).round().clamp(0, 255),
        (128 + 0.5 * red - 0.418687589 * green - 0.081312411 * blue).round().clamp(0, 255),
    )


def _to_colours(luma: Tensor, blue: Tensor, red: Tensor) -> tuple[Tensor, ...]:
    """The inverse of `_to_luminance`."""
    return (
        (luma + 1.402 * (red - 128)).round().clamp(0, 255),
        (luma - 0.344136286 * (blue - 128) - 0.714136286 * (red - 128)).round().clamp(0, 255),
        (luma + 1.772 * (blue - 128)).round().clamp(0, 255),
    )


def _scaled_table(table: Sequence[Sequence[int]], quality: int) -> list[list[int]]:
    """The quantisation of a quality, by the rule of the common coder (libjpeg)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [[min(max((value * scale + 50) // 100, 1), 255) for value in row] for row in table]


def _quantised(levels: Tensor, table: list[list[int]]) -> Tensor:
    """Grey levels [n, H, W], H and W whole blocks, after quantisation of their coefficients."""
    n, height, width = levels.shape
    blocks = levels.view(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK) - 128
    basis = [[_cosine(place, wave) for place in range(BLOCK)] for wave in range(BLOCK)]
    steps = torch.tensor(table, dtype=levels.dtype, device=levels.device)[:, None, :]
    waves = _along(_along(blocks, basis, 2), basis, 4) / steps
    # Halves are rounded away from zero, as coders do; they are common, and inexact by 1e-14.
    waves = waves.sign() * (waves.abs() + 0.5 + 1e-9).floor() * steps
    back = [list(column) for column in zip(*basis, strict=True)]
    found = _along(_along(waves, back, 2), back, 4) + 128
    return found.round().clamp(0, 255).reshape(n, height, width)


def _cosine(place: int, wave: int) -> float:
    """The orthonormal cosine of a wave at a place."""
    scale = math.sqrt((1 if wave == 0 else 2) / BLOCK)
    return scale * math.cos(math.pi * (2 * place + 1) * wave / (2 * BLOCK))


def _along(blocks: Tensor, matrix: list[list[float]], axis: int) -> Tensor:
    """A matrix [8, 8] applied along an axis of 8; sums in one order, whatever the batch."""
    parts = blocks.unbind(axis)
    sums = []
    for row in matrix:
        total = row[0] * parts[0]
        for weight, part in zip(row[1:], parts[1:], strict=True):
            total = total + weight * part
        sums.append(total)
    return torch.stack(sums, axis)


def _uniform(x: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform [n, *shape] in [0, 1), float64, from the grey levels of images x [n, C, H, W]."""
    key = content_key(x)
    return KeyedRandomNumbers(key, torch.zeros_like(key)).uniform(name, shape).double()


def _between_nodes(nodes: Tensor, height: int, width: int) -> Tensor:
    """Values [n, H, W] between those at the nodes of grids [n, k + 1, k + 1], bilinear."""
    cells = nodes.shape[1] - 1
    shares = []
    for size in (height, width):
        place = (torch.arange(size, dtype=nodes.dtype, device=nodes.device) + 0.5) * cells / size
        first = place.floor().clamp(max=cells - 1)
        shares.append((first.long(), place - first))
    (top, down), (left, right) = shares
    above, below = nodes[:, top], nodes[:, top + 1]
    rows = above + down[None, :, None] * (below - above)
    return rows[:, :, left] + right * (rows[:, :, left + 1] - rows[:, :, left])


Change = Callable[[Tensor, int], Tensor]
"""Images [n, C, H, W] float64 and the severity, from 0, to images, not clamped."""

CHANGES: dict[str, Change] = {
    "gaussian-noise": lambda x, place: gaussian_noise(x, NOISE[place]),
    "blur": lambda x, place: blur(x, BLUR[place]),
    "contrast": lambda x, place: contrast(x, CONTRAST[place]),
    "brightness": lambda x, place: brightness(x, BRIGHTNESS[place]),
    "jpeg": lambda x, place: jpeg(x, QUALITY[place]),
    "fog": lambda x, place: fog(x, FOG[place]),
    "rain": lambda x, place: rain(x, (STREAKS[place], RAIN[place])),
}


def corrupted(x: Tensor, kind: str, severity: int) -> Tensor:
    """Images x [n, C, H, W] in [0, 1], corrupted, in [0, 1] and of the same type.

    `kind` is one of `CORRUPTIONS`; `severity` is 0 for the images themselves, else 1 to 5.
    """
    if severity == 0:
        return x.clone()
    return CHANGES[kind](x.double(), severity - 1).clamp(0, 1).to(x)
