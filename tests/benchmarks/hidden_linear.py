"""A linear classifier behind gradients that mislead, beside AutoAttack and the exact answer.

Usage: `python -m tests.benchmarks.hidden_linear [--examples 500] [--json OUT]`

Each defense has the predicted labels of one linear classifier on random colour images of 8 x 8
pixels, so that the exact robust accuracy is known. The first column is that figure, the second the
ranked figure of this project under the protocol of its own white-box leaderboards, the third the
figure of pyautoattack's standard suite with its default parameters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.evaluation.built_defense import RunSettings
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Dataset, Defense, Images, Linf, Loader, Split, ThreatModel
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.results.leaderboards import find_leaderboard
from bench.results.ranking import RankingRow, load_ranking
from bench.store import Store
from plugins.threats._protocols import white_box_protocol
from tests.benchmarks.peer_attacks import autoattack

EPS = Fraction(1, 100)
SHAPE, CLASSES, PIXELS = (3, 8, 8), 10, 192
TRAIN = 1000
MARGIN = 16  # grey levels of every pixel from black and white, so that no step meets the box


class LinearClassifier(nn.Module):
    """The classifier whose labels all defenses give: images [n, 3, 8, 8] to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(torch.randn(CLASSES, PIXELS, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T


class NoGradient(torch.autograd.Function):
    """The identity, with a gradient of zero."""

    @staticmethod
    def forward(ctx: object, images: Tensor) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


class RandomGradient(NoGradient):
    """The identity, with a random gradient."""

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return torch.randn_like(grads[0])


class Masked(nn.Module):
    """The linear classifier with another function before it and after it."""

    def __init__(
        self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.linear, self.before, self.after = LinearClassifier(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.linear(self.before(images)))


def unchanged(values: Tensor) -> Tensor:
    """The values themselves."""
    return values


def one_hot(logits: Tensor) -> Tensor:
    """One at the largest of the logits [n, K], zero elsewhere; its gradient is zero, not absent."""
    return (0 * logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)


DEFENSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "plain": (unchanged, unchanged),
    "zero-gradient": (NoGradient.apply, unchanged),
    "random-gradient": (RandomGradient.apply, unchanged),
    "scaled-1e4": (unchanged, lambda logits: 1e4 * logits),
    "softmax": (unchanged, lambda logits: logits.softmax(1)),
    "one-hot": (unchanged, one_hot),
}
"""Name -> what stands before and after the linear classifier; none changes a predicted label."""


def images(count: int) -> Images:
    """TRAIN training images and `count` test images, labelled by the classifier itself."""
    rng = np.random.default_rng(11)
    pixels = rng.integers(MARGIN, 256 - MARGIN, (TRAIN + count, *SHAPE), dtype=np.uint8)
    with torch.no_grad():
        labels = LinearClassifier()(torch.tensor(pixels).float() / 255).argmax(1).numpy()
    train, test = slice(None, TRAIN), slice(TRAIN, None)
    return Images(
        Split(pixels[train], labels[train]), Split(pixels[test], labels[test]), np.arange(count)
    )


def exact_robust(count: int) -> int:
    """The number of test images that no perturbation of EPS misclassifies, in closed form.

    Class y holds against j where z_y - z_j > eps ||w_y - w_j||_1, and the box is out of reach.
    """
    test = images(count).test
    model = LinearClassifier()
    with torch.no_grad():
        logits = model(torch.tensor(test.images).double().float() / 255).double()
        weight, y = model.weight.double(), torch.tensor(test.labels)
        gap = logits.gather(1, y[:, None]) - logits
        reach = float(EPS) * (weight[y][:, None] - weight[None]).abs().sum(2)
        holds = gap > reach
        holds.scatter_(1, y[:, None], True)
    return int(holds.all(1).sum())


def built(name: str) -> Callable[[Loader], nn.Module]:
    """The function that builds a defense by name."""
    return lambda loader: Masked(*DEFENSES[name])


def registry(count: int) -> Registry:
    """The registry with the data set, the threat model and the defenses of this program."""
    found = Registry.without_submissions()
    data = Dataset("random-linear", tuple("0123456789"), SHAPE, lambda folder: images(count), count)
    threat = ThreatModel(
        "hidden-linear", data.name, Linf(EPS), examples=count,
        protocol=white_box_protocol("Linf", {"standard": "plain"}),
    )  # fmt: skip
    values: list[tuple[str, Dataset | ThreatModel | Defense]] = [
        ("dataset", data), ("threat", threat),
        *(("defense", Defense(name, built(name), (data.name,), surrogate="plain"))
          for name in DEFENSES),
    ]  # fmt: skip
    for kind, value in values:
        table = getattr(found, f"{kind}s")
        table[value.name] = Registration(value, "built-in", __name__, f"{kind} {value.name}")
    return found


def our_rows(count: int, names: tuple[str, ...]) -> dict[str, RankingRow]:
    """The row of each defense after required and follow-up attacks."""
    selection, settings = Selection(("hidden-linear",), names), RunSettings(torch.device("cpu"))
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(f"sqlite:///{Path(folder) / 'bench.db'}") as store,
    ):
        worker = MatrixWorker(registry(count), store, selection, settings, certifiers="none")
        worker.run()
        rows = load_ranking(store, find_leaderboard(store, "hidden-linear"))
    return {row.defense: row for row in rows}


def autoattack_robust(name: str, count: int) -> int:
    """The number of test images that pyautoattack's standard suite leaves right."""
    test = images(count).test
    x, y = torch.tensor(test.images).float() / 255, torch.tensor(test.labels)
    model = Masked(*DEFENSES[name]).eval()
    adversarial = autoattack()(model, x, y, float(EPS), 0)
    with torch.no_grad():
        return int((model(adversarial).argmax(1) == y).sum())


@dataclass(frozen=True)
class HiddenLinearRow:
    """One defense: the exact count, ours, and AutoAttack's, of all examples."""

    defense: str
    exact: int
    ranked: int
    required: int
    verdict: str
    autoattack: int | None = None


def measured(
    count: int, names: tuple[str, ...] = (), *, peer: bool = True
) -> list[HiddenLinearRow]:
    """The rows of the table, for `count` examples and the named defenses, or all."""
    chosen = names or tuple(DEFENSES)
    exact, ours = exact_robust(count), our_rows(count, chosen)
    rows = [
        HiddenLinearRow(
            name, exact, ours[name].robust_ranked.k, ours[name].robust_required.k,
            ours[name].verdict,
        )
        for name in chosen
    ]  # fmt: skip
    if not peer:
        return rows
    return [replace(row, autoattack=autoattack_robust(row.defense, count)) for row in rows]


def main() -> None:
    """Print the table; with --json write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = measured(asked.examples)
    print(f"{'defense':17}{'exact':>7}{'ranked':>8}{'plain':>7}{'AutoAttack':>12}  verdict")
    for row in rows:
        print(
            f"{row.defense:17}{row.exact:7}{row.ranked:8}{row.required:7}{row.autoattack or 0:12}"
            f"  {row.verdict}"
        )
    if asked.json:
        asked.json.write_text(json.dumps([vars(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
