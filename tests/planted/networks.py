"""Honest networks that planted defenses are built on; trained once, in the weights cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import (
    Defense,
    Fraction,
    InnerAttack,
    Linf,
    Loader,
    Recipe,
    TrainingBatch,
    cross_entropy,
    require_type,
)

EPS = Fraction(51, 255)
CNN, ROBUST, LINEAR, MLP, FITTED = (
    f"planted-{name}" for name in ("cnn", "robust", "linear", "mlp", "fitted")
)
Shape = tuple[int, int, int]


def clean_loss(batch: TrainingBatch) -> Tensor:
    """The cross-entropy [n] of the clean images."""
    return cross_entropy(batch.model(batch.x), batch.y)


def adversarial_loss(batch: TrainingBatch) -> Tensor:
    """The cross-entropy [n] of the inner attack's images."""
    return cross_entropy(batch.model(batch.adv), batch.y)


def transferred_loss(batch: TrainingBatch) -> Tensor:
    """The cross-entropy [n] of clean images and of those that fool the public surrogate."""
    other = require_type(batch.transferred, Tensor, "the transferred images")
    clean = cross_entropy(batch.model(batch.x), batch.y)
    return clean + 2 * cross_entropy(batch.model(other), batch.y)


def cnn(shape: Shape, classes: int) -> nn.Sequential:
    """Two convolutions of 16 and 24 channels and 64 hidden units."""
    channels, height, width = shape
    features = 24 * ((height + 1) // 2) * ((width + 1) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, classes),
    )  # fmt: skip


def linear(shape: Shape, classes: int) -> nn.Sequential:
    """Softmax regression on the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def mlp(shape: Shape, classes: int) -> nn.Sequential:
    """One hidden layer of 24 units."""
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 24), nn.ReLU(), nn.Linear(24, classes))


def smooth_mlp(shape: Shape, classes: int) -> nn.Sequential:
    """One hidden layer of 48 units with tanh."""
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 48), nn.Tanh(), nn.Linear(48, classes))


def pooled(shape: Shape, classes: int) -> nn.Sequential:
    """Average pooling in front of a network, and a global one behind it."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 24, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 64, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


def normalised(shape: Shape, classes: int) -> nn.Sequential:
    """Batch normalisation behind each convolution."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * ((height + 1) // 2) * ((width + 1) // 2), classes),
    )  # fmt: skip


def dropout(shape: Shape, classes: int) -> nn.Sequential:
    """One hidden layer with dropout, which eval mode switches off."""
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, 64), nn.ReLU(), nn.Dropout(0.4), nn.Linear(64, classes)
    )


class Transformer(nn.Module):
    """One block of self-attention over patches of 2 x 2 pixels."""

    def __init__(self, shape: Shape, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(shape[0], width, 2, stride=2)
        self.place = nn.Parameter(0.1 * torch.randn(1, shape[1] // 2 * (shape[2] // 2), width))
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width * self.place.shape[1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, K]."""
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.block(tokens).flatten(1))
        return logits


def trained(recipe: Recipe, name: str, what: str, **record: object) -> Defense:
    """The defense that is the network of a recipe with its trained weights."""

    def build(loader: Loader) -> nn.Module:
        return loader.trained(recipe.model(loader.shape, loader.classes))

    fields = {"quick": False, **record}
    return Defense(name, build, summary=what, recipe=recipe, **fields)  # type: ignore[arg-type]


def recipe(model: object, loss: object = clean_loss, **changes: object) -> Recipe:
    """Twelve epochs of Adam."""
    fields: dict[str, object] = {"epochs": 12, "rate": 3e-3, "schedule": "cosine", "seed": 11}
    return Recipe(model, loss, **{**fields, **changes})  # type: ignore[arg-type]


PGD_INNER = InnerAttack("pgd", Linf(EPS), {"steps": 7, "rate": 2.5 / 7})
CNN_DEFENSE = trained(recipe(cnn), CNN, "A small network trained on clean images.")
ROBUST_DEFENSE = trained(
    recipe(cnn, adversarial_loss, inner=PGD_INNER, epochs=20), ROBUST, "PGD training."
)
LINEAR_DEFENSE = trained(recipe(linear), LINEAR, "Softmax regression.")
MLP_DEFENSE = trained(recipe(mlp), MLP, "One small hidden layer.")
FITTED_DEFENSE = trained(
    recipe(
        cnn, transferred_loss, teacher="undefended",
        transfer=InnerAttack("pgd", Linf(EPS), {"steps": 20, "rate": 0.1}),
    ),
    FITTED,
    "Trained on images that fool the public network.",
)  # fmt: skip


class UntrainedNetwork(nn.Module):
    """A network with random weights."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            self.network = mlp(shape, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, K]."""
        logits: Tensor = self.network(images)
        return logits


def untrained(loader: Loader) -> nn.Module:
    """A network with random weights, which is of no use as an approximation or a surrogate."""
    return UntrainedNetwork(loader.shape, loader.classes)


USELESS = Defense("planted-useless", untrained, summary="Random weights.", quick=False)
NETWORKS = (CNN_DEFENSE, ROBUST_DEFENSE, LINEAR_DEFENSE, MLP_DEFENSE, FITTED_DEFENSE, USELESS)
"""Defenses that cases are built on; `fitted` and `useless` are no cases themselves."""


def one_hot(logits: Tensor) -> Tensor:
    """The one-hot prediction [n, K] of logits [n, K]."""
    return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
