"""The table of systems: each row of the list, its file, and the tests that hold its oracle.

`python -m tests.tools.systems` writes docs/systems.md; a test compares it and misses nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bench.registry.registry import Registry

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "systems.md"

LIST = (
    "A02", "A03", "A04", "A05", "A06", "A07", "A08", "A09", "A10", "A11", "A13", "A18", "A20",
    "A22", "B06",
    "D00", "D01", "D02", "D03", "D04", "D05", "D06", "D07", "D08", "D09", "D10", "D11", "D12",
    "D13", "D14", "D15", "D16", "D17", "D18", "D19", "D20", "D21", "D22", "D23", "D24", "D25",
    "D27", "D29", "D30", "D31", "D32", "D33",
    "F01", "F02", "F03", "F04", "F05", "F07", "F10", "F11", "F12", "F13",
    "M01", "M02", "M03", "M04",
    "V01", "V03", "V04", "V05", "V06", "V07", "V09",
)  # fmt: skip
"""What has to be there: attacks, defenses, filters and detectors, models, verification."""

ELSEWHERE = {
    "A02": "plugins/attacks/fast_gradient.py",
    "A03": "plugins/attacks/fgsm_targeted.py",
    "A04": "plugins/attacks/fast_gradient.py",
    "A05": "plugins/attacks/fast_gradient.py",
    "A06": "plugins/attacks/bim.py",
    "A07": "plugins/attacks/pgd.py",
    "A08": "plugins/attacks/pgd_l2step.py",
    "A09": "plugins/attacks/pgd_restarts.py",
    "A10": "plugins/attacks/deepfool.py",
    "A11": "plugins/attacks/carlini_wagner.py",
    "A13": "plugins/attacks/random_noise.py",
    "A18": "plugins/attacks/transfer.py",
    "A20": "plugins/attacks/mi_fgsm.py",
    "A22": "plugins/attacks/unbounded_pgd.py",
    "B06": "plugins/attacks/boundary.py",
    "D00": "bench/training/loop.py",
    "D01": "plugins/defenses/undefended.py",
    "D03": "plugins/defenses/weight_decay.py",
    "D08": "plugins/defenses/pgd_training.py",
    "D09": "plugins/defenses/_residual_blocks.py",
    "D18": "bench/training/loop.py",
    "D20": "plugins/defenses/input_gradient_penalty.py",
    "D23": "submissions/gaussian-noise/plugin.py",
    "M04": "plugins/datasets/torchvision_datasets.py",
    "V01": "plugins/certifiers/linear_exact.py",
    "V03": "plugins/certifiers/dual_bound.py",
    "V04": "plugins/certifiers/interval.py",
    "V05": "plugins/certifiers/lipschitz_margin.py",
    "V06": "plugins/certifiers/pixeldp.py",
    "V07": "plugins/certifiers/randomized_smoothing.py",
    "V09": "bench/results/masking_checks.py",
}
"""Rows that are no defenses, and defenses whose row another file decides, by file."""

DEFENSE_ROWS = {
    "activation-pruning": ("D30",),
    "alp": ("D11",),
    "alp-probabilities": ("D11",),
    "argmax-only": ("D33",),
    "augmented": ("D04",),
    "bit-depth": ("F04",),
    "cascade": ("D19",),
    "cascade-first": ("D19",),
    "cifar-base": ("D01", "D02", "M02"),
    "cifar-fast": ("D17", "D18"),
    "cifar-pgd": ("D08", "D18"),
    "cifar-standard": ("D01", "D18"),
    "cifar-trades": ("D13",),
    "clp": ("D12",),
    "clp-strangers": ("D12",),
    "cnn-dropout": ("D02", "M02"),
    "contrastive": ("D27",),
    "crop": ("F13",),
    "crop-ensemble": ("F03",),
    "defense-gan": ("F07",),
    "defense-gan-affine": ("F07",),
    "detector-binary": ("F12",),
    "detector-lid": ("F11",),
    "distillation": ("D10",),
    "distillation-teacher": ("D10",),
    "double-backprop": ("D22",),
    "fast-training": ("D17", "RP05"),
    "fgsm-batch": ("D06",),
    "fgsm-mixture": ("D05",),
    "fgsm-training": ("D07",),
    "free-training": ("D16", "RP05"),
    "input-gradient-l1": ("D21",),
    "jpeg": ("F01",),
    "linear-svm": ("M03",),
    "lipschitz-training": ("D25",),
    "mart": ("D15",),
    "mma": ("D14",),
    "naive-bayes": ("M03",),
    "noise-dense": ("D23",),
    "noise-first": ("D23",),
    "preresnet-20": ("M01",),
    "quantised-logits": ("D32",),
    "randomised-training": ("D24",),
    "resize-pad": ("D31",),
    "resnet-20": ("M01",),
    "resnext-29": ("M01",),
    "safetynet": ("F10",),
    "scaled-logits": ("D32",),
    "se-resnet-20": ("M01",),
    "shield": ("F02",),
    "thermometer": ("D29",),
    "total-variation": ("F05",),
    "trades": ("D13",),
    "undefended-images": ("D01",),
    "wide-resnet-16-4": ("M01",),
}
"""Defense -> the rows it implements."""

HEAD = """# Systems

What of the list of systems is built, where, and which tests hold its oracle. Made by
`python -m tests.tools.systems` from the plugins and the marks of the tests.

| id | what | file | test |
|---|---|---|---|
"""


@cache
def files() -> dict[str, list[str]]:
    """Row -> the files that build it, ELSEWHERE and as defenses declare; the most special first."""
    found = {row: {path: 0} for row, path in ELSEWHERE.items()}
    for offer in Registry.load(ROOT / "no submissions").defenses.values():
        path = str(Path(*offer.module.split("."))) + ".py"
        rows = DEFENSE_ROWS.get(offer.value.name, ())
        for row in rows:
            found.setdefault(row, {}).setdefault(path, len(rows))
    return {row: sorted(places, key=lambda p: (places[p], p)) for row, places in found.items()}


@cache
def oracles() -> dict[str, list[str]]:
    """Row -> the test files with a test that is marked with it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for row in marked(path):
            places = found.setdefault(row, [])
            name = str(path.relative_to(ROOT))
            if name not in places:
                places.append(name)
    return found


def marked(path: Path) -> Iterator[str]:
    """Every id in a `pytest.mark.row(...)` of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


def what(path: str) -> str:
    """The first sentence of a module."""
    told = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return told.split("\n")[0].removesuffix(".").replace("|", "/")


def table() -> str:
    """The page."""
    built, held = files(), oracles()
    lines = [
        f"| {row} | {what(built[row][0])} | {links(built[row])} | {links(held.get(row, []))} |"
        for row in sorted({*LIST, *built})
        if row in built
    ]
    return HEAD + "\n".join(lines) + "\n"


def links(paths: list[str]) -> str:
    """Paths from the docs folder."""
    return ", ".join(f"[{Path(path).stem}](../{path})" for path in paths)


if __name__ == "__main__":
    TABLE.write_text(table())
