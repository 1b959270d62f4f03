"""Randomised smoothing: how far a vote under Gaussian noise stays what it is, with a known error.

Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918. The proof is statistical: each one may be wrong
with the declared probability `error`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor, nn

from bench.plugin import (
    Certifier,
    KeyedRandomNumbers,
    PerturbationSet,
    clopper_pearson,
    hookimpl,
    name_to_int64,
    select_column,
)
from plugins.defenses.randomized_smoothing import Smoothed

DRAWS = 2000
ALPHA = 0.001
COPIES_PER_PASS = 32  # noisy copies of an image that are drawn together
ROWS = 64
NORMAL = NormalDist()


class Smoothing:
    """Certifies x when the vote of the label survives every change of length eps.

    If the classifier names y under noise with probability p on x, then it does so with at least
    Phi(Phi^-1(p) - eps / sigma) anywhere within eps. p is bounded from below by Clopper and
    Pearson's limit at confidence 1 - alpha; the label is given, so no first look has to guess it.
    Because the defense votes with finitely many looks, that probability must be so large that a
    vote at any such image is lost with probability alpha at most. Otherwise it abstains.
    """

    name = "smoothing"
    exact = False
    quick = False
    cite = "arXiv:1902.02918"
    summary = "Gaussian randomised smoothing: a statistical certificate of a vote, in L2."

    def __init__(self, draws: int = DRAWS, alpha: float = ALPHA) -> None:
        self.draws, self.error = draws, alpha

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """A sentence for what does not vote under noise, and for other norms than L2."""
        return why_unsupported(self.name, module, ball)

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """[n] bool: right on every image of ball and box, each with probability 1 - error."""
        if not isinstance(module, Smoothed):
            raise TypeError(f"{self.name} came with {type(module).__name__}; it needs a vote.")
        reach = ball.radius + ball.tolerance(x[0].numel())
        due = reach / module.sigma + NORMAL.inv_cdf(required_probability(module.votes, self.error))
        hits = select_column(class_counts(module, x, self.draws), y).tolist()
        sure = [quantile(lower_limit(k, self.draws, self.error)) >= due for k in hits]
        return torch.tensor(sure, device=x.device)


def why_unsupported(name: str, module: nn.Module, ball: PerturbationSet) -> str:
    """Why a vote under Gaussian noise proves nothing here; empty when it can."""
    if type(module) is not Smoothed:
        return f"the model does not vote under Gaussian noise; {name} needs a smoothed one."
    return "" if ball.name == "L2" else f"the norm is {ball.name}; {name} proves radii in L2."


def certified_radius(hits: int, draws: int, sigma: float, alpha: float) -> float:
    """sigma Phi^-1(lower limit of p), the paper's radius; 0 where it abstains."""
    return max(0.0, sigma * quantile(lower_limit(hits, draws, alpha)))


def lower_limit(hits: int, draws: int, alpha: float) -> float:
    """Clopper and Pearson's one-sided limit: p lies below it with probability alpha at most."""
    return cached_limits(hits, draws, 1 - 2 * alpha).low


def required_probability(votes: int, alpha: float) -> float:
    """The least p at which a class misses the majority of the votes with probability alpha."""
    return cached_limits(votes // 2, votes, 1 - 2 * alpha).high


cached_limits = cache(clopper_pearson)
"""The same counts come again and again: for most examples nearly all draws agree."""


def quantile(p: float) -> float:
    """Phi^-1, minus infinity at 0."""
    return NORMAL.inv_cdf(p) if p > 0 else -float("inf")


def class_counts(module: Smoothed, x: Tensor, draws: int) -> Tensor:
    """[n, K] int64: how often the classifier names each class under the noise.

    An image's noise is keyed by its own pixels and by the module's numbers: nothing depends on
    what stands beside it, and no weights can have been made for the draws that they will meet.
    Draws that are written into a module's code, which is not part of the key, are not excluded.
    """
    state = model_digest(module)
    return torch.cat([_batch_counts(module, part, draws, state) for part in torch.split(x, ROWS)])


def model_digest(module: nn.Module) -> bytes:
    """A digest of all parameters and buffers, saved or not, by name."""
    sha = hashlib.sha256()
    for name, value in sorted((*module.named_parameters(), *module.named_buffers())):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(_content(value.detach()))
    return sha.digest()


def _content(value: Tensor) -> bytes:
    return value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _batch_counts(module: Smoothed, x: Tensor, draws: int, state: bytes) -> Tensor:
    key = torch.tensor([_key(state, image) for image in x.cpu()], device=x.device)
    found = []
    for turn, first in enumerate(range(0, draws, COPIES_PER_PASS)):
        noise = KeyedRandomNumbers(key, torch.full_like(key, turn))
        shape = (min(COPIES_PER_PASS, draws - first), *x.shape[1:])
        looks = x[:, None] + module.sigma * noise.normal("smoothing", shape)
        with torch.no_grad():
            logits = module.classifier(looks.flatten(0, 1))
        votes = torch.zeros(len(logits), logits.shape[1], dtype=torch.int64, device=x.device)
        votes.scatter_(1, logits.argmax(1, keepdim=True), 1)
        found.append(votes.view(len(x), -1, logits.shape[1]).sum(1))
    return torch.stack(found).sum(0)


def _key(state: bytes, image: Tensor) -> int:
    return name_to_int64(hashlib.sha256(state + _content(image)).hexdigest())


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Offer smoothing with 2000 draws, wrong in one proof of a thousand at most."""
    yield Smoothing()
