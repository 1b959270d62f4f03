"""The benchmarks' table is whole, their counts and their referee are right, one target runs."""

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
    engine,
    models,
    ours,
    peers,
    row,
    strength,
    subprocess_pair,
    table,
    targets,
)
from tests.benchmarks.device_busy import covered
from tests.benchmarks.models import World
from tests.benchmarks.outcome import Outcome, counted, judged, referee
from tests.benchmarks.row import Bar, Pair, Scale, Target
from tests.benchmarks.unit_cost import Floor
from tests.fixtures.known_models import digits, small_cnn

PROMISED = {f"T{number}" for number in range(1, 16)}
KEYS = {"ours", "peer", "ratio", "bar", "holds", "robust_ours", "robust_peer", "forwards",
        "gradients"}  # fmt: skip


def tiny(count: int = 24) -> World:
    x, y = digits(count)
    return models.opened("tiny", small_cnn(), x, y, Linf(Fraction(1, 5)))


def outcome(broken: list[bool], seconds: float, distance: float = 1.0) -> Outcome:
    flags = torch.tensor(broken)
    return Outcome(flags, torch.full((len(flags),), distance), torch.zeros(0), seconds, 2, 1, 1)


def race_of(mine: Outcome, other: Outcome, bar: float = 2.0) -> row.Row:
    target = Target("T0.x", "a race", Bar(bar), race_never, 4)
    pairs = [Pair(mine, other, Floor(1.0, 0.5))] * 3
    return row.compared(target, tiny(4), pairs, row.strength(pairs))


def race_never(*args: object, **options: object) -> row.Row:
    raise AssertionError("a measured target was measured again")


def test_every_promised_target_is_in_the_table_once() -> None:
    names = [target.key for target in (*targets.TARGETS, *targets.DEVICE_TARGETS)]
    assert len(names) == len(set(names))
    assert {target.family for target in targets.TARGETS} == PROMISED
    assert {target.family for target in targets.DEVICE_TARGETS} == {"T17"}
    known = [target.key for target in strength.table()]
    assert len(known) == len(set(known))


def test_bf16_bars_are_marked_so_that_they_are_held_only_where_it_exists() -> None:
    for target in targets.TARGETS:
        assert target.bfloat16 == ("bfloat16" in target.what) == target.key.endswith("bf16")


def test_a_name_chooses_a_family_or_one_form_and_a_wrong_one_is_told() -> None:
    assert [t.key for t in targets.chosen(["T1"], "cpu")] == ["T1.float32", "T1.bf16"]
    assert [t.key for t in targets.chosen(["T2.art"], "cpu")] == ["T2.art"]
    with pytest.raises(KeyError, match="no target is called T99; there are T1, T2"):
        targets.chosen(["T99"], "cpu")


@pytest.mark.parametrize(
    ("mine", "other", "holds"),
    [
        (outcome([True, True], 1.0), outcome([True, True], 2.0), True),
        (outcome([True, True], 1.0), outcome([True, True], 1.9), False),
        (outcome([True, False], 1.0), outcome([True, True], 9.0), False),
        (outcome([True, True], 1.0), outcome([True, False], 9.0), True),
    ],
    ids=["at the bar", "too slow", "weaker", "stronger"],
)
def test_a_race_holds_when_it_is_fast_enough_and_not_weaker(
    mine: Outcome, other: Outcome, holds: bool
) -> None:
    assert race_of(mine, other).holds is holds


def test_the_ratio_is_the_peers_time_over_ours() -> None:
    found = race_of(outcome([True], 2.0), outcome([True], 8.0))
    assert (found.ratio, found.ours, found.peer) == (4.0, 0.5, 2.0)


def test_a_norm_must_not_be_above_the_peers() -> None:
    near, far = outcome([True] * 4, 1.0, 1.0), outcome([True] * 4, 1.0, 1.2)
    unit = Floor(1.0, 0.5)
    assert row.nearness([Pair(near, far, unit)]) == ""
    assert "median L2 1.2000, the peer's 1.0000" in row.nearness([Pair(far, near, unit)])


def test_the_counter_counts_calls_images_and_gradients() -> None:
    model, x = small_cnn(), digits(6)[0]
    with counted(model) as counter:
        model(x)
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        for column in logits.sum(0)[:2]:
            torch.autograd.grad(column, leaf, retain_graph=True)
    assert (counter.calls, counter.forwards, counter.gradients) == (2, 12, 12)


def test_a_peer_that_leaves_the_ball_has_broken_nothing() -> None:
    place = tiny()

    def cheat(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return 1 - x

    run = peers.run(place, cheat, None, 0)
    assert torch.equal(run.broken, ~place.right)


def test_a_peer_gets_a_model_of_its_own_and_only_what_is_right() -> None:
    place = tiny()
    seen: list[int] = []

    def spoil(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        seen.append(len(x))
        with torch.no_grad():
            for value in model.parameters():
                value.zero_()
        return x

    before = place.model(place.x)
    run = peers.run(place, spoil, None, 0)
    assert seen == [int(place.right.sum())]
    assert torch.equal(place.model(place.x), before)
    assert torch.equal(run.broken, ~place.right)


def test_a_cascade_breaks_what_any_of_its_attacks_breaks_and_plays_less() -> None:
    place = tiny()
    alone = [ours.ours(name)(place, 0) for name in ("fgsm", "pgd")]
    both = ours.cascade(("fgsm", "pgd"))(place, 0)
    assert torch.equal(both.broken, alone[0].broken | alone[1].broken)
    assert both.gradients < alone[0].gradients + alone[1].gradients
    assert judged(referee(place, place.ball, Goal(), minimises=False), both.image)[0].sum() > 12


def test_compaction_makes_a_call_a_step_until_everybody_is_broken() -> None:
    place = tiny()._replace(ball=engine.NARROW)
    calls, spent = engine.compaction(place)
    assert calls == 41
    assert spent == pytest.approx(41 * float(place.right.double().mean()))


def test_wins_are_verified_one_by_one() -> None:
    place = tiny()
    run = ours.ours("pgd", ours.Way(Numeric.FAST))(place, 0)
    won = (run.broken & place.right).nonzero()[:, 0]
    assert len(won) > 12
    assert engine.stands(place, run, won).all()
    outside = run._replace(image=run.image + 1e-3)
    assert not engine.stands(place, outside, won).any()


def test_busy_time_is_the_union_of_what_ran() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4


def test_weights_are_named_by_the_whole_recipe() -> None:
    files = {recipe.file for recipe in models.RECIPES.values()}
    assert len(files) == len(models.RECIPES)


def test_a_row_survives_json(tmp_path: Path) -> None:
    one = race_of(outcome([True], 1.0), outcome([True], 3.0))
    table.save(tmp_path / "out.json", {one.target: one.fields()})
    content = table.load(tmp_path / "out.json")
    assert set(content[one.target]) >= KEYS
    assert table.row_of(content[one.target]) == one
    assert len(table.cells(one)) == len(table.COLUMNS)
    assert {field.name for field in fields(one)} == set(content[one.target])


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = race_of(outcome([True], 1.0), outcome([True], 3.0))
    path = tmp_path / "out.json"
    table.save(path, {one.target: one.fields()})
    monkeypatch.setattr(program, "apart", race_never)
    assert program.measured(["T0.x"], Scale(), path, False) == [one]


def test_a_target_that_needs_bfloat16_says_so_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess_pair, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(program, "apart", subprocess_pair.single)
    assert program.measured(["T1.bf16"], Scale(), None, False) == []


def test_one_target_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchattacks", reason="the peer is an extra")
    monkeypatch.setattr(row, "world", lambda name: tiny())
    monkeypatch.setattr(program, "apart", subprocess_pair.single)
    path = tmp_path / "out.json"
    runner = CliRunner()
    app = typer.Typer()
    app.command()(program.main)
    shown = runner.invoke(app, ["--target", "T2.torchattacks", "--pairs", "1", "--json", str(path)])
    found = json.loads(path.read_text())["T2.torchattacks"]
    assert shown.exit_code == (0 if found["holds"] else 1)
    assert found["gradients"]["peer"] == pytest.approx(40 * float(tiny().right.double().mean()))
    assert found["gradients"]["ours"] < found["gradients"]["peer"]
    assert found["robust_ours"] <= found["robust_peer"]


@pytest.mark.slow
def test_a_target_is_measured_in_a_process_of_its_own() -> None:
    here = dict(ours.FASTER)
    found = subprocess_pair.apart("T2.gradients", Scale(examples=16), False)
    assert (found.target, found.examples) == ("T2.gradients", 16)
    assert 1 < found.gradients.ours <= 40
    assert here == ours.FASTER, "the model was made elsewhere"
