"""Defenses under a weak attack and under the strongest one; writes docs/weak-and-strong-attacks.md.

    python -m tests.benchmarks.weak_and_strong_attacks [--examples N] [--out PAGE]

The weak attack of each defense is one with which it was, or could be, called robust; the strongest
is the attack of the list that leaves the fewest examples, and the worst case is over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from tests.benchmarks.adaptive_evaluation import AdaptiveEvaluation

ATTACKS = ("random", "fgsm", "pgd", "pgd-margin", "transfer")
PAGE = Path(__file__).parents[2] / "docs" / "weak-and-strong-attacks.md"
HEAD = """# Defenses under a weak attack and under the strongest one

Each row has a defense, its robust accuracy under a weak attack, and under the attack of the list
that leaves the fewest examples. Figures are shares of the first {n} digits that stay robust under
`digits-linf` (radius .2), each adversarial example verified by the referee. The worst case counts
the examples that no attack of the list ({attacks}) breaks. This page is written by

    uv run python -m tests.benchmarks.weak_and_strong_attacks

"""


@dataclass(frozen=True)
class WeakEvaluation:
    """A defense, and a weak attack to evaluate it with."""

    title: str
    defense: str
    attack: str
    """The weak attack."""
    shows: str
    """What the difference to the strongest attack shows, as a sentence."""


EVALUATIONS = (
    WeakEvaluation(
        "no defense", "undefended", "random", "Random noise says nothing about robustness."
    ),
    WeakEvaluation(
        "dropout", "cnn-dropout", "random", "Regularisation for clean images is no defense."
    ),
    WeakEvaluation(
        "weight decay", "weight-decay", "random", "Smaller weights leave the gradient useful."
    ),
    WeakEvaluation("crops", "crop", "random", "Attacks differentiate through the transformation."),
    WeakEvaluation(
        "adversarial training, one step", "fgsm-training", "fgsm",
        "Robustness to one step has to be measured with many.",
    ),
    WeakEvaluation(
        "distillation", "distillation", "pgd",
        "Its cross-entropy has no gradient; a loss on logits has.",
    ),
    WeakEvaluation(
        "logit pairing", "alp", "fgsm", "More or longer steps, and other losses, break more."
    ),
    WeakEvaluation(
        "adversarial training, PGD", "pgd-training", "pgd",
        "The attack it was trained with is close to the worst case.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class AttackedRow:
    """The figures of one defense: shares of all examples."""

    evaluated: WeakEvaluation
    clean: float
    under_weak: float
    strongest: str
    left: float
    worst: float


def measure(
    evaluation: AdaptiveEvaluation, evaluations: Sequence[WeakEvaluation] = EVALUATIONS
) -> Iterator[AttackedRow]:
    """Evaluate the defenses, one after the other."""
    for evaluated in evaluations:
        meant = evaluation.robust(evaluated.defense, evaluated.attack)
        worst, strongest = evaluation.worst(evaluated.defense, ATTACKS)
        left = evaluation.robust(evaluated.defense, strongest)
        assert meant is not None and left is not None
        shares = (float(bits.mean()) for bits in (meant, left, worst))
        under_weak, alone, together = shares
        clean = float(evaluation.clean(evaluated.defense).mean())
        yield AttackedRow(evaluated, clean, under_weak, strongest, alone, together)


def page(rows: Sequence[AttackedRow], n: int) -> str:
    """The documentation page."""
    lines = [
        "| kind | defense | clean | weak attack | strongest attack | worst case | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        evaluated = row.evaluated
        lines.append(
            f"| {evaluated.title} | `{evaluated.defense}` | {row.clean:.1%} |"
            f" `{evaluated.attack}` {row.under_weak:.1%} | `{row.strongest}` {row.left:.1%} |"
            f" {row.worst:.1%} | {evaluated.shows} |"
        )
    return HEAD.format(n=n, attacks=", ".join(ATTACKS)) + "\n".join(lines) + "\n"


def main(
    examples: Annotated[int, typer.Option(min=1, help="The first N digits.")] = 128,
    out: Annotated[Path, typer.Option(help="The page.")] = PAGE,
) -> None:
    """Evaluate every defense and write the page."""
    torch.set_num_threads(1)
    rows = []
    for row in measure(AdaptiveEvaluation(examples=examples)):
        rows.append(row)
        print(row, flush=True)
    out.write_text(page(rows, examples))


if __name__ == "__main__":
    typer.run(main)
