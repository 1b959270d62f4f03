"""Determinism diagnostics: equal logits on repeated queries and in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import (
    Diagnostic,
    Evidence,
    Subject,
    cross_entropy,
    default_batch,
    hookimpl,
    margin,
)
from plugins.diagnostics._model_probe import (
    ATTACK_ROWS,
    COSTLY_FORWARDS,
    ModelDiagnostic,
    input_gradient,
    logits_of,
    relative_change,
    repeated,
    seeded_logits,
    warn_if,
)

TOLERANCE = 1e-4
"""In units of the largest logit; numerical differences between batch sizes are far smaller."""
NOISE = 8 / 255
"""Size of noise: a defense may be random only at images off the 8-bit grid."""
REPEATS = 5
SIZES = (2, 3, 5, 16, 32, 33, 64, 100, ATTACK_ROWS, 200, 256, 512, 1024, 2048)
"""Batch sizes that are compared with one batch of all images; the last is the largest of a run, in
which an attack evaluates several steps at once."""
LARGEST = 2**21
"""Values of the largest batch that is made larger than the number of images."""
ALONE = 16
"""Images that are queried one by one."""
DRAWS = 16
"""Draws of a random defense, for each image alone and in a batch."""
LARGE_BATCH_DRAWS = 4
"""Draws of a random defense in a batch of ATTACK_ROWS."""
FAR = 4.0
"""Difference of two means in standard errors, above which they differ."""
FAR_SHARE = 0.25
"""Share of images with different means, or gradients, above which the batch matters."""
SIZES_DRAWN = 2
"""Batch sizes of each octave in which gradients are compared."""
TURNED = 0.5
"""Cosine of two gradients of an image below which they differ."""


class Deterministic(ModelDiagnostic):
    """Whether repeated queries, also after a gradient, give equal logits, as declared."""

    name = "deterministic"
    summary = "Raised when logits vary undeclared, or do not vary although declared random."

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the largest change, for clean images and noisy ones.

        Each is queried several times, with one gradient evaluation in between.
        """
        x, y, defense = subject.x, subject.y, subject.defense
        beside = (x + NOISE * (2 * torch.rand(x.shape).to(x) - 1)).clamp(0, 1)
        moved = max(change_on_repeat(subject.module, images, y) for images in (x, beside))
        declared = defense.randomness is not None
        sentence = f"on repeated queries logits change by {moved:.2g} of the largest logit"
        if declared == (moved > TOLERANCE):
            return warn_if(False, f"{sentence}, as declared.")
        word = "randomness is declared" if declared else "no randomness is declared"
        return warn_if(True, f"{sentence}, but {word}.")


def change_on_repeat(module: nn.Module, images: Tensor, y: Tensor) -> float:
    """The largest change of the logits of images [n, C, H, W] on repeats, around a gradient."""
    first = logits_of(module, images)
    moved = relative_change(logits_of(module, images), first)
    input_gradient(module, images, lambda logits: cross_entropy(logits, y))
    later = (relative_change(logits_of(module, images), first) for _ in range(REPEATS - 2))
    return max(moved, *later)


class BatchIndependent(ModelDiagnostic):
    """Whether logits or gradient of an image depend on the other images of its batch, or its size.

    A declared-random defense is queried with equal seeds beside other images, and the means of its
    margins alone and in a batch are compared.
    """

    name = "batch-independent"
    summary = "Raised when the logits or the gradient of an image change with its batch."
    images = 256

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the largest change over all batches."""
        n = len(subject.x)
        if subject.defense.forwards > COSTLY_FORWARDS:
            n = min(n, 64)
        subject = subject._replace(x=subject.x[:n], y=subject.y[:n])
        if subject.defense.randomness is not None:
            return of_random_defense(subject)
        changes = companion_changes(subject) | layout_changes(subject)
        where, moved = max(changes.items(), key=lambda item: item[1])
        turned = turned_gradients(subject)
        size, count = max(turned.items(), key=lambda item: item[1])
        few = min(ALONE, n)
        return warn_if(
            moved > TOLERANCE or count > FAR_SHARE * few,
            f"in batches of 1 to {max([n, *batch_sizes(subject)])} logits change by at most"
            f" {moved:.2g} of the largest logit ({where}), and in batches of 1 to {max(turned)} the"
            f" gradients of at most {count} of {few} images turn to a cosine below {TURNED:g} (in a"
            f" batch of {size}); a warning needs more than {TOLERANCE:g}, or {FAR_SHARE:.0%} of the"
            " images.",
        )


def of_random_defense(subject: Subject) -> Evidence:
    """The finding for a declared-random defense, from its means over draws."""
    where, moved = max(companion_changes(subject).items(), key=lambda item: item[1])
    large = f"in a batch of {ATTACK_ROWS}"
    far = {name: differing_means(subject, name) for name in ("alone", "beside black images", large)}
    n = min(ALONE, len(subject.x))
    counts = " and ".join(f"{count} {name}" for name, count in far.items())
    # Which numbers a defense draws may depend on the other images; what it answers on average must
    # not, and so equal seeds alone raise nothing.
    return warn_if(
        max(far.values()) > FAR_SHARE * n,
        f"over {DRAWS} draws the mean margins of {counts} of {n} images differ from those in a"
        f" batch by more than {FAR:g} standard errors; with equal seeds logits change by at most"
        f" {moved:.2g} of the largest logit ({where}).",
    )


def companion_changes(subject: Subject) -> dict[str, float]:
    """The largest change of the first half of a batch, by what the second half holds."""
    module, x = subject.module, subject.x[:64]
    half = (len(x) + 1) // 2
    rest = x[half:]
    others = {
        "beside black images": torch.zeros_like(rest),
        "beside white images": torch.ones_like(rest),
        "beside copies of one image": x[:1].expand_as(rest),
        "beside other images": subject.x.flip(0)[: len(rest)],
    }
    together = seeded_logits(module, x)[:half]
    return {
        name: relative_change(seeded_logits(module, torch.cat([x[:half], other]))[:half], together)
        for name, other in others.items()
    }


def batch_sizes(subject: Subject) -> list[int]:
    """The batch sizes to compare; of a costly defense up to the largest of an attack's steps."""
    largest = max(len(subject.x), LARGEST // subject.x[0].numel())
    if subject.defense.forwards > COSTLY_FORWARDS:
        largest = default_batch(subject.x.shape[1:])
    return [size for size in SIZES if size <= largest]


def layout_changes(subject: Subject) -> dict[str, float]:
    """The largest change from one batch of all images, by size and order of the batch."""
    module, x = subject.module, subject.x
    together = logits_of(module, x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    few = together[:ALONE]
    batches: dict[str, tuple[Tensor, Tensor]] = {
        "in reverse order": (x.flip(0), together.flip(0)),
        "in another order": (x[order], together[order]),
        "twice in a batch": (x[:ALONE].repeat(2, 1, 1, 1), few.repeat(2, 1)),
    }
    for size in batch_sizes(subject):
        batches[f"in a batch of {size}"] = repeated(x, size), repeated(together, size)
    for i, (row, expected) in enumerate(zip(x[:ALONE], few, strict=True)):
        batches[f"alone, image {i}"] = (row[None], expected[None])
    scale = together.abs().max()
    return {
        where: change_in_batch(module, images, expected, scale)
        for where, (images, expected) in batches.items()
    }


def turned_gradients(subject: Subject) -> dict[int, int]:
    """Batch size -> how many of ALONE images have another gradient there than alone."""
    module, x, y = subject.module, subject.x, subject.y
    few = min(ALONE, len(x))
    alone = torch.cat([gradient_of(module, x[i : i + 1], y[i : i + 1]) for i in range(few)])
    turned = {}
    for size in gradient_sizes(subject):
        found = gradient_of(module, repeated(x, size), repeated(y, size))[:few].flatten(1)
        expected = alone[: len(found)].flatten(1)
        # Two gradients of zero are alike; one of zero and another one are not.
        same = (found == expected).all(1)
        cosine = torch.cosine_similarity(found.double(), expected.double())
        turned[size] = int((~same & ~(cosine >= TURNED)).sum())
    return turned


def gradient_sizes(subject: Subject) -> list[int]:
    """The batch sizes in which gradients are compared: the largest of an attack, and drawn ones.

    An author who knows this code could tell a fixed list. So the sizes are drawn with a seed from
    the answers of the defense, and change with its weights: from 2 on SIZES_DRAWN of each octave,
    which are multiples of 8 above 16, as the batches of an attack are.
    """
    largest = default_batch(subject.x.shape[1:])
    if subject.x[0].numel() * largest > LARGEST:
        return [1, 2]
    answers = logits_of(subject.module, subject.x[:ALONE]).float().cpu()
    seed = int(answers.view(torch.int32).long().sum()) % 2**31
    generator = torch.Generator().manual_seed(seed)
    sizes, low = {largest}, 1
    while low < largest:
        octave = torch.arange(low + 1, 2 * low + 1)
        octave = octave[octave % (8 if low >= 16 else 1) == 0]
        sizes |= set(
            octave[torch.randperm(len(octave), generator=generator)][:SIZES_DRAWN].tolist()
        )
        low *= 2
    return sorted(sizes)


def gradient_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient [n, C, H, W] of the margin at images x [n, C, H, W] with labels y [n].

    Zero where the module fails on this batch.
    """
    try:
        return input_gradient(module, x, lambda logits: margin(logits, y))
    except (RuntimeError, ValueError, IndexError):
        return torch.zeros_like(x)


def change_in_batch(module: nn.Module, images: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest change of logits [n, K] from those expected of images [n, C, H, W], in `scale`.

    Infinite where the module fails on this batch.
    """
    try:
        logits = logits_of(module, images)
    except (RuntimeError, ValueError, IndexError):
        return float("inf")
    value = float((logits - expected).abs().max() / scale.clamp_min(1e-30))
    return value if value == value else float("inf")


def differing_means(subject: Subject, where: str) -> int:
    """Images whose mean margin alone, beside black images or in a large batch is another one.

    It is compared with that in a batch of at most 32 images.
    """
    module = subject.module
    x, y = subject.x[:32], subject.y[:32]
    n = min(ALONE, len(x))
    dark = torch.cat([x[:n], torch.zeros_like(x[n:])])

    def margins(images: Tensor) -> Tensor:
        return margin(logits_of(module, images)[:n], y[:n])

    def elsewhere() -> Tensor:
        if where != "alone":
            return margins(dark if where == "beside black images" else repeated(x, ATTACK_ROWS))
        rows = (margin(logits_of(module, x[i : i + 1]), y[i : i + 1]) for i in range(n))
        return torch.cat(list(rows))

    here = torch.stack([margins(x) for _ in range(DRAWS)]).double()
    draws = DRAWS if where in ("alone", "beside black images") else LARGE_BATCH_DRAWS
    there = torch.stack([elsewhere() for _ in range(draws)]).double()
    # Few draws tell little about the variance; if the batch does not matter, it is that of `here`.
    spread = there.var(0) if draws == DRAWS else here.var(0)
    error = (here.var(0) / DRAWS + spread / draws).sqrt()
    apart = (here.mean(0) - there.mean(0)).abs()
    # Rounding is no difference where an image gets the same answer on every draw.
    floor = TOLERANCE * here.abs().max()
    return int((apart > FAR * error + floor).sum())


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register both diagnostics."""
    yield Deterministic()
    yield BatchIndependent()
