"""How the laws are run: over names, files and folders, and what comes of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.contract.check import CheckOutcome, CheckResult
from bench.contract.runner import CHECKS, run_checks
from bench.core.errors import BenchError
from bench.registry.registry import Registry
from tests.contract.planted import defense, found
from tests.fixtures.planted_plugins import ATTACK, entry


def test_every_law_is_turned_red_somewhere_in_this_folder() -> None:
    source = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*_checks.py"))
    unproven = [
        law.name for laws in CHECKS.values() for law in laws if f'"{law.name}"' not in source
    ]
    assert unproven == ["builds"] or unproven == []


def test_the_contract_has_many_laws_and_each_has_its_text() -> None:
    laws = [law for kind in CHECKS.values() for law in kind]
    assert len(laws) >= 60
    assert all(law.sentence.endswith(".") and len(law.sentence) < 100 for law in laws)
    for kind in CHECKS.values():
        assert len({law.name for law in kind}) == len(kind)


def test_a_plugin_that_raises_breaks_the_law_and_not_the_program(world: Registry) -> None:
    bad = defense(lambda loader: 1 / 0)
    result = found(world, "defense", bad, "builds")
    assert (result.outcome, result.sentence) == (
        CheckOutcome.FAIL,
        "ZeroDivisionError: division by zero.",
    )


def test_a_defense_without_weights_is_told_apart_from_a_broken_one(
    world: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    undefended = world.defenses["undefended"].value
    result = found(world, "defense", undefended, "builds")
    assert result.outcome is CheckOutcome.NOT_APPLICABLE
    assert "bench train undefended" in result.sentence


def test_weights_that_are_missing_can_be_made_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "taught.py"
    path.write_text(TAUGHT)
    registry = Registry.load(tmp_path / "none")
    builds = {r.check: r for r in run_checks(path, registry)}["builds"]
    assert builds.outcome is CheckOutcome.NOT_APPLICABLE
    results = run_checks(path, Registry.load(tmp_path / "none"), train=True)
    assert {r.check: r for r in results}["builds"].outcome is CheckOutcome.PASS
    assert [r for r in results if r.outcome is CheckOutcome.FAIL] == []


TAUGHT = """
from torch import nn
from bench.plugin import cross_entropy
from bench.plugin import *

def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def loss(lesson):
    return cross_entropy(lesson.model(lesson.x), lesson.y)

@hookimpl
def bench_defenses():
    build = lambda loader: loader.trained(net(loader.shape, loader.classes))
    yield Defense("taught", build, recipe=Recipe(net, loss, epochs=3, rate=1e-2))
"""


def test_a_name_is_checked_as_a_path_is(world: Registry, tmp_path: Path) -> None:
    place = entry(tmp_path, "nudge", ATTACK.format(name="nudge"))
    by_path = run_checks(place, Registry.load(tmp_path))
    assert [r.check for r in by_path][:2] == ["card-is-in-order", "passes-the-door"]
    by_name = run_checks("nudge", Registry.load(tmp_path, allow_unsandboxed=True))
    assert by_name == by_path[2:]
    assert {r.outcome for r in by_name} > {CheckOutcome.PASS}


def test_an_unknown_name_is_answered_with_the_near_one(world: Registry) -> None:
    with pytest.raises(BenchError, match="Did you mean 'fgsm'"):
        run_checks("fgsmm", world)


def test_a_plugin_file_is_checked_alone(tmp_path: Path) -> None:
    path = tmp_path / "nudge.py"
    path.write_text("from bench.plugin import *\n" + ATTACK.format(name="nudge"))
    results = run_checks(path, Registry.load(tmp_path / "none"))
    assert results[0].check == "passes-the-door"
    assert {r.name for r in results[1:]} == {"nudge"}


def test_a_plugin_that_is_refused_at_the_door_says_why(tmp_path: Path) -> None:
    path = tmp_path / "forgetful.py"
    path.write_text("def bench_attacks():\n    return ()\n")
    (result,) = run_checks(path, Registry.load(tmp_path / "none"))
    assert result.outcome is CheckOutcome.FAIL
    assert "without @hookimpl" in result.sentence


def test_a_bad_card_ends_the_check_before_any_code_runs(tmp_path: Path) -> None:
    place = entry(tmp_path, "hasty", f"open({str(tmp_path / 'ran')!r}, 'w')", card="licens = 'x'")
    (result,) = run_checks(place, Registry.load(tmp_path / "none"))
    assert result.outcome is CheckOutcome.FAIL
    assert "Did you mean 'licence'?" in result.sentence
    assert not (tmp_path / "ran").exists()


def test_results_are_plain_records() -> None:
    result = CheckResult("attack", "pgd", "the-same-again", CheckOutcome.PASS, "It is.")
    assert dataclasses.asdict(result)["outcome"] == "pass"
