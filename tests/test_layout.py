"""Tests mirror the packages of bench; programs under tests/ hold no tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
PROGRAMS = ("benchmarks", "tools", "fixtures")
"""Folders under tests/ that hold programs and fixtures."""

TESTED_BY = {
    "bench/engine/answer_work.py": "tests/plugins/diagnostics/test_inner_optimisation.py",
    "bench/cli/__main__.py": "tests/test_readme.py",
    "bench/cli/options.py": "tests/cli/test_user_errors.py",
    "bench/cli/plugin_commands.py": "tests/submissions/test_templates.py",
    "bench/cli/read_commands.py": "tests/results/test_defense_report.py",
    "bench/cli/run_commands.py": "tests/evaluation/test_launcher.py",
    "bench/contract/attack_fixture.py": "tests/contract/test_attack_checks.py",
    "bench/contract/check.py": "tests/contract/test_runner.py",
    "bench/contract/defense_fixture.py": "tests/contract/test_defense_checks.py",
    "bench/contract/fixtures.py": "tests/contract/test_defense_checks.py",
    "bench/core/cells.py": "tests/store/test_cells.py",
    "bench/core/isolation.py": "tests/sandbox/test_isolation.py",
    "bench/core/cpu_time.py": "tests/sandbox/test_limits.py",
    "bench/sandbox/monitor.py": "tests/sandbox/test_process.py",
    "bench/sandbox/system_calls.py": "tests/sandbox/test_isolation.py",
    "bench/evaluation/attack_run.py": "tests/evaluation/test_api.py",
    "bench/evaluation/canary_models.py": "tests/evaluation/test_canaries.py",
    "bench/evaluation/memory_plugins.py": "tests/evaluation/test_api.py",
    "bench/evaluation/surrogate_model.py": "tests/evaluation/test_built_defense.py",
    "bench/plugin/attack.py": "tests/contract/test_attack_checks.py",
    "bench/plugin/bpda.py": "tests/plugin/test_plugin.py",
    "bench/plugin/certifier.py": "tests/plugins/certifiers/test_bounds.py",
    "bench/plugin/dataset.py": "tests/data/test_datasets.py",
    "bench/plugin/defense.py": "tests/registry/test_validation.py",
    "bench/plugin/diagnostic.py": "tests/plugins/diagnostics/test_diagnostics.py",
    "bench/plugin/external.py": "tests/engine/test_external_run.py",
    "bench/plugin/losses.py": "tests/plugin/test_plugin.py",
    "bench/plugin/shared.py": "tests/engine/test_shared_point.py",
    "bench/core/fitted.py": "tests/store/test_fits.py",
    "bench/plugin/training.py": "tests/training/test_recipe_options.py",
    "bench/registry/cards.py": "tests/registry/test_registry.py",
    "bench/registry/discovery.py": "tests/registry/test_registry.py",
    "bench/registry/hookspecs.py": "tests/registry/test_registry.py",
    "bench/registry/loader.py": "tests/registry/test_registry.py",
    "bench/registry/registration.py": "tests/registry/test_validation.py",
    "bench/registry/submission.py": "tests/submissions/test_intake.py",
    "bench/results/evaluation_result.py": "tests/evaluation/test_api.py",
    "bench/results/figures.py": "tests/results/test_plots.py",
    "bench/results/json_report.py": "tests/results/test_robust_accuracy.py",
    "bench/results/leaderboards.py": "tests/results/test_robust_accuracy.py",
    "bench/results/matrix.py": "tests/results/test_robust_accuracy.py",
    "bench/cli/cite_commands.py": "tests/results/test_citations.py",
    "bench/cli/plot_commands.py": "tests/results/test_plots.py",
    "bench/results/curves.py": "tests/results/test_plots.py",
    "bench/results/gallery.py": "tests/results/test_plots.py",
    "bench/results/report_tables.py": "tests/results/test_table_formats.py",
    "bench/results/second_evaluations.py": "tests/results/test_text_report.py",
    "bench/results/verdicts.py": "tests/results/test_masking_checks.py",
    "bench/sandbox/attack_worker.py": "tests/sandbox/test_attack_proxy.py",
    "bench/sandbox/external_worker.py": "tests/sandbox/test_external_proxy.py",
    "bench/sandbox/channel.py": "tests/sandbox/test_protocol.py",
    "bench/sandbox/defense_worker.py": "tests/sandbox/test_defense_proxy.py",
    "bench/sandbox/worker.py": "tests/sandbox/test_process.py",
    "bench/store/row_faults.py": "tests/store/test_integrity.py",
    "bench/store/outcome_faults.py": "tests/store/test_integrity.py",
    "bench/store/known_seals.py": "tests/store/test_integrity.py",
    "bench/store/faults.py": "tests/store/test_integrity.py",
    "bench/store/cell_faults.py": "tests/store/test_integrity.py",
    "bench/store/salvage.py": "tests/store/test_repair.py",
    "bench/store/migrate.py": "tests/store/test_database.py",
    "bench/store/process_id.py": "tests/store/test_leases.py",
    "bench/store/records.py": "tests/store/test_cells.py",
    "bench/store/store.py": "tests/store/test_database.py",
    "bench/store/tables.py": "tests/store/test_database.py",
    "bench/cli/compare_commands.py": "tests/results/test_comparison.py",
    "bench/cli/profile_commands.py": "tests/evaluation/test_cell_profile.py",
    "bench/cli/radii_tables.py": "tests/results/test_radii_table.py",
    "bench/cli/union_tables.py": "tests/results/test_set_unions.py",
    "bench/cli/import_commands.py": "tests/submissions/test_import_checkpoint.py",
    "bench/submissions/architectures.py": "tests/submissions/test_import_checkpoint.py",
    "bench/submissions/state_dicts.py": "tests/submissions/test_import_checkpoint.py",
    "bench/submissions/archive.py": "tests/submissions/test_intake.py",
    "bench/threats/access.py": "tests/engine/test_ledger.py",
    "bench/threats/random_numbers.py": "tests/plugin/test_plugin.py",
    "bench/threats/threat_model.py": "tests/threats/test_norms.py",
}
"""Module without a test file of its own name -> the file that tests it."""


def modules() -> list[Path]:
    """Modules of bench; packages' `__init__` files and database migrations are left out."""
    found = (path.relative_to(ROOT) for path in sorted((ROOT / "bench").rglob("*.py")))
    return [p for p in found if p.name != "__init__.py" and "migrations" not in p.parts]


def mirror(module: Path) -> Path:
    """tests/engine/test_scheduler.py for bench/engine/scheduler.py."""
    return Path("tests", *module.parts[1:-1], f"test_{module.name}")


def definitions(module: Path) -> set[str]:
    """Public names that a module defines at its top level."""
    found = set()
    for node in ast.parse((ROOT / module).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def mentions(test: Path, module: Path) -> bool:
    """Whether a test file contains the module's dotted name or a public name of the module."""
    text = (ROOT / test).read_text()
    dotted = ".".join(module.with_suffix("").parts)
    return dotted in text or bool(definitions(module) & set(re.findall(r"\w+", text)))


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_module_has_a_test_file(module: Path) -> None:
    test = Path(TESTED_BY.get(module.as_posix(), mirror(module)))
    assert (ROOT / test).is_file(), f"{test} is missing: add it, or name another in TESTED_BY"


@pytest.mark.parametrize("name", TESTED_BY)
def test_the_table_names_only_modules_without_a_test_file(name: str) -> None:
    module = Path(name)
    assert (ROOT / module).is_file(), f"{module} is gone: remove it from TESTED_BY"
    assert not (ROOT / mirror(module)).exists(), f"{mirror(module)} exists: remove {module}"
    assert mentions(Path(TESTED_BY[name]), module), f"{TESTED_BY[name]} does not mention {module}"


@pytest.mark.parametrize("folder", PROGRAMS)
def test_programs_stand_apart_from_tests(folder: str) -> None:
    assert list((TESTS / folder).rglob("test_*.py")) == []


def test_test_folders_mirror_packages() -> None:
    packages = {path.name for path in (ROOT / "bench").iterdir() if (path / "__init__.py").exists()}
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("*.py"))}
    assert folders <= packages | {*PROGRAMS, "plugins", "leaderboard", "docs", "planted"}
