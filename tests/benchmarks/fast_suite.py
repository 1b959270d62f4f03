"""The suite `fast` beside `standard` and pyautoattack: what each leaves, and what it costs.

    python -m tests.benchmarks.fast_suite digits-adv resnet2b --seeds 0 1 --peer --json fast.json

One process, one thread, CPU seconds of the process; both sides take turns. *Before the audit* is
the attack with early stops and `standard` on the survivors nearest to falling.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time

import numpy as np
import torch

from bench.core.audits import audit_size
from bench.core.cells import Numeric
from bench.core.outcomes import Outcomes
from bench.results.fast_items import NEAR_SHARE, fast_stage
from bench.results.fast_suite import FAST_SUITE
from tests.benchmarks.cases import Case, load_case
from tests.benchmarks.our_runs import RunOptions, attack, cascade, fast_model, run
from tests.benchmarks.peer_attacks import autoattack, peer
from tests.benchmarks.run_result import RunResult
from tests.fixtures.small_store import outcomes

EXAMPLES = {
    "digits-adv": 500, "digits-std": 500, "resnet18-adv": 128, "resnet18-std": 128,
    "resnet2b": 300, "convex-mnist": 1000,
}  # fmt: skip
OPTIONS = RunOptions(numeric=Numeric.FAST, audit=False)
LARGE = 10_000
"""Examples to which the cost is extrapolated."""


@dataclass(frozen=True)
class FastLine:
    """One network with one seed; times are CPU seconds."""

    model: str
    seed: int
    n: int
    early: int
    """Left by the attack with early stops."""
    before_audit: int
    """Left before the audit."""
    standard: int
    """Left by `standard`."""
    audited: int
    fell: int
    early_s: float
    near_s: float
    audit_s: float
    standard_s: float
    peer: int = -1
    peer_s: float = float("nan")

    @property
    def share(self) -> float:
        """Cost of `standard` over that before the audit."""
        return self.standard_s / (self.early_s + self.near_s)

    @property
    def whole_large(self) -> float:
        """Cost with the audit over that of `standard`, extrapolated to LARGE examples."""
        more = LARGE / self.n
        left = self.early * more
        each = self.audit_s / max(self.audited, 1)
        audit = each * audit_size(int(left - self.near(int(left))), LARGE)
        return ((self.early_s + self.near_s) * more + audit) / (self.standard_s * more)

    @staticmethod
    def near(left: int) -> int:
        """How many of the survivors are nearest to falling."""
        return math.ceil(NEAR_SHARE * left)

    @property
    def cells(self) -> list[str]:
        """The line of the table."""
        whole = self.early_s + self.near_s + self.audit_s
        peer = "" if self.peer < 0 else f"{self.peer}, {self.peer_s:.1f} s"
        over_peer = "" if self.peer < 0 else f"{self.peer_s / (self.early_s + self.near_s):.1f}"
        return [
            self.model, str(self.seed), str(self.n), f"{self.early}", f"{self.before_audit}",
            f"{self.standard}", f"{self.early_s + self.near_s:.1f}", f"{self.standard_s:.1f}",
            f"{self.share:.1f}", f"{self.fell} of {self.audited}, {self.audit_s:.1f} s",
            f"{self.standard_s / whole:.1f}", f"{1 / self.whole_large:.1f}", peer, over_peer,
        ]  # fmt: skip


HEADS = (
    "model", "seed", "n", "early stops leave", "before the audit", "standard leaves",
    "s before the audit", "s standard", "ratio", "audit", "ratio with the audit",
    "ratio with the audit at 10,000", "pyautoattack", "its ratio",
)  # fmt: skip


def measured(case: Case, seed: int, *, beside_peer: bool) -> FastLine:
    """Run both suites, and pyautoattack where it is asked for."""
    fast_model(case, OPTIONS.numeric)
    first, *standard = FAST_SUITE.attacks["Linf"]
    for name in (first, standard[0]):  # a few examples, which are not measured
        run(case.first(16), attack(name), OPTIONS, seed)
    since = process_time()
    early = run(case, attack(first), OPTIONS, seed)
    early_s = process_time() - since
    stage = fast_stage(with_losses(case, early), len(case.x), case.name, str(seed))
    near, near_s = on_items(case, standard, stage.near, seed)
    sample, audit_s = on_items(case, standard, stage.sample, seed)
    since = process_time()
    whole = cascade(standard, OPTIONS)(case, seed)
    standard_s = process_time() - since
    left = int((~early.broken).sum())
    line = FastLine(
        case.name, seed, len(case.x), left, left - near, int((~whole.broken).sum()),
        len(stage.sample), sample, early_s, near_s, audit_s, standard_s,
    )  # fmt: skip
    if not beside_peer:
        return line
    since = process_time()
    other = peer("pyautoattack", autoattack())(case, seed)
    return FastLine(
        **asdict(line) | {"peer": int((~other.broken).sum()), "peer_s": process_time() - since}
    )


def with_losses(case: Case, found: RunResult) -> Outcomes:
    """The verdicts of a run, and the cross-entropy of its images."""
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(case.model(found.image), case.y, reduction="none")
    return outcomes(found.broken.numpy(), loss=loss.numpy())


def on_items(
    case: Case, names: Sequence[str], items: Sequence[int], seed: int
) -> tuple[int, float]:
    """How many of some examples these attacks break, and the CPU seconds of that."""
    others = sorted(set(range(len(case.x))) - set(items))
    if not items:
        return 0, 0.0
    since, broken = process_time(), set[int]()
    for name in names:
        finished = sorted({*others, *broken})
        found = run(case, attack(name), OPTIONS._replace(finished=finished), seed)
        fell = np.flatnonzero(found.broken.numpy())
        broken |= {int(item) for item in fell} & set(items)
    return len(broken), process_time() - since


def main() -> None:
    """Measure, print the table, and write the file after each line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=sorted(EXAMPLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    lines = []
    for name in given.models:
        for seed in given.seeds:
            case = load_case(name).first(EXAMPLES[name])
            lines.append(measured(case, seed, beside_peer=given.peer))
            print("| " + " | ".join(lines[-1].cells) + " |", flush=True)
            if given.json:
                given.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))


if __name__ == "__main__":
    main()
