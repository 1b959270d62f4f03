"""A surrogate model learned from a defense's predicted labels alone (arXiv:1602.02697).

No author can choose it: it needs no gradient, no score and no training code of the defense.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError
from bench.engine.model_access import freeze
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import KeyedRandomNumbers, example_key
from bench.training.state import seeded_by_name

SURROGATE_VERSION = 1
"""Version of this module; raised by any change that may alter a learned weight."""
HELD_OUT = 10  # every tenth of them measures the agreement and is not learned from
BATCH = 128
PEAK_RATE = 2e-3  # of Adam, falling to zero along a cosine
ASCENT_STEPS = 2  # of the surrogate's own adversarial images

Labels = Callable[[Tensor], Tensor]
"""Images [n, C, H, W] in [0, 1] to predicted labels [n] int64: the only access to the defense."""


@dataclass(frozen=True)
class LabelSurrogateRecipe:
    """How a surrogate is learned from labels. Raises BenchError for a value out of range."""

    name: str
    architecture: str = "small-cnn"
    """A name of `ARCHITECTURES`."""
    epochs: int = 20
    """Passes over the images in each round; a quarter of them for colour images."""
    rounds: int = 0
    """Rounds after the first in which its adversarial images are labelled by the defense and added.

    Each starts with the weights of the round before it.
    """
    adversarial: bool = False
    """Whether each batch is replaced by its adversarial images, labelled by the defense."""
    members: int = 1
    """Networks whose log-probabilities are averaged."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise BenchError(
                f"the surrogate recipe {self.name} names the architecture {self.architecture!r}; "
                f"known: {', '.join(ARCHITECTURES)}."
            )
        if min(self.epochs, self.members) < 1 or self.rounds < 0:
            raise BenchError(
                f"the surrogate recipe {self.name} has {self.epochs} epochs, {self.members} "
                f"members and {self.rounds} rounds; at least 1, 1 and 0 are needed."
            )

    @property
    def uses_set(self) -> bool:
        """Whether the weights depend on the perturbation set."""
        return self.adversarial or self.rounds > 0


@dataclass(frozen=True)
class LearnedSurrogate:
    """A surrogate model, and how it was learned."""

    module: nn.Module
    """Images [n, C, H, W] in [0, 1] to logits [n, K]; in eval mode, its parameters frozen."""
    queries: int
    """Images whose labels were asked for."""
    agreement: float
    """Share of the held-out training images to which it gives the defense's label."""
    digest: str = ""
    """Of recipe, defense, training images and weights; empty where `load_or_learn` was not used."""


class AverageOfMembers(nn.Module):
    """The mean of the log-probabilities of several networks."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to log-probabilities [n, K]."""
        return torch.stack([F.log_softmax(one(images), 1) for one in self.members]).mean(0)


class LabelQueries:
    """The labels of a defense, validated and counted."""

    def __init__(self, labels: Labels, classes: int) -> None:
        self.labels, self.classes, self.count = labels, classes, 0

    def __call__(self, images: Tensor) -> Tensor:
        """The defense's labels [n] int64 of images [n, C, H, W], which it gets as a copy.

        Raises PluginError for anything but [n] int64 labels of known classes.
        """
        with torch.no_grad():
            answer = self.labels(images.detach().clone())
        wrong = why_no_labels(answer, len(images), self.classes)
        if wrong:
            raise PluginError(
                f"the labels of the defense {wrong}; int64 [{len(images)}] from 0 to "
                f"{self.classes - 1} was expected."
            )
        self.count += len(images)
        return answer.detach().to(images.device)


def why_no_labels(answer: object, count: int, classes: int) -> str:
    """Why an answer is not a tensor of labels [n] int64, as the end of a sentence; else empty."""
    if not isinstance(answer, Tensor):
        return f"are {type(answer).__name__}"
    if answer.dtype != torch.int64 or answer.shape != (count,):
        return f"are {answer.dtype} {list(answer.shape)}"
    outside = answer[(answer < 0) | (answer >= classes)]
    return f"contain {int(outside[0])}" if len(outside) else ""


def learn_from_labels(
    labels: Labels,
    images: Tensor,
    classes: int,
    ball: PerturbationSet,
    recipe: LabelSurrogateRecipe,
    *,
    report: Callable[[str], None] | None = None,
    heartbeat: Callable[[], None] | None = None,
) -> LearnedSurrogate:
    """Learn a surrogate model from the labels that a defense gives to images [n, C, H, W].

    Torch's global random state is left as it was.

    Args:
        labels: the defense; called without gradients, on copies, with at most BATCH images.
        images: training images in [0, 1]; every tenth is held out.
        classes: K, the number of classes.
        ball: the perturbation set in which the surrogate is attacked later.
        recipe: how it is learned.
        report: called with one line of text per epoch.
        heartbeat: called after each batch, so that a lease can be extended.

    Raises:
        BenchError: for fewer than two images, or classes.
        PluginError: where `labels` returns anything but [n] int64 labels of known classes.
    """
    if len(images) < 2 or classes < 2:
        raise BenchError(
            f"{len(images)} training images of {classes} classes were given to learn a surrogate "
            "from; at least 2 of each are needed."
        )
    held_out = torch.arange(len(images), device=images.device) % HELD_OUT == HELD_OUT - 1
    held_out[-1] = True
    learning = SurrogateTraining(
        LabelQueries(labels, classes), images[~held_out], ball, recipe,
        report or (lambda _: None), heartbeat or (lambda: None),
    )  # fmt: skip
    with torch.enable_grad():
        learning.run()
    module = freeze(learning.module)
    with torch.no_grad():
        agrees = module(images[held_out]).argmax(1) == learning.ask(images[held_out])
    return LearnedSurrogate(module, learning.ask.count, float(agrees.float().mean()))


class SurrogateTraining:
    """The training of one surrogate; `run` does all of it."""

    def __init__(
        self,
        ask: LabelQueries,
        images: Tensor,
        ball: PerturbationSet,
        recipe: LabelSurrogateRecipe,
        report: Callable[[str], None],
        heartbeat: Callable[[], None],
    ) -> None:
        self.ask, self.images, self.ball, self.recipe = ask, images, ball, recipe
        self.report, self.heartbeat = report, heartbeat
        shape = (images.shape[1], images.shape[2], images.shape[3])
        self.members = initial_members(recipe, shape, ask.classes, images.device)
        self.module = AverageOfMembers(self.members)
        self.batches = 0
        """Batches so far: with the seed the key of the random points."""

    def run(self) -> None:
        """Learn from the images' labels, and in each round from adversarial images as well."""
        labels = torch.cat([self.ask(part) for part in torch.split(self.images, BATCH)])
        x, y = self.images, labels
        for number in range(self.recipe.rounds + 1):
            if number:
                parts = zip(
                    torch.split(self.images, BATCH), torch.split(labels, BATCH), strict=True
                )
                added = [self.adversarial_batch(*part) for part in parts]
                x = torch.cat([x, *(images for images, _ in added)])
                y = torch.cat([y, *(found for _, found in added)])
            self.learn(number, x, y)

    def learn(self, number: int, x: Tensor, y: Tensor) -> None:
        """The epochs of round `number` on images x [n, C, H, W] with labels y [n]."""
        epochs = epoch_count(self.recipe, x.shape[1])
        optimiser = torch.optim.Adam([{"params": self.module.parameters()}], PEAK_RATE)
        for epoch in range(epochs):
            orders = shuffled_batches(self.recipe.seed, number * epochs + epoch, len(x))
            total = 0.0
            for place, rows in enumerate(orders):
                done = (epoch + place / len(orders)) / epochs
                optimiser.param_groups[0]["lr"] = PEAK_RATE * (1 + math.cos(math.pi * done)) / 2
                batch = x[rows.to(x.device)], y[rows.to(y.device)]
                if self.recipe.adversarial:
                    batch = self.adversarial_batch(*batch)
                total += self.descend(optimiser, *batch) * len(rows)
                self.heartbeat()
            self.report(
                f"round {number + 1}/{self.recipe.rounds + 1}, epoch {epoch + 1}/{epochs}, "
                f"loss {total / len(x):.4f}, {self.ask.count} labels"
            )

    def adversarial_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial images [n, C, H, W] of one member, in turn, and the defense's labels [n]."""
        key = example_key(
            self.recipe.seed, "surrogate", torch.arange(len(x), device=x.device),
            torch.full((len(x),), self.batches, device=x.device),
        )  # fmt: skip
        member = self.members[self.batches % len(self.members)]
        self.batches += 1
        adv = ascend(member, x, y, self.ball, KeyedRandomNumbers(key, torch.zeros_like(key)))
        return adv, self.ask(adv)

    def descend(self, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
        """One step of every member on images x [n, C, H, W] with labels y [n]; their mean loss."""
        losses = torch.stack([F.cross_entropy(member(x), y) for member in self.members])
        optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return float(losses.detach().mean())


def ascend(
    model: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet, draws: KeyedRandomNumbers
) -> Tensor:
    """Points of the set with a high cross-entropy, for x [n, C, H, W] with labels y [n]; detached.

    From a random point, each step goes a part of the way to the point of the set that is farthest
    along the gradient: Frank-Wolfe, which in L1 changes many pixels at once.
    """
    adv = ball.sample(x, draws)
    for _ in range(ASCENT_STEPS):
        leaf = adv.detach().requires_grad_()
        loss = F.cross_entropy(model(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        adv = torch.lerp(leaf.detach(), ball.farthest(gradient, x).to(x.dtype), 0.5)
    return ball.project(adv, x).to(x.dtype)


def initial_members(
    recipe: LabelSurrogateRecipe,
    shape: tuple[int, int, int],
    classes: int,
    device: torch.device,
) -> list[nn.Module]:
    """The untrained networks, from torch's generator seeded by the recipe."""
    make = ARCHITECTURES[recipe.architecture]
    with seeded_by_name(f"surrogate {recipe.seed}", torch.device("cpu")):
        return [make(shape, classes).to(device) for _ in range(recipe.members)]


def epoch_count(recipe: LabelSurrogateRecipe, channels: int) -> int:
    """Epochs of one round: those of the recipe, for colour images a quarter, at least one."""
    return recipe.epochs if channels == 1 else max(1, recipe.epochs // 4)


def shuffled_batches(seed: int, epoch: int, count: int) -> tuple[Tensor, ...]:
    """Row numbers of each batch, in an order keyed by (seed, epoch); near-equal sizes."""
    rows = torch.arange(count)
    key = example_key(seed, "surrogate order", rows, torch.full_like(rows, epoch))
    return key.argsort(stable=True).tensor_split(math.ceil(count / BATCH))


def small_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two convolutions and a hidden layer, twice as wide for colour images; no normalisation.

    The stride of the first one leaves about 16 x 16 places of images [n, *shape], so that the cost
    is bounded: about 2 million multiplications for a grey image, 9 million for a colour one.
    """
    channels, height, width = shape
    stride = max(1, round(math.sqrt(height * width) / 16))
    maps = 32 if channels == 1 else 64
    layers = [
        nn.Conv2d(channels, maps, 2 * stride + 1, stride, padding=stride), nn.ReLU(),
        nn.Conv2d(maps, 2 * maps, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(),
    ]  # fmt: skip
    features = halved(-(-height // stride)) * halved(-(-width // stride)) * 2 * maps
    head = (nn.Linear(features, 4 * maps), nn.ReLU(), nn.Linear(4 * maps, classes))
    return nn.Sequential(*layers, *head)


def halved(size: int) -> int:
    """Half of a size, rounded up."""
    return (size + 1) // 2


ARCHITECTURES: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "small-cnn": small_cnn
}
"""By name: image shape [C, H, W] and number of classes -> an untrained network."""

LIGHT = LabelSurrogateRecipe("light", epochs=20, members=3)
"""For every defense; without adversarial images, so that one serves all perturbation sets."""
STRONG = LabelSurrogateRecipe("strong", epochs=64, adversarial=True, members=3)
"""Answers a warning of a gradient-masking check."""
RECIPES = {"learned": LIGHT, "learned-strong": STRONG}
"""By the `source` of an attack."""
