"""Randomized smoothing: a statistical certificate for a vote under Gaussian noise, in L2.

Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918. Each certificate is wrong with at most the
declared probability `error`.
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
COPIES_PER_PASS = 32  # noisy copies of an image in one forward pass
ROWS = 64
NORMAL = NormalDist()


class Smoothing:
    """Certifies x where the vote for the label survives every change of length eps.

    If the classifier predicts y under noise with probability p at x, it does so with at least
    Phi(Phi^-1(p) - eps / sigma) anywhere within eps. p is bounded from below by the Clopper-Pearson
    limit at confidence 1 - alpha; the label is given, so no draws are spent on guessing it. Because
    the defense votes with finitely many draws, that probability must be so large that a vote at any
    such image is lost with probability at most alpha. Otherwise x is not certified.
    """

    name = "smoothing"
    exact = False
    quick = False
    cite = "arXiv:1902.02918"
    summary = "Gaussian randomised smoothing: a statistical certificate of a vote, in L2."

    def __init__(self, draws: int = DRAWS, alpha: float = ALPHA) -> None:
        self.draws, self.error = draws, alpha

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why it cannot certify: no vote under Gaussian noise, or a norm other than L2."""
        return why_unsupported(self.name, module, ball)

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """Whether the label of x [n, C, H, W] holds everywhere, each with probability 1 - error.

        Returns [n] bool. Raises TypeError for a model that is no vote under Gaussian noise.
        """
        if not isinstance(module, Smoothed):
            raise TypeError(
                f"{self.name} needs a vote under Gaussian noise, not {type(module).__name__}."
            )
        reach = ball.radius + ball.tolerance(x[0].numel())
        required = reach / module.sigma + NORMAL.inv_cdf(
            required_probability(module.votes, self.error)
        )
        hits = select_column(class_counts(module, x, self.draws), y).tolist()
        certified = [quantile(lower_limit(k, self.draws, self.error)) >= required for k in hits]
        return torch.tensor(certified, device=x.device)


def why_unsupported(name: str, module: nn.Module, ball: PerturbationSet) -> str:
    """Why a vote under Gaussian noise certifies nothing here; empty where it can."""
    if type(module) is not Smoothed:
        return f"the model is no vote under Gaussian noise; {name} needs one."
    return "" if ball.name == "L2" else f"the norm is {ball.name}; {name} certifies radii in L2."


def certified_radius(hits: int, draws: int, sigma: float, alpha: float) -> float:
    """The paper's certified radius sigma Phi^-1(lower limit of p); 0 where it abstains."""
    return max(0.0, sigma * quantile(lower_limit(hits, draws, alpha)))


def lower_limit(hits: int, draws: int, alpha: float) -> float:
    """The one-sided Clopper-Pearson limit: p is below it with probability at most alpha."""
    return cached_limits(hits, draws, 1 - 2 * alpha).low


def required_probability(votes: int, alpha: float) -> float:
    """The smallest p at which a class loses the vote with probability at most alpha."""
    return cached_limits(votes // 2, votes, 1 - 2 * alpha).high


cached_limits = cache(clopper_pearson)
"""Cached, because for most examples nearly all draws agree and the same counts recur."""


def quantile(p: float) -> float:
    """Phi^-1(p), minus infinity at 0."""
    return NORMAL.inv_cdf(p) if p > 0 else -float("inf")


def class_counts(module: Smoothed, x: Tensor, draws: int) -> Tensor:
    """How often the classifier predicts each class of x [n, C, H, W] under noise: [n, K] int64.

    The noise of an image is keyed by its own pixels and by the module's parameters and buffers, so
    it depends on no other image, and no weights can be fitted to the draws in advance. Draws that
    are written into a module's code, which is not part of the key, are not excluded.
    """
    state = model_digest(module)
    return torch.cat([_batch_counts(module, part, draws, state) for part in torch.split(x, ROWS)])


def model_digest(module: nn.Module) -> bytes:
    """SHA-256 of all parameters and buffers by name, also of those that no weights file holds."""
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
        copies = x[:, None] + module.sigma * noise.normal("smoothing", shape)
        with torch.no_grad():
            logits = module.classifier(copies.flatten(0, 1))
        votes = torch.zeros(len(logits), logits.shape[1], dtype=torch.int64, device=x.device)
        votes.scatter_(1, logits.argmax(1, keepdim=True), 1)
        found.append(votes.view(len(x), -1, logits.shape[1]).sum(1))
    return torch.stack(found).sum(0)


def _key(state: bytes, image: Tensor) -> int:
    return name_to_int64(hashlib.sha256(state + _content(image)).hexdigest())


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Register smoothing with 2000 draws and an error of 0.001."""
    yield Smoothing()
