"""Benchmarks: the table of targets, counts, verification, and one target end to end."""

from __future__ import annotations

import json
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor, nn
from typer.testing import CliRunner

from bench.core.cells import Numeric
from bench.plugin import Goal, Linf
from tests.benchmarks import __main__ as program
from tests.benchmarks import (
    cases,
    comparison,
    engine_targets,
    our_runs,
    peer_attacks,
    results_table,
    speed_targets,
    strength_targets,
    subprocess_run,
)
from tests.benchmarks.cases import Case
from tests.benchmarks.comparison import Pair, Scale, Target, Threshold
from tests.benchmarks.device_share import union_length
from tests.benchmarks.run_result import RunResult, counted, referee, verified_images
from tests.benchmarks.unit_cost import UnitCost
from tests.fixtures.known_models import digits, small_cnn

FAMILIES = {f"T{number}" for number in range(1, 16)}
KEYS = {"ours", "peer", "ratio", "threshold", "holds", "robust_ours", "robust_peer", "forwards",
        "gradients"}  # fmt: skip


def tiny(count: int = 24) -> Case:
    x, y = digits(count)
    return cases.frozen_case("tiny", small_cnn(), x, y, Linf(Fraction(1, 5)))


def run_result(broken: list[bool], seconds: float, distance: float = 1.0) -> RunResult:
    flags = torch.tensor(broken)
    return RunResult(flags, torch.full((len(flags),), distance), torch.zeros(0), seconds, 2, 1, 1)


def result_against(
    our_run: RunResult, peer_run: RunResult, threshold: float = 2.0
) -> comparison.TargetResult:
    target = Target("T0.x", "a comparison", Threshold(threshold), never_measure, 4)
    pairs = [Pair(our_run, peer_run, UnitCost(1.0, 0.5))] * 3
    return comparison.summarised(target, tiny(4), pairs, comparison.strength_fault(pairs))


def never_measure(*args: object, **options: object) -> comparison.TargetResult:
    raise AssertionError("a measured target was measured again")


def test_every_target_is_in_the_table_once() -> None:
    names = [target.key for target in (*speed_targets.TARGETS, *speed_targets.DEVICE_TARGETS)]
    assert len(names) == len(set(names))
    assert {target.family for target in speed_targets.TARGETS} == FAMILIES
    assert {target.family for target in speed_targets.DEVICE_TARGETS} == {"T17"}
    known = [target.key for target in strength_targets.all_targets()]
    assert len(known) == len(set(known))


def test_targets_in_bfloat16_are_marked() -> None:
    for target in speed_targets.TARGETS:
        assert target.bfloat16 == ("bfloat16" in target.what) == target.key.endswith("bf16")


def test_a_name_selects_a_family_or_one_target_and_an_unknown_name_is_an_error() -> None:
    assert [t.key for t in speed_targets.selected(["T1"], "cpu")] == ["T1.float32", "T1.bf16"]
    assert [t.key for t in speed_targets.selected(["T2.art"], "cpu")] == ["T2.art"]
    with pytest.raises(KeyError, match="no target is called T99; there are T1, T2"):
        speed_targets.selected(["T99"], "cpu")


@pytest.mark.parametrize(
    ("our_run", "peer_run", "holds"),
    [
        (run_result([True, True], 1.0), run_result([True, True], 2.0), True),
        (run_result([True, True], 1.0), run_result([True, True], 1.9), False),
        (run_result([True, False], 1.0), run_result([True, True], 9.0), False),
        (run_result([True, True], 1.0), run_result([True, False], 9.0), True),
    ],
    ids=["at the threshold", "too slow", "weaker", "stronger"],
)
def test_a_target_holds_where_ours_is_fast_enough_and_not_weaker(
    our_run: RunResult, peer_run: RunResult, holds: bool
) -> None:
    assert result_against(our_run, peer_run).holds is holds


def test_the_ratio_is_the_peers_time_over_ours() -> None:
    found = result_against(run_result([True], 2.0), run_result([True], 8.0))
    assert (found.ratio, found.ours, found.peer) == (4.0, 0.5, 2.0)


def test_a_median_norm_above_the_peers_is_a_fault() -> None:
    near, far = run_result([True] * 4, 1.0, 1.0), run_result([True] * 4, 1.0, 1.2)
    unit = UnitCost(1.0, 0.5)
    assert comparison.distance_fault([Pair(near, far, unit)]) == ""
    fault = comparison.distance_fault([Pair(far, near, unit)])
    assert "median L2 1.2000, the peer's 1.0000" in fault


def test_the_counter_counts_calls_images_and_gradients() -> None:
    model, x = small_cnn(), digits(6)[0]
    with counted(model) as counter:
        model(x)
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        for column in logits.sum(0)[:2]:
            torch.autograd.grad(column, leaf, retain_graph=True)
    assert (counter.calls, counter.forwards, counter.gradients) == (2, 12, 12)


def test_a_peer_that_leaves_the_ball_breaks_nothing() -> None:
    case = tiny()

    def leave_the_ball(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return 1 - x

    run = peer_attacks.run_peer(case, leave_the_ball, None, 0)
    assert torch.equal(run.broken, ~case.correct)


def test_a_peer_attacks_a_copy_of_the_model_on_correctly_classified_examples() -> None:
    case = tiny()
    seen: list[int] = []

    def zero_the_model(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        seen.append(len(x))
        with torch.no_grad():
            for value in model.parameters():
                value.zero_()
        return x

    before = case.model(case.x)
    run = peer_attacks.run_peer(case, zero_the_model, None, 0)
    assert seen == [int(case.correct.sum())]
    assert torch.equal(case.model(case.x), before)
    assert torch.equal(run.broken, ~case.correct)


def test_a_cascade_breaks_what_any_of_its_attacks_breaks_with_fewer_gradients() -> None:
    case = tiny()
    alone = [our_runs.ours(name)(case, 0) for name in ("fgsm", "pgd")]
    both = our_runs.cascade(("fgsm", "pgd"))(case, 0)
    assert torch.equal(both.broken, alone[0].broken | alone[1].broken)
    assert both.gradients < alone[0].gradients + alone[1].gradients
    broken, _ = verified_images(referee(case, case.ball, Goal(), minimises=False), both.image)
    assert broken.sum() > 12


def test_compaction_makes_one_call_per_step_while_examples_are_unbroken() -> None:
    case = tiny()._replace(ball=engine_targets.NARROW_BALL)
    calls, spent = engine_targets.compaction_calls(case)
    assert calls == 41
    assert spent == pytest.approx(41 * float(case.correct.double().mean()))


def test_adversarial_examples_are_verified_one_by_one() -> None:
    case = tiny()
    run = our_runs.ours("pgd", our_runs.RunOptions(Numeric.FAST))(case, 0)
    found = (run.broken & case.correct).nonzero()[:, 0]
    assert len(found) > 12
    assert engine_targets.verified_again(case, run, found).all()
    outside = run._replace(image=run.image + 1e-3)
    assert not engine_targets.verified_again(case, outside, found).any()


def test_busy_time_is_the_union_of_the_intervals() -> None:
    assert union_length([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4


def test_different_recipes_have_different_weights_files() -> None:
    files = {recipe.file for recipe in cases.RECIPES.values()}
    assert len(files) == len(cases.RECIPES)


def test_a_result_survives_json(tmp_path: Path) -> None:
    one = result_against(run_result([True], 1.0), run_result([True], 3.0))
    results_table.save(tmp_path / "out.json", {one.target: one.fields()})
    content = results_table.load(tmp_path / "out.json")
    assert set(content[one.target]) >= KEYS
    assert results_table.result_of(content[one.target]) == one
    assert len(results_table.cells(one)) == len(results_table.COLUMNS)
    assert {field.name for field in fields(one)} == set(content[one.target])


def test_a_resumed_run_measures_only_the_missing_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = result_against(run_result([True], 1.0), run_result([True], 3.0))
    path = tmp_path / "out.json"
    results_table.save(path, {one.target: one.fields()})
    monkeypatch.setattr(program, "in_subprocess", never_measure)
    assert program.measure_targets(["T0.x"], Scale(), path, False) == [one]


def test_a_target_in_bfloat16_is_not_measured_on_a_device_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess_run, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(program, "in_subprocess", subprocess_run.in_process)
    assert program.measure_targets(["T1.bf16"], Scale(), None, False) == []


def test_one_target_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchattacks", reason="the peer is an extra")
    monkeypatch.setattr(comparison, "load_case", lambda name: tiny())
    monkeypatch.setattr(program, "in_subprocess", subprocess_run.in_process)
    path = tmp_path / "out.json"
    runner = CliRunner()
    app = typer.Typer()
    app.command()(program.main)
    shown = runner.invoke(app, ["--target", "T2.torchattacks", "--pairs", "1", "--json", str(path)])
    found = json.loads(path.read_text())["T2.torchattacks"]
    assert shown.exit_code == (0 if found["holds"] else 1)
    assert found["gradients"]["peer"] == pytest.approx(40 * float(tiny().correct.double().mean()))
    assert found["gradients"]["ours"] < found["gradients"]["peer"]
    assert found["robust_ours"] <= found["robust_peer"]


@pytest.mark.slow
def test_a_target_is_measured_in_a_new_process() -> None:
    before = dict(our_runs.FAST_MODELS)
    found = subprocess_run.in_subprocess("T2.gradients", Scale(examples=16), False)
    assert (found.target, found.examples) == ("T2.gradients", 16)
    assert 1 < found.gradients.ours <= 40
    assert before == our_runs.FAST_MODELS, "the model was built in this process"
