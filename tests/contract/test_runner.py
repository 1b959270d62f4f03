"""Checks of registered names, files and folders, and their results."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.contract.check import CheckOutcome, CheckResult
from bench.contract.runner import CHECKS, run_checks
from bench.core.errors import BenchError
from bench.registry.registry import Registry
from tests.contract.planted import defense, run_named_check
from tests.fixtures.planted_plugins import ATTACK, write_submission


def test_every_check_has_a_test_in_which_it_fails() -> None:
    source = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*_checks.py"))
    names = [check.name for checks in CHECKS.values() for check in checks]
    untested = [name for name in names if f'"{name}"' not in source]
    assert untested == ["builds"] or untested == []


def test_every_check_has_a_name_of_its_own_and_a_short_sentence() -> None:
    checks = [check for kind in CHECKS.values() for check in kind]
    assert len(checks) >= 60
    assert all(check.sentence.endswith(".") and len(check.sentence) < 100 for check in checks)
    for kind in CHECKS.values():
        assert len({check.name for check in kind}) == len(kind)


def test_an_exception_of_a_plugin_is_a_failed_check(registry: Registry) -> None:
    bad = defense(lambda loader: 1 / 0)
    result = run_named_check(registry, "defense", bad, "builds")
    assert (result.outcome, result.sentence) == (
        CheckOutcome.FAIL,
        "ZeroDivisionError: division by zero.",
    )


def test_checks_of_a_defense_without_weights_do_not_apply(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    undefended = registry.defenses["undefended"].value
    result = run_named_check(registry, "defense", undefended, "builds")
    assert result.outcome is CheckOutcome.NOT_APPLICABLE
    assert "bench train undefended" in result.sentence


def test_missing_weights_can_be_trained_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "trained.py"
    path.write_text(TRAINED)
    registry = Registry.without_submissions()
    builds = {r.check: r for r in run_checks(path, registry)}["builds"]
    assert builds.outcome is CheckOutcome.NOT_APPLICABLE
    results = run_checks(path, Registry.without_submissions(), train=True)
    assert {r.check: r for r in results}["builds"].outcome is CheckOutcome.PASS
    assert [r for r in results if r.outcome is CheckOutcome.FAIL] == []


TRAINED = """
from torch import nn
from bench.plugin import cross_entropy
from bench.plugin import *

def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def loss(batch):
    return cross_entropy(batch.model(batch.x), batch.y)

@hookimpl
def bench_defenses():
    build = lambda loader: loader.trained(net(loader.shape, loader.classes))
    yield Defense("trained", build, recipe=Recipe(net, loss, epochs=3, rate=1e-2))
"""


def test_a_name_and_a_path_give_the_same_results(registry: Registry, tmp_path: Path) -> None:
    place = write_submission(tmp_path, "nudge", ATTACK.format(name="nudge"))
    by_path = run_checks(place, Registry.load(tmp_path))
    assert [r.check for r in by_path][:2] == ["card-is-in-order", "is-registered"]
    by_name = run_checks("nudge", Registry.load(tmp_path, allow_unsandboxed=True))
    assert by_name == by_path[2:]
    assert {r.outcome for r in by_name} > {CheckOutcome.PASS}


def test_an_unknown_name_is_reported_with_the_nearest_known_one(registry: Registry) -> None:
    with pytest.raises(BenchError, match="Did you mean 'fgsm'"):
        run_checks("fgsmm", registry)


def test_a_plugin_file_is_checked_alone(tmp_path: Path) -> None:
    path = tmp_path / "nudge.py"
    path.write_text("from bench.plugin import *\n" + ATTACK.format(name="nudge"))
    results = run_checks(path, Registry.without_submissions())
    assert results[0].check == "is-registered"
    assert {r.name for r in results[1:]} == {"nudge"}


def test_a_plugin_that_cannot_be_registered_is_reported_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "forgetful.py"
    path.write_text("def bench_attacks():\n    return ()\n")
    (result,) = run_checks(path, Registry.without_submissions())
    assert result.outcome is CheckOutcome.FAIL
    assert "without @hookimpl" in result.sentence


def test_a_bad_card_ends_the_check_before_any_code_runs(tmp_path: Path) -> None:
    place = write_submission(
        tmp_path, "hasty", f"open({str(tmp_path / 'ran')!r}, 'w')", card="licens = 'x'"
    )
    (result,) = run_checks(place, Registry.without_submissions())
    assert result.outcome is CheckOutcome.FAIL
    assert "Did you mean 'licence'?" in result.sentence
    assert not (tmp_path / "ran").exists()


def test_results_are_plain_records() -> None:
    result = CheckResult("attack", "pgd", "the-same-again", CheckOutcome.PASS, "It is.")
    assert dataclasses.asdict(result)["outcome"] == "pass"
