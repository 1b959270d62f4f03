"""Attacks behind a nuisance, over its severity; writes docs/physical.md.

    python -m tests.benchmarks.physical [--out PAGE]

About four minutes of one CPU core; Fashion-MNIST must be in the folder that `BENCH_DATA` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import bench
from bench.engine.problem import attack_once
from bench.evaluation.physical import destruction_rate, labels_over_draws
from bench.plugin import Fraction, Linf, Nuisance, Patch, print_and_scan
from bench.registry.registry import Registry
from tests.plugins.attacks.test_shared_gradient import fashion

PAGE = Path(__file__).parents[2] / "docs" / "physical.md"
EPS = Fraction(1, 10)
SEVERITIES = (0.0, 0.5, 1.0, 2.0, 4.0)
IMAGES = 200
MOVED = Nuisance(shift=1.5, smallest=0.9, largest=1.1, degrees=22.5, draws=8)
MOVES = (0.0, 0.5, 1.0, 2.0)
WIDE, FEW = Fraction(3, 10), 64
SIDES = (0, 2, 4, 6, 8, 10)
"""Sides of square patches in pixels."""
HEAD = f"""# Attacks behind a nuisance

A physical threat model declares a `Nuisance`: how an image changes on its way to the defense. Each
query of an attack is a mean over new draws (EOT), and an example is broken where the goal is
reached on a share of the referee's own draws. Figures are of a small convolutional network on
Fashion-MNIST; at severity 0 the nuisance is the identity.

Written by `uv run python -m tests.benchmarks.physical`.

## Destruction rate of finished examples

The share of adversarial examples that the channel of printing and photographing makes right again
(arXiv:1607.02533), over {IMAGES} images and 20 draws, in L-infinity {EPS}; no attack knows of the
channel. The paper found that examples of one step survive more often than those of many: FGSM's
would then have the smaller rate.

| attack | fooled | """


def destruction(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """The rows of the first table: a destruction rate for each attack and severity."""
    registry = Registry.without_submissions()
    lines = [
        " | ".join(f"severity {s:g}" for s in SEVERITIES) + " |",
        "|---|---:" + "|---:" * len(SEVERITIES) + "|",
    ]
    for name in ("fgsm", "bim", "pgd"):
        attack = registry.find("attack", name).value
        row = torch.arange(len(x))
        adv = attack_once(attack, model, x, y, Linf(EPS), seed=0, example=row)
        fooled = int(((model(x).argmax(1) == y) & (model(adv).argmax(1) != y)).sum())
        rates = [destruction_rate(model, x, adv, y, print_and_scan(s)) for s in SEVERITIES]
        lines.append(f"| {name} | {fooled} | " + " | ".join(f"{r:.3f}" for r in rates) + " |")
    return "\n".join(lines)


def over_severity(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """The second table: the share of fresh draws on which targeted PGD reaches its target."""
    lines = [
        f"""
## Share of draws over severity

The share of 100 fresh draws on which an image is the next class, for targeted PGD in L-infinity
{WIDE} on {FEW} images. The nuisance at severity 1 is
`{MOVED}`.

| attack | """
        + " | ".join(f"severity {s:g}" for s in MOVES) + " |",
        "|---" + "|---:" * len(MOVES) + "|",
    ]  # fmt: skip
    rates: dict[str, list[float]] = {"without EOT": [], "with EOT": []}
    for severity in MOVES:
        nuisance = MOVED.times(severity)
        for title, declared in zip(rates, (None, nuisance), strict=True):
            run = bench.attack(model, x, y, "pgd", eps=WIDE, target_rule="next", nuisance=declared)
            labels = labels_over_draws(model, run.images, nuisance)
            rates[title].append(float((labels == (y + 1) % 10).double().mean()))
    for title, row in rates.items():
        lines.append(f"| PGD {title} | " + " | ".join(f"{rate:.3f}" for rate in row) + " |")
    return "\n".join(lines)


def confidence_by_area(
    model: nn.Module, x: Tensor, y: Tensor, sides: Sequence[int] = SIDES
) -> list[float]:
    """The mean confidence in the true class under patches of rising area in the middle, by PGD.

    The first entry is without a patch.
    """
    pgd = Registry.without_submissions().find("attack", "pgd").value
    row, middle = torch.arange(len(x)), x.shape[2] // 2
    found = []
    for side in sides:
        image = x
        if side:
            ball = Patch(side, side, middle - side // 2, middle - side // 2)
            point = attack_once(pgd, model, x, y, ball, seed=0, example=row)
            image = ball.apply(point, x)
        found.append(float(model(image).softmax(1).gather(1, y[:, None]).mean()))
    return found


def by_area(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """The third table: confidence in the true class against the area of a patch."""
    area = " | ".join(f"{100 * side * side / x[0, 0].numel():.1f} %" for side in SIDES)
    row = " | ".join(f"{value:.2f}" for value in confidence_by_area(model, x, y))
    return f"""
## Confidence against the area of a patch

The mean confidence in the true class over {IMAGES} images, each with a patch of its own in the
middle, whose colours PGD chooses, over the share of the image that it covers.

| area | {area} |
|---|{"---:|" * len(SIDES)}
| confidence | {row} |"""


def page() -> str:
    """The page, from new measurements."""
    model, _, (x, y) = fashion()
    first = HEAD + destruction(model, x[:IMAGES], y[:IMAGES])
    second = over_severity(model, x[:FEW], y[:FEW])
    return f"{first}\n{second}\n{by_area(model, x[:IMAGES], y[:IMAGES])}\n"


def main(out: Annotated[Path, typer.Option(help="The page to write.")] = PAGE) -> None:
    """Measure and write the page."""
    out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
