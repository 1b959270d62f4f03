"""Diagnostic of memorised test images: a defense must not recognise the images it is tested on.

Three comparisons, none of which an honest network fails, however much it overfits its training
images: copies of the test images beside the images themselves, test images beside training images,
and straight lines from test images beside lines between blends of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl, margin
from plugins.diagnostics._model_probe import (
    ModelDiagnostic,
    input_gradient,
    random_signs,
    rounding,
    seeded_logits,
    seeded_random_state,
    uniform_noise,
    warn_if,
)

LEVEL = 1 / 255
P_LIMIT = 1e-4
"""Every comparison is one-sided, with this limit on its p-value."""
JUMP_RATIO = 4.0
"""How much farther the logits of an image may be from a dithered copy's than two copies' are."""
JUMP_SHARE = 0.25
"""Least share of images that must jump for a warning."""
LEAST_AREA = 0.65
"""Least share of pairs of a test and a training image in which the test image is better."""
LEAST_IMAGES = 16
POINTS = 24
"""Points on a line from a test image to one of another class."""
LARGEST_STEP = 0.5
"""Share of the way of the logits, along a line, that one step makes where there is a jump."""
FEW_FORWARDS = 4
"""Above so many passes of the network per query half of the images are compared."""
NOISES = (0.0, 16 / 255, 48 / 255)
"""Uniform noise under which test and training images are compared."""
FAR_NOISE = 96 / 255
"""Uniform noise that leads away from every image."""
STEP = 32 / 255
"""Size of a signed step along the gradient under which they are compared, too."""


class Comparison(NamedTuple):
    """One comparison: whether it raises a warning, and its figures."""

    raised: bool
    sentence: str


class MemorisedImages(ModelDiagnostic):
    """Whether test images are answered unlike their copies and better than training images."""

    name = "memorised-images"
    summary = "Raised when the defense recognises test images."
    images = 256

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the figures of every comparison that is possible."""
        if len(subject.x) < LEAST_IMAGES:
            sentence = f"{len(subject.x)} images came; at least {LEAST_IMAGES} are needed."
            return Evidence(Finding.NOT_TESTED, sentence)
        if subject.defense.forwards > FEW_FORWARDS:
            subject = _shortened(subject, 128)
        found = [beside_copies(subject), along_lines(subject)]
        if subject.training is not None and len(subject.training[1]) >= LEAST_IMAGES:
            found.append(beside_training_images(subject, subject.training))
            found.append(beside_mirrored(subject, subject.training))
        raised = [one.sentence for one in found if one.raised]
        sentences = raised or [one.sentence for one in found]
        return warn_if(bool(raised), f"{'; '.join(sentences)}.")


def _shortened(subject: Subject, n: int) -> Subject:
    """The subject with the first n images of each kind."""
    training = subject.training and (subject.training[0][:n], subject.training[1][:n])
    return subject._replace(x=subject.x[:n], y=subject.y[:n], training=training)


def beside_copies(subject: Subject) -> Comparison:
    """Compare each image with two copies whose pixels differ by one grey level or less.

    The step from the image to a copy is no larger than that between the copies, and so is the
    change of the logits of a function that does not know the image.
    """
    x, generator = subject.x, torch.Generator().manual_seed(0)
    at = seeded_logits(subject.module, x).double()
    noise = 100 * rounding(at.float()).double()
    worst, counted = 0, 0
    for size in (LEVEL / 16, LEVEL):
        copies = [(x + size * random_signs(x, generator)).clamp(0, 1) for _ in range(2)]
        one, two = (seeded_logits(subject.module, copy).double() for copy in copies)
        away = torch.minimum((one - at).norm(dim=1), (two - at).norm(dim=1))
        jumps = (away > JUMP_RATIO * (one - two).norm(dim=1)) & (away > noise)
        if int(jumps.sum()) >= worst:
            worst, counted = int(jumps.sum()), len(x)
    return Comparison(
        worst >= max(LEAST_IMAGES / 2, JUMP_SHARE * counted),
        f"on {worst} of {counted} images the logits are more than {JUMP_RATIO:g} times farther from"
        " those of two copies, dithered by one grey level or less, than these are from each other",
    )


def along_lines(subject: Subject) -> Comparison:
    """Compare lines from test images with lines between noisy blends of test images.

    A defense that recognises images up to a distance jumps where a line leaves the image. A blend
    of two images of one class with much noise is far from all images.
    """
    n = min(len(subject.x), 48)
    x, y = subject.x[:n], subject.y[:n]
    alike, others = (_partners(y, alike=kind) for kind in (True, False))
    from_images = jumping(subject, x, x[others[0]])
    noise = FAR_NOISE * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1)
    one, two = ((x + x[alike[0]]) / 2, (x[others[0]] + x[others[1]]) / 2)
    from_blends = jumping(subject, *((blend + noise.to(x)).clamp(0, 1) for blend in (one, two)))
    a, b = int(from_images.sum()), int(from_blends.sum())
    p = more_often(a, n, b, n)
    return Comparison(
        p < P_LIMIT and a - b >= JUMP_SHARE * n,
        f"the logits jump on {a} of {n} lines that begin at test images and on {b} of {n} that"
        f" begin at noisy blends of them (p = {p:.2g})",
    )


def _partners(y: Tensor, *, alike: bool) -> Tensor:
    """[2, n]: for each image the next two with the same label, or with another one.

    Where there are fewer, the next images of any label.
    """
    rows = []
    for i in range(len(y)):
        rest = torch.roll(torch.arange(len(y)), -i - 1)[:-1].tolist()
        chosen = [j for j in rest if (y[j] == y[i]) == alike]
        rows.append([*chosen, *rest][:2])
    return torch.tensor(rows).T


def jumping(subject: Subject, start: Tensor, end: Tensor) -> Tensor:
    """[n]: lines from start to the middle of start and end [n, C, H, W] on which logits jump.

    A jump from one predicted class to another is a decision boundary and does not count.
    """
    shares = torch.linspace(0, 0.5, POINTS).tolist()
    path = torch.stack(
        [seeded_logits(subject.module, (1 - t) * start + t * end).double() for t in shares]
    )
    steps = (path[1:] - path[:-1]).norm(dim=2)
    largest, at = steps.max(0)
    classes = path.argmax(2)
    rows = torch.arange(len(start), device=at.device)
    same = classes[at, rows] == classes[at + 1, rows]
    noise = 100 * rounding(path[0].float()).double()
    jumps: Tensor = (largest > LARGEST_STEP * steps.sum(0)) & same & (largest > noise)
    return jumps


def beside_training_images(subject: Subject, training: tuple[Tensor, Tensor]) -> Comparison:
    """Compare accuracy and margins of test images with those of training images when changed.

    A network that learned from training images is at most as good on test images; one that stores
    test images is better on them.
    """
    generator = torch.Generator().manual_seed(0)
    pair = ((subject.x, subject.y), training)
    found = []
    for size in NOISES:
        test, train = (label_margin(subject, uniform_noise(x, size, generator), y) for x, y in pair)
        found.append(compared(f"with uniform noise of {size:.3f}", test, train))
    test, train = (label_margin(subject, ascended(subject, x, y), y) for x, y in pair)
    found.append(compared(f"after a step of {STEP:.3f} along the gradient", test, train))
    return min(found)[1]


def compared(name: str, test: Tensor, train: Tensor) -> tuple[float, Comparison]:
    """The smaller p-value, and the comparison of margins [m] of test and [n] of training images."""
    right, others = int((test > 0).sum()), int((train > 0).sum())
    p = more_often(right, len(test), others, len(train))
    area, p_area = better_than(test, train)
    raised = p < P_LIMIT or (p_area < P_LIMIT and area > LEAST_AREA)
    return -float(raised) + min(p, p_area), Comparison(
        raised,
        f"{name}, {right} of {len(test)} test images and {others} of {len(train)} training images"
        f" are right (p = {p:.2g}), and the margin of a test image is the larger one in"
        f" {area:.0%} of the pairs (p = {p_area:.2g})",
    )


def ascended(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """Images x [n, C, H, W] after a signed step along the gradient of the margin of labels [n]."""
    with seeded_random_state(x):
        gradient = input_gradient(subject.module, x, lambda logits: margin(logits, y))
    return (x + STEP * torch.nan_to_num(gradient).sign()).clamp(0, 1)


def label_margin(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """The margin [n] of the label over all other classes, of images [n, C, H, W]."""
    return -margin(seeded_logits(subject.module, x).double(), y)


def beside_mirrored(subject: Subject, training: tuple[Tensor, Tensor]) -> Comparison:
    """Compare mirrored test images with mirrored training images.

    A defense that recognises test images is as good on them as on training images, and worse on
    their mirror images. Whether a mirrored image has the same label does not matter.
    """
    images, labels = training
    test, train, mirrored_test, mirrored_train = (
        int((label_margin(subject, x, y) > 0).sum())
        for x, y in (
            (subject.x, subject.y),
            (images, labels),
            (subject.x.flip(3), subject.y),
            (images.flip(3), labels),
        )
    )
    n, m = len(subject.x), len(labels)
    p = more_often(mirrored_train, m, mirrored_test, n)
    return Comparison(
        p < P_LIMIT and test * m >= train * n,
        f"{test} of {n} test images and {train} of {m} training images are right, and"
        f" {mirrored_test} and {mirrored_train} of their mirror images (p = {p:.2g})",
    )


def more_often(a: int, m: int, b: int, n: int) -> float:
    """Fisher's exact one-sided p-value for a of m being a larger share than b of n."""
    logs = torch.lgamma(torch.arange(m + n + 2).double())  # log((k - 1)!)

    def ways(total: int, k: Tensor) -> Tensor:
        return logs[total + 1] - logs[k + 1] - logs[total - k + 1]

    right = a + b
    k = torch.arange(a, min(m, right) + 1)
    terms = ways(m, k) + ways(n, right - k) - ways(m + n, torch.tensor(right))
    return float(terms.exp().sum().clamp(max=1))


def better_than(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The share of pairs with a [m] above b [n], and Mann-Whitney's one-sided p-value for more."""
    m, n = len(a), len(b)
    both = torch.cat([a, b])
    _, inverse, counts = torch.unique(both, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[inverse]
    above = float(ranks[:m].sum()) - m * (m + 1) / 2
    ties = float((counts.double() ** 3 - counts).sum())
    total = m + n
    variance = m * n / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 0.5, 1.0
    z = (above - m * n / 2) / variance**0.5
    return above / (m * n), float(0.5 * torch.special.erfc(torch.tensor(z / 2**0.5)))


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the comparison with copies and with training images."""
    yield MemorisedImages()
