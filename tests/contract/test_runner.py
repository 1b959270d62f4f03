"""Checks of registered names, files and folders, and their results."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from bench.cli.plugin_commands import check_plugin, print_checks
from bench.contract.check import CheckOutcome, CheckResult
from bench.contract.runner import CHECKS, run_checks
from bench.core.errors import BenchError, UnavailableError
from bench.plugin import Images
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


def test_checks_of_a_defense_without_weights_are_not_run(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    undefended = registry.defenses["undefended"].value
    result = run_named_check(registry, "defense", undefended, "builds")
    assert result.outcome is CheckOutcome.NOT_RUN
    assert "bench train undefended" in result.sentence


def test_missing_weights_can_be_trained_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "trained.py"
    path.write_text(TRAINED)
    registry = Registry.without_submissions()
    builds = {r.check: r for r in run_checks(path, registry)}["builds"]
    assert builds.outcome is CheckOutcome.NOT_RUN
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


BROKEN = """
from torch import nn
from bench.plugin import *

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        {forward}

@hookimpl
def bench_defenses():
    yield Defense("broken", lambda loader: {build}, datasets=("{data}",))
"""


def checked(folder: Path, **parts: str) -> list[CheckResult]:
    """The results for a defense of this source; a data set `absent` cannot be read."""
    named = {"forward": "return self.body(x)", "build": "Net().eval()", "data": "digits"}
    path = folder / "broken.py"
    path.write_text(BROKEN.format(**named | parts))
    registry = Registry.without_submissions()
    digits = registry.datasets["digits"]
    registry.datasets["absent"] = replace(
        digits, value=replace(digits.value, name="absent", load=missing)
    )
    return run_checks(path, registry)[1:]


def missing(folder: Path | None) -> Images:
    raise UnavailableError("absent: its files are missing; set BENCH_DATA.")


ROOT_CAUSES = [
    ({"forward": "return {'logits': self.body(x)}"}, "answers-are-logits", "type dict"),
    ({"forward": "return self.body(x), x"}, "answers-are-logits", "type tuple"),
    ({"forward": "return self.body(x).half()"}, "answers-are-logits", "torch.float16"),
    ({"build": "Net().half().eval()"}, "answers-are-logits", ".float() on the module"),
    ({"build": "None"}, "builds", "torch.nn.Module was expected"),
    ({"build": "1 / 0"}, "builds", "division by zero"),
]


@pytest.mark.parametrize(("parts", "check", "words"), ROOT_CAUSES)
def test_one_root_cause_is_described_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    parts: dict[str, str],
    check: str,
    words: str,
) -> None:
    results = checked(tmp_path, **parts)
    failed = [result for result in results if result.outcome is CheckOutcome.FAIL]
    assert [result.check for result in failed] == [check]
    assert words in failed[0].sentence
    passed = {result.check for result in results if result.outcome is CheckOutcome.PASS}
    assert {"names-are-known", "claims-are-shares"} <= passed
    rest = [result for result in results if result.outcome is CheckOutcome.NOT_RUN]
    assert {result.sentence for result in rest} == {f"because {check} failed."}
    assert len(rest) >= 20
    print_checks(results, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("not run") for line in lines) == 1
    assert len(lines) <= 5


def test_equal_failures_are_described_once(tmp_path: Path) -> None:
    results = checked(tmp_path, forward="return self.body(x.clamp_(0, 1))")
    writes = [r for r in results if "work on images.clone()" in r.sentence]
    assert len(writes) == 1 and writes[0].outcome is CheckOutcome.FAIL
    assert any(r.sentence == f"because {writes[0].check} failed." for r in results)


def test_missing_data_is_one_sentence_and_no_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = checked(tmp_path, data="absent")
    assert [r.check for r in results if "set BENCH_DATA" in r.sentence] == ["builds"]
    assert {r.outcome for r in results} == {CheckOutcome.NOT_RUN, CheckOutcome.PASS}
    print_checks(results, as_json=False)
    assert capsys.readouterr().out.count("set BENCH_DATA") == 1


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist"])
def test_a_check_without_the_data_that_it_needs_ends_with_code_5(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path))
    with pytest.raises(typer.Exit) as end:
        check_plugin(name)
    assert end.value.exit_code == 5
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("not run") for line in lines) == 2
    assert not any(line.startswith("fail") for line in lines)


def test_a_failed_check_ends_with_code_4(tmp_path: Path) -> None:
    checked(tmp_path, forward="return {}")
    with pytest.raises(typer.Exit) as end:
        check_plugin(str(tmp_path / "broken.py"))
    assert end.value.exit_code == 4


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


def test_a_folder_without_a_plugin_does_not_hide_the_plugin_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits-linf").mkdir()
    monkeypatch.chdir(tmp_path)
    results = run_checks("digits-linf")
    assert {result.kind for result in results} == {"threat"}
    assert all(result.outcome is CheckOutcome.PASS for result in results)
    (tmp_path / "digits-linf" / "plugin.py").write_text(ATTACK)
    assert "threat" not in {result.kind for result in run_checks("digits-linf")}


def test_a_folder_without_a_plugin_and_of_no_plugin_s_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (result,) = run_checks(tmp_path / "nothing")
    assert result.outcome is CheckOutcome.FAIL
