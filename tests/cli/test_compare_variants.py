"""Six settings of one attack in one command, compared over ten defenses by paired tests."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner, Result

from bench.cli import app

DEFENSES = (
    "linear", "linear-svm", "naive-bayes", "undefended", "bit-depth", "jpeg", "crop",
    "quantised-logits", "scaled-logits", "argmax-only",
)  # fmt: skip
SETTINGS = ("--set", "pgd.steps=2,5,20", "--set", "pgd.rate=0.05,0.5")
VARIANTS = [f"pgd[steps={steps},rate={rate}]" for steps in (2, 5, 20) for rate in (0.05, 0.5)]
LEVEL = 0.05


def called(*words: str) -> Result:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.slow
def test_six_settings_over_ten_defenses(tmp_path: Path) -> None:
    """The pairs, their tests and the correction, computed again from the exported outcomes."""
    db, out = str(tmp_path / "b.db"), tmp_path / "outcomes.csv"
    named = [word for name in DEFENSES for word in ("--defense", name)]
    called("run", "--threat", "digits-linf", *named, *SETTINGS, "--examples", "64", "--db", db)
    called("export", "outcomes", "--out", str(out), "--db", db)
    found = json.loads(called("compare", *VARIANTS, "--db", db, "--json").stdout)["pairs"]
    broken: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    right: defaultdict[str, set[int]] = defaultdict(set)
    for row in csv.DictReader(out.read_text().splitlines()):
        example = int(row["example"])
        if row["clean_right"] == "1":
            right[row["defense"]].add(example)
            if row["verdict"] == "broken":
                broken[row["defense"], row["attack"]].add(example)
    pairs = {(pair["defense"], pair["a"], pair["b"]): pair for pair in found}
    assert len(found) == len(pairs) == 150
    assert {one for one, _, _ in pairs} == set(DEFENSES)
    values = []
    for defense in DEFENSES:
        for a, b in combinations(VARIANTS, 2):
            pair = pairs[defense, a, b]
            one, two = broken[defense, a], broken[defense, b]
            assert pair["n"] == len(right[defense]) and pair["both"] == len(one & two)
            assert pair["only_a"] == sorted(one - two) and pair["only_b"] == sorted(two - one)
            apart = len(one ^ two)
            p = binomtest(len(one - two), apart).pvalue if apart else 1.0
            assert pair["p"] == pytest.approx(p)
            values.append((p, pair))
    worst = 0.0
    for rank, (p, pair) in enumerate(sorted(values, key=lambda value: value[0])):
        worst = max(worst, min(1.0, p * (len(values) - rank)))  # Holm's step-down procedure
        assert pair["adjusted"] == pytest.approx(worst)
        better = pair["a"] if len(pair["only_a"]) > len(pair["only_b"]) else pair["b"]
        assert pair["winner"] == (better if worst <= LEVEL else "")
    # Two steps of a twentieth of the radius reach a tenth of it; 20 steps of half of it all of it.
    weak, strong = VARIANTS[0], VARIANTS[-1]
    assert pairs["linear", weak, strong]["winner"] == strong
    assert sum(pair["winner"] == strong for pair in found) > 10
    assert not any(pair["winner"] == weak for pair in found)
    shown = called("compare", *VARIANTS, "--db", db)
    assert f"{strong}: better in" in " ".join(shown.stdout.split())
