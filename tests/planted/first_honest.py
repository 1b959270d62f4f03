"""Honest defenses of the first list."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness
from tests.planted import networks
from tests.planted.cases import Build, Case, around, honest, inner
from tests.planted.first_defenses import rounded, rounded_open, with_score
from tests.planted.networks import CNN, MLP, ROBUST, recipe, trained


def named(name: str, what: str, build: Build, **record: object) -> Defense:
    return Defense(f"planted-{name}", build, summary=what, quick=False, **record)  # type: ignore[arg-type]


class Scripted(nn.Module):
    """A compiled network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = torch.jit.trace(network, torch.zeros(2, 1, 8, 8), check_trace=False)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, K]."""
        logits: Tensor = self.network(images)
        return logits


class Mean(nn.Module):
    """The mean of the logits of several networks."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, K]."""
        return torch.stack([part(images) for part in self.parts]).mean(0)


def ensemble(loader: Loader) -> nn.Module:
    return Mean([loader.defense(name) for name in (CNN, MLP, ROBUST)])


def low_confidence(self: Any, x: Tensor) -> Tensor:
    """Rejects where the margin of the logits is small; about one clean image in fifty."""
    logits = self.inner(x)
    best = logits.topk(2, 1).values
    return with_score(logits, 1.0 - (best[:, 0] - best[:, 1]))


def clipped(self: Any, x: Tensor) -> Tensor:
    return self.inner(x).clamp(-6, 6)


TRANSFORMER = trained(recipe(networks.Transformer, epochs=15), "planted-transformer", "Attention.")
TWO = trained(
    recipe(networks.mlp),
    "planted-two-mlp",
    "Two classes.",
    datasets=("planted-two",),
    surrogate="planted-two-linear",
)
TWO_LINEAR = trained(
    recipe(networks.linear),
    "planted-two-linear",
    "Two classes, linear.",
    datasets=("planted-two",),
    surrogate="planted-two-mlp",
)
HUNDRED = trained(
    recipe(networks.smooth_mlp, epochs=20),
    "planted-hundred-mlp",
    "A hundred classes.",
    datasets=("planted-hundred",),
    surrogate="planted-hundred-linear",
)
HUNDRED_LINEAR = trained(
    recipe(networks.linear, epochs=20), "planted-hundred-linear", "A hundred classes, linear.",
    datasets=("planted-hundred",), surrogate="planted-hundred-mlp",
)  # fmt: skip

HONEST: tuple[Case, ...] = (
    honest("an undefended network", networks.CNN_DEFENSE),
    honest("softmax regression", networks.LINEAR_DEFENSE),
    honest("one small hidden layer", networks.MLP_DEFENSE),
    honest("PGD training", networks.ROBUST_DEFENSE),
    honest("two classes", TWO, threat="planted-two-linf"),
    honest("two classes, linear", TWO_LINEAR, threat="planted-two-linf"),
    honest("a hundred classes", HUNDRED, threat="planted-hundred-linf"),
    honest("a hundred classes, linear", HUNDRED_LINEAR, threat="planted-hundred-linf"),
    honest("a block of a transformer", TRANSFORMER),
    honest("batch normalisation in eval mode",
           trained(recipe(networks.normalised), "planted-batchnorm", "Batch normalisation.")),
    honest("dropout in eval mode",
           trained(recipe(networks.dropout), "planted-dropout", "Dropout in training.")),
    honest("average pooling",
           trained(recipe(networks.pooled, epochs=15), "planted-pooled", "Average pooling.")),
    honest("tanh activations",
           trained(recipe(networks.smooth_mlp), "planted-tanh", "Tanh activations.")),
    honest("declared Gaussian noise",
           named("declared-noise", "Small declared noise.",
                 around(CNN, lambda self, x: self.inner(x + 0.1 * torch.randn_like(x))),
                 randomness=Randomness(draws=10)), white_box=inner(CNN)),
    honest("quantised, with a right approximation",
           named("quantised", "Rounds to 16 levels; BPDA is the identity.", rounded(CNN, 16),
                 bpda=inner(CNN)), white_box=rounded_open(CNN, 16)),
    honest("quantised, straight through",
           named("straight-through", "Rounds to 8 levels, straight-through gradient.",
                 rounded(ROBUST, 8), bpda=rounded_open(ROBUST, 8)),
           white_box=rounded_open(ROBUST, 8)),
    honest("flat margins: logits clipped to [-6, 6]",
           named("clipped", "Exact gradients that are zero where logits are clipped.",
                 around(CNN, clipped)), white_box=inner(CNN)),
    honest("a large constant that float32 carries",
           named("constant-1e3", "Adds 1,000 to each logit.",
                 around(CNN, lambda self, x: self.inner(x) + 1e3))),
    honest("wide margins",
           named("wide", "Logits times five.", around(CNN, lambda self, x: 5 * self.inner(x)))),
    honest("a detector of low confidence",
           named("low-confidence", "Rejects images with a small margin.",
                 around(CNN, low_confidence), rejects=0.03)),
    honest("input normalisation inside",
           named("normalises", "Normalises its input and undoes it.",
                 around(CNN, lambda self, x: self.inner((x - 0.3) / 0.35 * 0.35 + 0.3)))),
    honest("a traced network",
           named("traced", "torch.jit.trace of a network.",
                 lambda loader: Scripted(loader.defense(CNN)))),
    honest("an ensemble", named("ensemble", "Mean of three networks.", ensemble)),
)  # fmt: skip
