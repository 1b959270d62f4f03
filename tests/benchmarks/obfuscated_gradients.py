"""Nine defenses of arXiv:1802.00420 at small scale: a plain attack beside the follow-up attacks.

    python -m tests.benchmarks.obfuscated_gradients [--examples N] [--defense NAME]... [--json OUT]

Plain is PGD with the gradient of one draw of the defense itself, without what it declares; for PGD
training with the 20 starts of its paper (arXiv:1706.06083, table 1). The follow-up attacks use its
BPDA approximation and its number of draws, and transfer or query labels.
"""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from tests.benchmarks.adaptive_evaluation import AdaptiveEvaluation

SHATTERED, STOCHASTIC, VANISHING = "shattered", "stochastic", "vanishing"
DETECTION, TRAINING = "detection", "adversarial training"
PLAIN = "pgd"
FOLLOW_UPS = (
    "pgd", "pgd-margin", "apgd-ce", "apgd-t-nearest", "transfer-standard", "transfer-robust",
    "transfer-learned-strong", "square", "hopskipjump-all", "joint-pgd",
)  # fmt: skip
MOST_LEFT = {SHATTERED: 0.3, VANISHING: 0.3, STOCHASTIC: 0.15}
"""Share that may stay robust under the follow-up attacks, by kind of gradient masking."""
LEAST_FALL = {SHATTERED: 0.25, VANISHING: 0.25}
"""Share that the follow-up attacks must break beyond the plain one."""
MOST_MOVED = 0.03
"""Share by which PGD training may differ between plain and follow-up."""


NOTES = {
    "pgd-training": """With 500 digits PGD with 20 starts leaves 57.8 % of `pgd-training` (289)
and the worst case 57.0 % (285): it moves by 0.8 points. PGD with one start leaves 62.2 % (311),
62.0 % (310) and 61.0 % (305) of the networks that three machines trained, 3.2 to 5.2 points above
the worst case: one start is a weak attack here, and no check warns of masked gradients
([Misleading gradients](performance.md)).""",
}
"""What larger evaluations show of a row, by defense."""


@dataclass(frozen=True)
class Counterpart:
    """A defense of the paper and the one of this project that stands for it."""

    paper: str
    defense: str
    kind: str
    printed: str
    """The accuracy that the paper states under its own attack; empty for an addition."""
    own_attack: str = PLAIN
    """The plain attack: that of the paper itself, where it is stronger than PGD with one start."""


COUNTERPARTS = (
    Counterpart("thermometer encoding (Buckman 2018)", "thermometer", SHATTERED, "0 %"),
    Counterpart("local intrinsic dimensionality (Ma 2018)", "detector-lid", DETECTION, "5 %"),
    Counterpart("input transformations (Guo 2018): JPEG", "jpeg", SHATTERED, "0 %"),
    Counterpart("input transformations (Guo 2018): bit depth", "bit-depth", SHATTERED, "0 %"),
    Counterpart("input transformations (Guo 2018): crops", "crop-ensemble", STOCHASTIC, "0 %"),
    Counterpart(
        "input transformations (Guo 2018): total variation", "total-variation", STOCHASTIC, "0 %"
    ),
    Counterpart("stochastic pruning (Dhillon 2018)", "activation-pruning", STOCHASTIC, "0 %"),
    Counterpart("resizing and padding (Xie 2018)", "resize-pad", STOCHASTIC, "0 %"),
    Counterpart("Defense-GAN (Samangouei 2018)", "defense-gan", VANISHING, "55 %"),
    Counterpart("PGD training (Madry 2018)", "pgd-training", TRAINING, "47 %", "pgd-restarts"),
    Counterpart("cascade training (Na 2018)", "cascade", TRAINING, "15 %"),
)
"""PixelDefend (Song 2018) has no counterpart: it needs an autoregressive image model."""


@dataclass(frozen=True)
class MaskingRow:
    """One row of the table: shares of all examples."""

    paper: str
    defense: str
    kind: str
    printed: str
    n: int
    clean: float
    plain: float
    follow_up: float
    strongest: str
    """The follow-up attack that alone leaves the fewest."""
    seconds: float
    own_attack: str = PLAIN

    @property
    def misses(self) -> str:
        """What differs from the expected pattern; empty where nothing does."""
        fall = self.plain - self.follow_up
        if self.follow_up > MOST_LEFT.get(self.kind, 1):
            return f"more than {MOST_LEFT[self.kind]:.0%} stay robust"
        if fall < LEAST_FALL.get(self.kind, 0):
            return f"the follow-up attacks break less than {LEAST_FALL[self.kind]:.0%} more"
        if self.defense == "pgd-training" and fall >= MOST_MOVED:
            return f"adversarial training moves by {fall:.1%}"
        return ""


def measure(evaluation: AdaptiveEvaluation, names: Sequence[str] = ()) -> Iterator[MaskingRow]:
    """Evaluate the counterparts, or those of these names, one after the other."""
    for counterpart in COUNTERPARTS:
        if names and counterpart.defense not in names:
            continue
        since = time.process_time()
        plain = evaluation.robust(counterpart.defense, counterpart.own_attack, plain=True)
        assert plain is not None
        worst, strongest = evaluation.worst(counterpart.defense, FOLLOW_UPS)
        yield MaskingRow(
            **asdict(counterpart), n=evaluation.examples,
            clean=float(evaluation.clean(counterpart.defense).mean()),
            plain=float(plain.mean()), follow_up=float((worst & plain).mean()),
            strongest=strongest, seconds=round(time.process_time() - since, 1),
        )  # fmt: skip


HEAD = """# Obfuscated gradients: plain and follow-up attacks

Defenses of arXiv:1802.00420 with the attacks of this project on digits (`digits-linf`, radius .2).
*Plain* is PGD with the gradient of one draw of the defense itself, without what it declares; for
PGD training it is PGD with 20 starts, as its paper evaluates it (arXiv:1706.06083, table 1).
*Follow-up* counts the examples that neither this nor any follow-up attack ({attacks}) breaks:
these use its BPDA approximation and the average over its draws, transfer from other models, or
query its scores or labels. The column *paper* has the accuracy that the paper prints for the
original defense under its own attack, on other data. PixelDefend has no counterpart here: it needs
an autoregressive image model. The last column names what differs from the expected pattern.
Written by

    uv run python -m tests.benchmarks.obfuscated_gradients --json rows.json --page PAGE

which continues with the rows of an earlier call.

"""


def page(rows: Sequence[MaskingRow]) -> str:
    """The documentation page; it names the counterparts that were not measured."""
    measured = {row.defense for row in rows}
    missing = [c.defense for c in COUNTERPARTS if c.defense not in measured]
    sizes = ", ".join(sorted({str(row.n) for row in rows}))
    text = HEAD.format(attacks=", ".join(FOLLOW_UPS)) + f"{table(rows)}\n\nDigits: {sizes}."
    text += f" Not measured: {', '.join(missing)}." if missing else ""
    return "\n\n".join([text, *(NOTES[name] for name in NOTES if name in measured)]) + "\n"


def earlier_rows(path: Path | None) -> list[MaskingRow]:
    """The rows of an earlier call."""
    if path is None or not path.exists():
        return []
    return [MaskingRow(**row) for row in jsonlib.loads(path.read_text())]


def table(rows: Sequence[MaskingRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| defense | kind | paper | clean | plain | follow-up | strongest | |",
        "|" + "---|" * 8,
    ]
    lines += [
        f"| {row.paper}: `{row.defense}` | {row.kind} | {row.printed} | {row.clean:.1%} |"
        f" {row.plain:.1%} | {row.follow_up:.1%} | {row.strongest} | {row.misses} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(
    examples: Annotated[int, typer.Option(min=1, help="The first N digits.")] = 128,
    defense: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    json: Annotated[Path | None, typer.Option(help="Rows; those in it are kept.")] = None,
    page_file: Annotated[Path | None, typer.Option("--page", help="The page.")] = None,
) -> None:
    """Print the table; exit 1 where a row differs from the expected pattern."""
    torch.set_num_threads(1)
    rows = earlier_rows(json)
    known = {row.defense for row in rows}
    names = [c.defense for c in COUNTERPARTS if not defense or c.defense in defense]
    left = [name for name in names if name not in known]
    for row in measure(AdaptiveEvaluation(examples=examples), left or ["none"]):
        rows.append(row)
        print(table([row]).splitlines()[-1], f"{row.seconds} s", flush=True)
        if json:
            json.write_text(jsonlib.dumps([asdict(found) for found in rows], indent=1))
    print(table(rows))
    if page_file:
        page_file.write_text(page(rows))
    raise typer.Exit(1 if any(row.misses for row in rows) else 0)


if __name__ == "__main__":
    typer.run(main)
