"""Training in one perturbation set, evaluated in two; writes docs/perturbation-sets-compared.md.

    python -m tests.benchmarks.spatial_training [--db DATABASE] [--out PAGE]

Evaluates four digits defenses under rotations and under L-infinity changes (about ten minutes of
one CPU core), and writes the table from the outcomes that the database has.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from bench.core.statistics import holm_adjusted, mcnemar
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.results.example_results import Bits, DefenseResult, load_results
from bench.results.leaderboards import find_leaderboard
from bench.store import Store

DEFENSES = {
    "undefended": "clean images",
    "pgd-training": "PGD in Linf 51/255",
    "spatial-augmented": "random rotations and translations",
    "spatial-training": "clean images, and the worst of 45 rotations and translations",
}
"""Defense -> what it is trained on."""
ATTACKS = {"digits-rotation": ("rotation-grid", "pgd", "random"), "digits-linf": ("pgd", "fgsm")}
"""Threat model -> its attacks; robust accuracy is the worst case over them."""
ROTATION = "digits-rotation"
PAGE = Path(__file__).parents[2] / "docs" / "perturbation-sets-compared.md"
HEAD = """# Training in one set, evaluated in two

A network that is robust in one perturbation set need not be robust in another (arXiv:1712.02779,
arXiv:1904.13000). The same network is trained four ways on the scikit-learn digits: on clean
images; adversarially in L-infinity 51/255; on random rotations by up to 30 degrees and shifts by up
to one pixel (augmentation, the control); and adversarially in that set. Under rotation every image
meets a grid of 775 moves, PGD over angle and shift, and a random move; under L-infinity PGD and
FGSM. Counts are of the first {n} test images of the balanced order, with every success verified by
the referee; *rotation* and *Linf* are over all these attacks.

Against an attacker, training in L-infinity gains nothing under rotation; training in the set gains
much, and more than augmentation. One random move is easier than an attack: there training in
L-infinity helps a little, and augmentation nearly as much as adversarial training. Neither spatial
training gains under L-infinity.

Written by `uv run python -m tests.benchmarks.spatial_training`.

| defense | trained on | clean | random move | PGD in the set | rotation | Linf 51/255 |
|---|---|---:|---:|---:|---:|---:|
"""

Robust = Mapping[str, Mapping[str, DefenseResult]]
"""Threat model -> defense -> its results."""


def evaluate(url: str) -> None:
    """Evaluate what is missing; weights that are not there are trained first."""
    for threat, attacks in ATTACKS.items():
        selection = Selection((threat,), tuple(DEFENSES), attacks)
        MatrixRun(selection=selection, url=url, workers=1, quiet=True).run()


def read(url: str) -> dict[str, dict[str, DefenseResult]]:
    """The results under both threat models."""
    with Store.open(url, read_only=True) as store:
        return {
            threat: dict(load_results(store, find_leaderboard(store, threat)).defenses)
            for threat in ATTACKS
        }


def page(found: Robust) -> str:
    """The page: counts of each defense, and the paired tests under rotation."""
    bits = {name: found[ROTATION][name].robust(ATTACKS[ROTATION]) for name in DEFENSES}
    n = len(next(iter(bits.values())))
    rows = [
        f"| {name} | {images} | {_share(found[ROTATION][name].clean)} |"
        f" {_share(found[ROTATION][name].robust(['random']))} |"
        f" {_share(found[ROTATION][name].robust(['pgd']))} | {_share(bits[name])} |"
        f" {_share(found['digits-linf'][name].robust(ATTACKS['digits-linf']))} |"
        for name, images in DEFENSES.items()
    ]
    return HEAD.format(n=n) + "\n".join(rows) + "\n\n" + _tests(bits)


def _share(right: Bits) -> str:
    """The number of right examples."""
    return f"{int(right.sum())}"


def _tests(bits: Mapping[str, Bits]) -> str:
    """The exact McNemar tests of all pairs under rotation, corrected by Holm."""
    pairs = list(combinations(bits, 2))
    only = [(int((bits[a] & ~bits[b]).sum()), int((bits[b] & ~bits[a]).sum())) for a, b in pairs]
    adjusted = holm_adjusted([mcnemar(*counts) for counts in only])
    lines = [
        f"| {a} | {b} | {of_a} | {of_b} | {p:.2g} |"
        for (a, b), (of_a, of_b), p in zip(pairs, only, adjusted, strict=True)
    ]
    return (
        "Under rotation, paired on the same images (exact McNemar tests, corrected by Holm):\n\n"
        "| first | second | robust only for the first | only for the second | p |\n"
        "|---|---|---:|---:|---:|\n" + "\n".join(lines) + "\n"
    )


def main(
    db: Annotated[str, typer.Option(help="Database that is filled and read.")] = "bench.db",
    out: Annotated[Path, typer.Option(help="The page to write.")] = PAGE,
) -> None:
    """Evaluate the defenses and write the page."""
    evaluate(db)
    out.write_text(page(read(db)), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
