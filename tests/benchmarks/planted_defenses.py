"""Planted defenses, misleading and honest, under this project's protocol and under AutoAttack.

    python -m tests.benchmarks.planted_defenses [--examples N] [--only NAME]... [--all] [--json OUT]

Each defense of tests/planted on `digits-linf` has a white-box version, whose robust accuracy is the
truth. The row of a misleading one holds where the ranked count is at most the one that the standard
suite of pyautoattack leaves (where that ends with an exception: at most the truth), or where the
verdict is suspect or invalid; that of an honest one
where it is sound and the ranked count is at most two in 500 above. AutoAttack gets a defense that
nothing has called before, and its count is that of the images it returns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.core.errors import PLUGIN_EXCEPTIONS
from bench.data import datasets
from bench.registry.registry import Registry
from bench.training.tasks import build_trained
from tests.benchmarks.peer_attacks import Peer, autoattack, quiet, require_package
from tests.planted.cases import PREFIX, Case
from tests.planted.playing import installed, load_registry, play
from tests.planted.plugin import CASES

THREAT = "digits-linf"
CHOSEN = (
    "detached", "constant-gradient", "shattered", "wrong-sign", "argmax", "four-levels",
    "misleading-bpda", "large-batches", "sharp", "probabilities", "stepped-logits", "tanh-logits",
)  # fmt: skip
"""One or two of each kind of masked gradient."""
HONEST = ("cnn", "mlp", "robust", "transformer")
HONEST_ABOVE = 2 / 500
"""Share by which the ranked count of an honest defense may be above that of AutoAttack."""


@dataclass(frozen=True)
class PlantedRow:
    """One planted defense: counts of the same examples."""

    defense: str
    group: str
    n: int
    truth: int
    """Robust examples of the white-box version, by the oracle of tests/planted."""
    ranked: int | None
    """Our ranked count; None without a figure."""
    verdict: str
    refused: tuple[str, ...]
    """Contract checks that failed."""
    autoattack: int | None
    """None where AutoAttack ends with an exception."""

    @property
    def holds(self) -> bool:
        """Whether the verdict warns, or the ranked count is at most that of AutoAttack.

        Where AutoAttack has none, at most the truth.
        Of an honest defense: whether it is sound and at most HONEST_ABOVE over that of AutoAttack.
        """
        if not self.group:
            known = self.ranked is not None and self.autoattack is not None
            above = (self.ranked or 0) - (self.autoattack or 0)
            return known and self.verdict == "sound" and above <= HONEST_ABOVE * self.n
        if self.ranked is None or self.verdict in ("suspect", "invalid"):
            return True
        return self.ranked <= (self.truth if self.autoattack is None else self.autoattack)


def comparable() -> list[Case]:
    """The misleading defenses whose answers AutoAttack can read, and the HONEST ones."""
    return [
        case
        for case in CASES
        if case.defense is not None and case.threat == THREAT and case.defense.rejects is None
        and (case.group or case.name.removeprefix(PREFIX) in HONEST)
    ]  # fmt: skip


def compared(case: Case, registry: Registry, examples: int, peer: Peer | None) -> PlantedRow:
    """The row of one planted defense, under AutoAttack's standard suite or another peer."""
    played = play(case, registry, examples)
    left = None if peer is None else peer_robust(case, registry, examples, peer)
    return PlantedRow(
        case.name.removeprefix(PREFIX), case.group, examples, round(played.truth * examples),
        None if played.ours != played.ours else round(played.ours * examples), played.verdict,
        tuple(played.refused), left,
    )  # fmt: skip


def peer_robust(case: Case, registry: Registry, examples: int, peer: Peer) -> int | None:
    """The number of examples that a peer leaves right; None where it ends with an exception."""
    threat = registry.find("threat", THREAT).value
    dataset = registry.find("dataset", threat.dataset).value
    model = build_trained(registry, case.name, dataset).build().eval()
    chosen = datasets.first_examples(dataset, examples)
    x, y = chosen.tensor(), torch.from_numpy(chosen.labels.copy()).long()
    try:
        with quiet():
            adversarial = peer(model, x.clone(), y.clone(), float(threat.ball.radius), 0)
    except PLUGIN_EXCEPTIONS:
        return None
    with torch.no_grad():
        return int((model(adversarial).argmax(1) == y).sum())


def table(rows: Sequence[PlantedRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| defense | hides by | truth | ranked | verdict | AutoAttack | |",
        "|" + "---|" * 7,
    ]
    lines += [
        f"| `{row.defense}` | {row.group or 'honest'} | {row.truth} | {_count(row.ranked)} |"
        f" {row.verdict} | {_count(row.autoattack)} | {_remark(row)} |"
        for row in rows
    ]
    return "\n".join(lines)


def _remark(row: PlantedRow) -> str:
    if row.holds:
        return ""
    return "misleads" if row.group else "is above AutoAttack or accused"


def _count(value: int | None) -> str:
    return "none" if value is None else str(value)


def measure(names: Sequence[str], examples: int) -> Iterator[PlantedRow]:
    """The rows of the planted defenses of these names, without their prefix."""
    require_package("pyautoattack")
    with installed():
        registry = load_registry()
        for case in comparable():
            if case.name.removeprefix(PREFIX) in names:
                yield compared(case, registry, examples, autoattack())


def main() -> int:
    """Print the table; 1 where a row misleads."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--only", action="append", help="a name, without its prefix")
    parser.add_argument("--all", action="store_true", help="every planted defense")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    everything = [case.name.removeprefix(PREFIX) for case in comparable()]
    names = everything if asked.all else asked.only or (*CHOSEN, *HONEST)
    rows = []
    for row in measure(names, asked.examples):
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
        if asked.json:
            asked.json.write_text(json.dumps([asdict(found) for found in rows], indent=1))
    print(table(rows))
    return int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main())
