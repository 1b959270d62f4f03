"""The table of systems: each row of the list, its state, files and the tests of its oracle.

`python -m tests.tools.systems` writes docs/systems.md; tests/test_systems.py compares it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bench.registry.registry import Registry
from tests.tools.system_rows import ROWS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "systems.md"

SYSTEMS = (
    "A01",
    "A02", "A03", "A04", "A05", "A06", "A07", "A08", "A09", "A10", "A11", "A12", "A13", "A14",
    "A15", "A16", "A17", "A18", "A19", "A20", "A21", "A22", "A23", "B06", "B09", "B11",
    "D00", "D01", "D02", "D03", "D04", "D05", "D06", "D07", "D08", "D09", "D10", "D11", "D12",
    "D13", "D14", "D15", "D16", "D17", "D18", "D19", "D20", "D21", "D22", "D23", "D24", "D25",
    "D27", "D29", "D30", "D31", "D32", "D33",
    "E01", "E02", "E03", "E04a", "E04b", "E04c", "E04d", "E04e", "E05", "E11", "E18", "E19", "E20",
    "E21", "E22", "E23", "E24", "E25",
    "F01", "F02", "F03", "F04", "F05", "F07", "F10", "F11", "F12", "F13",
    "G01", "G02", "G03", "G04", "G05", "G06", "G07", "G08", "G09", "G10", "G11", "G12", "G14",
    "G15", "G18",
    "P01", "P02", "P03", "P04", "P05", "P06", "P07", "P09",
    "M01", "M02", "M03", "M04",
    "E06", "E07", "E09", "E10", "RP01", "RP02", "RP04", "RP07", "RP08", "RP10",
    "RP03", "RP06", "RP12", "RP13", "RP14", "RP15", "RP17", "RP21",
    "V01", "V02", "V03", "V04", "V05", "V06", "V07", "V09",
    "X15", "X20", "X21",
)  # fmt: skip
"""Ids of all systems: attacks, defenses, evaluation, filters and detectors, goals, models,
reproductions, verification, extensions."""

SYSTEM_FILES = {
    "A01": "plugins/attacks/lbfgs.py",
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
    "A12": "plugins/attacks/universal_deepfool.py",
    "A13": "plugins/attacks/random_noise.py",
    "A14": "bench/engine/both_gradients.py",
    "A15": "plugins/attacks/pgd_eot.py",
    "A16": "bench/evaluation/latent_search.py",
    "A17": "plugins/attacks/least_likely.py",
    "A18": "plugins/attacks/transfer.py",
    "A19": "bench/training/label_surrogate.py",
    "A20": "plugins/attacks/mi_fgsm.py",
    "A21": "bench/evaluation/feature_matching.py",
    "A22": "plugins/attacks/unbounded_pgd.py",
    "A23": "plugins/attacks/pgd_8bit.py",
    "B06": "plugins/attacks/boundary.py",
    "B09": "bench/training/label_surrogate.py",
    "G10": "bench/threats/parametric.py",
    "G07": "bench/threats/lp_ball.py",
    "G08": "bench/threats/perceptual.py",
    "G09": "bench/threats/spatial.py",
    "G14": "bench/threats/nuisance.py",
    "G15": "bench/engine/shared_point.py",
    "P01": "plugins/attacks/shared_gradient.py",
    "P02": "plugins/attacks/rotation_grid.py",
    "P03": "bench/evaluation/manitest.py",
    "P04": "bench/threats/masked_pattern.py",
    "P05": "plugins/attacks/printed_pattern.py",
    "P06": "bench/evaluation/nuisance_model.py",
    "P07": "bench/evaluation/physical.py",
    "P09": "plugins/attacks/one_pixel.py",
    "B11": "plugins/attacks/hopskipjump.py",
    "D00": "bench/training/loop.py",
    "D01": "plugins/defenses/undefended.py",
    "D03": "plugins/defenses/weight_decay.py",
    "D08": "plugins/defenses/pgd_training.py",
    "D09": "plugins/defenses/_residual_blocks.py",
    "D18": "bench/training/loop.py",
    "D20": "plugins/defenses/input_gradient_penalty.py",
    "D23": "submissions/gaussian-noise/plugin.py",
    "M04": "plugins/datasets/torchvision_datasets.py",
    "E01": "bench/results/measures.py",
    "E02": "bench/results/measures.py",
    "E04a": "bench/results/masking_checks.py",
    "E04b": "bench/results/masking_checks.py",
    "E04c": "bench/results/masking_checks.py",
    "E04d": "bench/results/masking_checks.py",
    "E04e": "bench/results/larger_bound.py",
    "E05": "plugins/diagnostics/gradient_scale.py",
    "E18": "plugins/diagnostics/label_leaking.py",
    "E11": "bench/results/measures.py",
    "E19": "bench/results/measures.py",
    "E20": "tests/benchmarks/capacity.py",
    "E23": "bench/results/measures.py",
    "E24": "bench/results/measures.py",
    "E25": "bench/results/measures.py",
    "RP06": "plugins/defenses/_losses.py",
    "G01": "bench/results/measures.py",
    "G06": "plugins/attacks/pgd.py",
    "G11": "bench/engine/model_access.py",
    "G12": "bench/engine/model_access.py",
    "E03": "bench/results/radii_table.py",
    "E21": "bench/results/example_results.py",
    "E22": "bench/results/masking_checks.py",
    "G02": "bench/results/measures.py",
    "G03": "bench/results/target_pairs.py",
    "G04": "bench/results/true_class.py",
    "G05": "bench/results/defense_report.py",
    "G17": "bench/threats/corruption.py",
    "G18": "bench/referee/referee.py",
    "X15": "bench/results/gallery.py",
    "X20": "plugins/attacks/fast_gradient.py",
    "X21": "bench/results/measures.py",
    "RP01": "bench/results/foreign_table_checks.py",
    "RP02": "bench/results/foreign_table_checks.py",
    "RP08": "bench/results/foreign_table_checks.py",
    "RP10": "bench/contract/attack_checks.py",
    "RP04": "tests/benchmarks/obfuscated_gradients.py",
    "RP07": "bench/threats/threat_model.py",
    "RP12": "bench/results/figures.py",
    "RP13": "tests/benchmarks/physical.py",
    "RP14": "plugins/attacks/fast_gradient.py",
    "RP15": "plugins/attacks/fast_gradient.py",
    "RP03": "plugins/defenses/_dropout_cnn.py",
    "RP17": "plugins/attacks/fast_gradient.py",
    "RP21": "tests/benchmarks/capacity.py",
    "E06": "tests/benchmarks/weak_and_strong_attacks.py",
    "E07": "bench/threats/threat_model.py",
    "E09": "bench/plugin/attack.py",
    "E10": "bench/evaluation/sweep.py",
    "V01": "plugins/certifiers/linear_exact.py",
    "V02": "plugins/certifiers/exact_milp.py",
    "V03": "plugins/certifiers/dual_bound.py",
    "V04": "plugins/certifiers/interval.py",
    "V05": "plugins/certifiers/lipschitz_margin.py",
    "V06": "plugins/certifiers/pixeldp.py",
    "V07": "plugins/certifiers/randomized_smoothing.py",
    "V09": "bench/results/masking_checks.py",
}
"""Id -> file, for systems that are no registered defense or whose main file is another one."""

DEFENSE_SYSTEMS = {
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
    "thermometer-training": ("D29",),
    "spatial-augmented": ("P02",),
    "spatial-training": ("P02",),
    "total-variation": ("F05",),
    "trades": ("D13",),
    "undefended-images": ("D01",),
    "wide-resnet-16-4": ("M01",),
}
"""Defense -> the systems that it implements."""

HEAD = """# Systems

Every system of the list and every reproduction. A row *works* where a test carries the mark of its
oracle and a file is named; it is there *partly* where one of both is missing; else it is *absent*.
Written by `python -m tests.tools.systems` from the registered plugins and the marks of the tests.

{counts}

| id | what | state | file | test |
|---|---|---|---|---|
"""
WORKS, PARTLY, ABSENT = "works", "partly", "absent"


@cache
def implementations() -> dict[str, list[str]]:
    """System id -> the files that implement it; files with the fewest systems first."""
    found = {system: {path: 0} for system, path in SYSTEM_FILES.items()}
    for registration in Registry.without_submissions().defenses.values():
        path = str(Path(*registration.module.split("."))) + ".py"
        systems = DEFENSE_SYSTEMS.get(registration.value.name, ())
        for system in systems:
            found.setdefault(system, {}).setdefault(path, len(systems))
    return {system: sorted(paths, key=lambda p: (paths[p], p)) for system, paths in found.items()}


@cache
def oracle_tests() -> dict[str, list[str]]:
    """System id -> the test files with a test that is marked with it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for system in dict.fromkeys(marked(path)):
            found.setdefault(system, []).append(str(path.relative_to(ROOT)))
    return found


def marked(path: Path) -> Iterator[str]:
    """Every id in a `pytest.mark.row(...)` of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


def state(row: str) -> str:
    """`works`, `partly` or `absent`: a row works only where a test carries its mark."""
    has_file, has_test = bool(implementations().get(row)), bool(oracle_tests().get(row))
    if has_file and has_test:
        return WORKS
    return PARTLY if has_file or has_test else ABSENT


def page() -> str:
    """The text of docs/systems.md."""
    files, tests = implementations(), oracle_tests()
    lines = [
        f"| {row} | {title} | {state(row)} | {links(files.get(row, []))}"
        f" | {links(tests.get(row, []))} |"
        for row, title in ROWS.items()
    ]
    return HEAD.format(counts=counted()) + "\n".join(lines) + "\n"


def counted() -> str:
    """How many systems and reproductions are in each state, as a sentence."""
    found = Counter((row.startswith("RP"), state(row)) for row in ROWS)
    parts = []
    for kind, name in ((False, "systems"), (True, "reproductions")):
        states = [(one, found[kind, one]) for one in (WORKS, PARTLY, ABSENT)]
        each = ", ".join(f"{one}: {count}" for one, count in states)
        parts.append(f"{sum(count for _, count in states)} {name} ({each})")
    return " and ".join(parts) + "."


def links(paths: list[str]) -> str:
    """Markdown links to files, relative to the docs folder."""
    return ", ".join(f"[{Path(path).stem}](../{path})" for path in paths)


if __name__ == "__main__":
    PAGE.write_text(page())
