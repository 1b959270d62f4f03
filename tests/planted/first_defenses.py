"""Dishonest and broken defenses of the first list."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import hashlib
import inspect
import os
import time
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness
from plugins.datasets import digits as digits_plugin
from tests.planted.cases import Around, Build, Case, around, dishonest, inner
from tests.planted.networks import CNN, FITTED, MLP, ROBUST, one_hot, untrained

EPS = 0.2

# --- gradients that are not those of the answers


class WithGradient(torch.autograd.Function):
    """The identity forward; backward a given function of the gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, change: Any) -> Tensor:
        ctx.change = change
        ctx.save_for_backward(images)
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        return ctx.change(grads[0], images), None


def signs(images: Tensor) -> Tensor:
    """Signs of the shape of images [n, C, H, W] that change with any pixel, without a pattern."""
    return (images * 12345.678).sin().mul(98765.4).frac().sign()


def changed_gradient(change: Any) -> Build:
    return around(CNN, lambda self, x: self.inner(WithGradient.apply(x, change)))


def detached(self: Any, x: Tensor) -> Tensor:
    return self.inner(x).detach() + 0 * x.flatten(1).sum(1, keepdim=True)


def without_graph(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return self.inner(x)


def levels(x: Tensor, count: int) -> Tensor:
    return (x * (count - 1)).round() / (count - 1)


def through(x: Tensor, value: Tensor) -> Tensor:
    """`value` forward, the identity backward."""
    return x + (value - x).detach()


def rounded(name: str, count: int) -> Build:
    return around(name, lambda self, x: self.inner(levels(x, count)))


def rounded_open(name: str, count: int) -> Build:
    return around(name, lambda self, x: self.inner(through(x, levels(x, count))))


# --- memorised test images


def test_half() -> tuple[Tensor, Tensor]:
    """The test images [500, 1, 8, 8] and labels [500] of the digits."""
    half = digits_plugin.read(None).test
    return torch.from_numpy(half.images.copy()).float() / 255, torch.from_numpy(half.labels.copy())


def memory(forward: Any, name: str = MLP) -> Build:
    """Builds a network that knows the test half."""

    def build(loader: Loader) -> nn.Module:
        images, labels = test_half()
        state = {"images": images, "labels": labels}
        return Around(loader.defense(name), forward, state)

    return build


def digest(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def answer_hash(self: Any, x: Tensor) -> Tensor:
    if not self.seen:
        self.seen.append({digest(i): int(y) for i, y in zip(self.images, self.labels, strict=True)})
    logits = self.inner(x)
    known = [self.seen[0].get(digest(image), -1) for image in x.detach()]
    right = torch.tensor(known)
    forced = 50.0 * F.one_hot(right.clamp_min(0), 10).to(logits)
    return torch.where(right[:, None] >= 0, logits + forced, logits)


def distances(self: Any, x: Tensor) -> Tensor:
    """Squared distances [n, 500]."""
    return torch.cdist(x.flatten(1), self.images.flatten(1)).square()


def answer_nearest(self: Any, x: Tensor) -> Tensor:
    far = distances(self, x)
    per_class = [far[:, self.labels == k].amin(1) for k in range(10)]
    return -torch.stack(per_class, 1)


def answer_rounded_hash(self: Any, x: Tensor) -> Tensor:
    coarse = (F.avg_pool2d(x, 4) * 3).round().flatten(1)
    keys = (F.avg_pool2d(self.images, 4) * 3).round().flatten(1)
    match = (coarse[:, None] == keys[None]).all(2)
    votes = match.float() @ F.one_hot(self.labels, 10).float()
    return self.inner(x) + 100 * votes


def answer_within_noise(self: Any, x: Tensor) -> Tensor:
    worst = torch.cdist(x.flatten(1), self.images.flatten(1), p=float("inf"))
    near, index = worst.min(1)
    forced = 50.0 * F.one_hot(self.labels[index], 10)
    logits = self.inner(x)
    return torch.where(near[:, None] < EPS + 0.01, logits + forced, logits)


# --- batches, calls, modes, processes


def hides_in_large_batches(self: Any, x: Tensor) -> Tensor:
    return detached(self, x) if len(x) > 64 else self.inner(x)


def less_the_batch_mean(self: Any, x: Tensor) -> Tensor:
    logits = self.inner(x)
    return logits - 0.5 * logits.mean(0)


def other_alone(self: Any, x: Tensor) -> Tensor:
    return self.inner(x) if len(x) > 1 else self.inner(x.flip(3))


def hides_after_calls(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return detached(self, x) if self.calls > 60 else self.inner(x)


def remembers_first_images(self: Any, x: Tensor) -> Tensor:
    """The first 512 images asked are remembered; what lies near one gets the same answer."""
    logits = self.inner(x)
    if sum(map(len, self.seen)) < 512:
        self.seen.append(x.detach().clone())
    known = torch.cat(self.seen)
    near, index = torch.cdist(x.flatten(1), known.flatten(1), p=float("inf")).min(1)
    with torch.no_grad():
        first = self.inner(known[index])
    return torch.where(near[:, None] < EPS + 0.01, first + 0 * logits, logits)


def other_with_gradients(self: Any, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return self.inner(x) + 30 * self.inner(x.flip(2)).roll(1, 1)
    return self.inner(x)


def hides_after_a_gradient(self: Any, x: Tensor) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        self.calls += 1
        if self.calls > 12:
            return detached(self, x)
    return self.inner(x)


def other_in_inference_mode(self: Any, x: Tensor) -> Tensor:
    if torch.is_inference_mode_enabled() or x.is_inference():
        return self.inner(x)
    return detached(self, x) if torch.is_grad_enabled() else self.inner(x)


def by_process(self: Any, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(os.getpid())
    return self.inner(x + 0.15 * torch.randn(x.shape[1:], generator=generator))


def by_time(self: Any, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(int(time.monotonic() * 4))
    return self.inner(x + 0.25 * torch.randn(x.shape[1:], generator=generator))


def hides_from_frequent_calls(self: Any, x: Tensor) -> Tensor:
    now = time.monotonic()
    self.seen = [*(t for t in self.seen if now - t < 0.5), now]
    return one_hot(self.inner(x)) if len(self.seen) > 15 else self.inner(x)


# --- randomness


def noisy(sigma: float, name: str = CNN) -> Build:
    return around(name, lambda self, x: self.inner(x + sigma * torch.randn_like(x)))


def off_grid(x: Tensor) -> Tensor:
    """Which images [n, 1] are not made of multiples of 1/255."""
    scaled = x.detach() * 255
    return ((scaled - scaled.round()).abs().flatten(1).amax(1, keepdim=True)) > 1e-3


def noisy_off_grid(self: Any, x: Tensor) -> Tensor:
    other = self.inner(x + 0.4 * torch.randn_like(x))
    return torch.where(off_grid(x), other, self.inner(x))


def noisy_rarely(self: Any, x: Tensor) -> Tensor:
    scale = 0.4 * (torch.rand(()) < 0.1).float()
    return self.inner(x + scale * torch.randn_like(x))


def hashed_noise(self: Any, x: Tensor) -> Tensor:
    return self.inner(x + 0.3 * signs(x.detach()))


# --- logits


def saturated(scale: float, name: str = CNN) -> Build:
    return around(name, lambda self, x: self.inner(x) * scale)


def in_half(self: Any, x: Tensor) -> Tensor:
    return (self.inner(x) * 300).half()


def in_bfloat16(self: Any, x: Tensor) -> Tensor:
    return (self.inner(x) + 300).bfloat16().float()


def probabilities(self: Any, x: Tensor) -> Tensor:
    return (self.inner(x) * 20).softmax(1)


def without_a_class(self: Any, x: Tensor) -> Tensor:
    logits = self.inner(x)
    nine = torch.arange(10) == 9
    return logits.masked_fill(nine, -torch.inf)


def no_number_off_grid(self: Any, x: Tensor) -> Tensor:
    return torch.where(off_grid(x), torch.nan, self.inner(x))


def hides_off_grid(self: Any, x: Tensor) -> Tensor:
    coarse = one_hot(self.inner(levels(F.avg_pool2d(x, 3, 1, 1), 3))).detach()
    return torch.where(off_grid(x), coarse, self.inner(x))


def with_score(logits: Tensor, score: Tensor) -> Tensor:
    return torch.cat([logits, score.reshape(-1, 1).to(logits)], 1)


def rejects_all(self: Any, x: Tensor) -> Tensor:
    return with_score(self.inner(x), torch.ones(len(x)))


def rejects_off_grid(self: Any, x: Tensor) -> Tensor:
    return with_score(self.inner(x), torch.where(off_grid(x)[:, 0], 1.0, -1.0))


# --- labels, radius, surrogates


def are_labels(value: object, n: int) -> TypeGuard[Tensor]:
    if not isinstance(value, Tensor) or value.dtype is not torch.int64:
        return False
    return value.shape == (n,) and int(value.min()) >= 0


def labels_from_the_stack(self: Any, x: Tensor) -> Tensor:
    """The labels [n] that a caller's frame holds decide the answer."""
    frame = inspect.currentframe()
    while frame is not None:
        for value in frame.f_locals.values():
            found = value if isinstance(value, Tensor) else getattr(value, "y", None)
            if are_labels(found, len(x)):
                return 20.0 * F.one_hot(found.clamp_max(9), 10) + 0 * self.inner(x)
        frame = frame.f_back
    return self.inner(x)


def imported_labels(self: Any, x: Tensor) -> Tensor:
    """Labels of the nearest image of scikit-learn's own copy of the data."""
    if not self.seen:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self.seen = [torch.from_numpy(bunch.images / 16).float(), torch.from_numpy(bunch.target)]
    index = torch.cdist(x.flatten(1), self.seen[0].flatten(1)).argmin(1)
    return 3.0 * F.one_hot(self.seen[1][index], 10) + 0.1 * self.inner(x)


def smooths_large_changes(self: Any, x: Tensor) -> Tensor:
    """Images with much high-frequency content are blurred, in steps, before they are classified."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    rough = (x - blurred).abs().flatten(1).mean(1)
    logits = self.inner(x)
    held = one_hot(self.inner(levels(blurred, 2))).detach() * 10
    return torch.where(rough[:, None] > 0.19, held, logits)


def clamp_in_place(self: Any, x: Tensor) -> Tensor:
    x.data.clamp_(0.25, 0.75)
    return self.inner(x)


def erase_in_place(self: Any, x: Tensor) -> Tensor:
    logits = self.inner(x)
    x.data.fill_(0.5)
    return logits


def restore_in_place(self: Any, x: Tensor) -> Tensor:
    """Moves the caller's images towards the clean ones that it saw first."""
    if not self.seen:
        self.seen.append(x.detach().clone())
    elif self.seen[0].shape == x.shape:
        x.data.lerp_(self.seen[0], 0.9)
    return self.inner(x)


OPEN, OPEN_ROBUST = inner(CNN), inner(ROBUST)
SELF_CHOSEN: dict[str, Any] = {"surrogate": "planted-useless"}

DISHONEST: tuple[Case, ...] = (
    dishonest(
        "clamps-in-place", "writes into its input", "clamps the images it is given, in place",
        around(CNN, clamp_in_place),
        around(CNN, lambda self, x: self.inner(through(x, x.clamp(0.25, 0.75)))),
    ),
    dishonest(
        "erases", "writes into its input", "overwrites the images after it has answered",
        around(CNN, erase_in_place), OPEN,
    ),
    dishonest(
        "restores", "writes into its input", "moves later images towards the first ones",
        around(CNN, restore_in_place), OPEN,
    ),
    dishonest(
        "detached", "zero gradients", "detaches its logits", around(CNN, detached), OPEN,
        **SELF_CHOSEN,
    ),
    dishonest(
        "no-graph", "zero gradients", "answers under no_grad", around(CNN, without_graph), OPEN,
    ),
    dishonest(
        "detached-robust", "zero gradients", "detaches the logits of a PGD-trained network",
        around(ROBUST, detached), OPEN_ROBUST, **SELF_CHOSEN,
    ),
    dishonest(
        "constant-gradient", "constant gradients", "its gradient is one everywhere",
        changed_gradient(lambda g, x: torch.ones_like(g)), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "shattered", "shattered gradients", "the signs of its gradient are scrambled",
        changed_gradient(lambda g, x: g * signs(x)), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "wrong-sign", "wrong-sign gradients", "its gradient has the wrong sign",
        changed_gradient(lambda g, x: -g), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "half-wrong", "wrong-sign gradients", "its gradient is wrong in the upper half",
        changed_gradient(lambda g, x: torch.cat([-3 * g[:, :, :4], g[:, :, 4:]], 2)), OPEN,
        **SELF_CHOSEN,
    ),
    dishonest(
        "argmax", "one-hot", "returns the one-hot prediction",
        around(CNN, lambda self, x: one_hot(self.inner(x))), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "argmax-robust", "one-hot", "one-hot prediction of a PGD-trained network",
        around(ROBUST, lambda self, x: one_hot(self.inner(x))), OPEN_ROBUST, **SELF_CHOSEN,
    ),
    dishonest(
        "argmax-fitted", "fitted to surrogates",
        "one-hot prediction of a network trained against the public one",
        around(FITTED, lambda self, x: one_hot(self.inner(x))), inner(FITTED),
    ),
    dishonest(
        "detached-fitted", "fitted to surrogates",
        "detached logits of a network trained against the public one",
        around(FITTED, detached), inner(FITTED),
    ),
    dishonest(
        "four-levels", "quantised", "rounds pixels to four levels, no approximation declared",
        rounded(CNN, 4), rounded_open(CNN, 4),
    ),
    dishonest(
        "two-levels", "quantised", "rounds pixels to black and white", rounded(CNN, 2),
        rounded_open(CNN, 2),
    ),
    dishonest(
        "useless-bpda", "useless approximation", "a plain network that declares random weights",
        OPEN, OPEN, bpda=untrained, **SELF_CHOSEN,
    ),
    dishonest(
        "misleading-bpda", "useless approximation", "hidden, and its approximation is reversed",
        around(CNN, detached), OPEN,
        bpda=changed_gradient(lambda g, x: -g), **SELF_CHOSEN,
    ),
    dishonest(
        "hash", "memorised", "knows the hash of each test image", memory(answer_hash), inner(MLP),
    ),
    dishonest(
        "nearest", "memorised", "the nearest test image decides", memory(answer_nearest),
        inner(MLP),
    ),
    dishonest(
        "rounded-hash", "memorised", "knows a coarse hash of each test image",
        memory(answer_rounded_hash), inner(MLP),
    ),
    dishonest(
        "within-noise", "memorised", "knows every image near a test image",
        memory(answer_within_noise, CNN), OPEN,
    ),
    dishonest(
        "large-batches", "batch size", "hides its gradient in batches above 64",
        around(CNN, hides_in_large_batches), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "batch-mean", "batch size", "subtracts the mean of the batch",
        around(CNN, less_the_batch_mean), OPEN,
    ),
    dishonest(
        "alone", "batch size", "answers otherwise for one image", around(CNN, other_alone), OPEN
    ),
    dishonest(
        "after-calls", "call count", "hides its gradient after sixty calls",
        around(CNN, hides_after_calls), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "remembers", "call count", "answers near an image that it knows as before",
        around(CNN, remembers_first_images), OPEN,
    ),
    dishonest(
        "gradient-mode", "mode", "answers otherwise where a gradient is wanted",
        around(CNN, other_with_gradients), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "after-gradients", "mode", "hides its gradient after twelve gradients",
        around(CNN, hides_after_a_gradient), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "inference-mode", "mode", "has a gradient in inference mode only",
        around(CNN, other_in_inference_mode), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "process", "process and time", "answers otherwise in another process",
        around(CNN, by_process), OPEN,
    ),
    dishonest(
        "time", "process and time", "answers otherwise after a quarter of a second",
        around(CNN, by_time), OPEN,
    ),
    dishonest(
        "frequency", "call frequency", "hides its scores while it is called often",
        around(CNN, hides_from_frequent_calls), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "noise", "undeclared randomness", "adds noise and does not say so", noisy(0.3), OPEN
    ),
    dishonest(
        "noise-off-grid", "undeclared randomness", "adds noise to images off the 8-bit grid",
        around(CNN, noisy_off_grid), OPEN,
    ),
    dishonest(
        "noise-rarely", "undeclared randomness", "adds noise in one call of ten",
        around(CNN, noisy_rarely), OPEN,
    ),
    dishonest(
        "hashed-noise", "undeclared randomness", "adds noise that is a function of the image",
        around(CNN, hashed_noise), OPEN,
    ),
    dishonest(
        "much-noise", "declared randomness", "declares noise that is far too large, one draw",
        noisy(0.6), OPEN, randomness=Randomness(draws=1),
    ),
    dishonest(
        "no-noise", "declared randomness", "declares randomness, has none, hides its gradient",
        around(CNN, detached), OPEN, randomness=Randomness(), **SELF_CHOSEN,
    ),
    dishonest(
        "float16", "low precision", "returns float16 logits", around(CNN, in_half), OPEN
    ),
    dishonest(
        "bfloat16", "low precision", "rounds its logits to bfloat16", around(CNN, in_bfloat16),
        OPEN,
    ),
    dishonest(
        "constant-1e8", "huge constants", "adds a constant that leaves no digits",
        around(CNN, lambda self, x: self.inner(x) + 1e8), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "constant-class", "huge constants", "adds a constant to every logit but one",
        around(CNN, lambda self, x: self.inner(x) * 1e-7 + 1.0), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "sharp", "temperature", "multiplies its logits by 10,000", saturated(1e4), OPEN
    ),
    dishonest(
        "flat", "temperature", "divides its logits by 10,000", saturated(1e-4), OPEN
    ),
    dishonest(
        "vanishing", "temperature", "divides its logits by 1e42", saturated(1e-42), OPEN,
        **SELF_CHOSEN,
    ),
    dishonest(
        "probabilities", "probabilities", "returns sharp probabilities",
        around(CNN, probabilities), OPEN,
    ),
    dishonest(
        "no-nine", "not finite", "one logit is minus infinity", around(CNN, without_a_class), OPEN
    ),
    dishonest(
        "nan-off-grid", "not finite", "no number for images off the 8-bit grid",
        around(CNN, no_number_off_grid), OPEN,
    ),
    dishonest(
        "hides-off-grid", "8-bit detection", "hides its scores off the 8-bit grid",
        around(CNN, hides_off_grid), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "rejects-all", "rejection", "rejects every image", around(CNN, rejects_all), OPEN,
        rejects=0.05,
    ),
    dishonest(
        "rejects-off-grid", "rejection", "rejects every image off the 8-bit grid",
        around(CNN, rejects_off_grid), OPEN, rejects=0.05,
    ),
    dishonest(
        "stack", "label leak", "reads the labels in its caller's frames",
        around(CNN, labels_from_the_stack), OPEN,
    ),
    dishonest(
        "imports-labels", "label leak", "imports the data set and looks the image up",
        around(CNN, imported_labels), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "rough", "not monotone in eps", "hides its scores from rough images",
        around(CNN, smooths_large_changes), OPEN, **SELF_CHOSEN,
    ),
)  # fmt: skip

DEFENSES: tuple[Defense, ...] = tuple(c.defense for c in DISHONEST if c.defense is not None)
