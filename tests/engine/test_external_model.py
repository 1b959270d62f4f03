"""Tests of bench.engine.external_model: external attacks are counted, limited and isolated."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.contract.fixtures import ModelState, RandomState
from bench.core.cells import Numeric
from bench.core.errors import PluginError
from bench.data import datasets
from bench.engine.external_model import ExternalLedger, ExternalModel
from bench.engine.ledger import QueryLedger
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BATCH_UNIT
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.plugin import Access, ExternalProblem
from bench.registry.registry import Registry
from bench.threats.access import Budget
from bench.threats.norms import Linf, PerturbationSet
from bench.training.tasks import build_trained
from tests.engine.external_cell import (
    EPS,
    FREE,
    LINF,
    AlwaysRight,
    Run,
    attack,
    cell,
    counting_hooks,
    input_gradient,
    run_cell,
    run_on_small_cnn,
    sign_steps,
)
from tests.fixtures.known_models import digits, small_cnn


def three_forwards_four_gradients(problem: ExternalProblem) -> Tensor:
    """Makes three forwards and four backwards of each row: one graph is used three times."""
    input_gradient(problem, problem.x)
    leaf = problem.x.clone().requires_grad_()
    logits = problem.model(leaf)
    for column in (0, 1, 2):
        torch.autograd.grad(logits[:, column].sum(), leaf, retain_graph=True)
    with torch.no_grad():
        problem.model(problem.x)
    return problem.x


def test_counts_equal_those_of_independent_hooks() -> None:
    model = AlwaysRight()
    spec = cell(attack(three_forwards_four_gradients), model)
    rows = counting_hooks(model)
    found = run_cell(spec)
    checks = int(found.final_checks.sum())
    assert (int(found.forwards.sum()), int(found.gradients.sum()), checks) == (96, 128, 32)
    assert rows == {"forward": 96 + checks, "backward": 128}


def test_a_single_row_is_charged_for_all_its_images() -> None:
    def population(problem: ExternalProblem) -> Tensor:
        leaf = problem.x.repeat(5, 1, 1, 1).requires_grad_()
        torch.autograd.grad(problem.model(leaf).sum(), leaf)
        problem.model(problem.x)
        return problem.x

    model = AlwaysRight()
    spec = cell(attack(population, rows=1), model)
    rows = counting_hooks(model)
    found = run_cell(spec)
    assert (
        found.forwards.tolist() == [6] * BATCH_UNIT and found.gradients.tolist() == [5] * BATCH_UNIT
    )
    assert rows["forward"] == 7 * BATCH_UNIT and rows["backward"] == 5 * BATCH_UNIT


def test_named_rows_are_charged_for_their_images() -> None:
    def some(problem: ExternalProblem) -> Tensor:
        rows = torch.tensor([9, 2])
        with problem.model.for_rows(rows):
            problem.model(problem.x[rows])
        problem.model(problem.x)
        return problem.x

    found = run_cell(cell(attack(some), AlwaysRight()))
    assert [row for row, count in enumerate(found.forwards.tolist()) if count == 2] == [2, 9]
    assert int(found.forwards.sum()) == BATCH_UNIT + 2


def test_padding_rows_are_neither_charged_nor_judged() -> None:
    found = run_cell(cell(attack(three_forwards_four_gradients), AlwaysRight(), n=BATCH_UNIT + 5))
    assert found.forwards.tolist() == [3] * (BATCH_UNIT + 5) and len(found.item) == BATCH_UNIT + 5


@pytest.mark.parametrize(("images", "rows", "forwards"), [(1, 64, 1000), (64, 1, 960)])
def test_the_query_budget_stops_an_endless_run(images: int, rows: int, forwards: int) -> None:
    def endless(problem: ExternalProblem) -> Tensor:
        query = problem.x.repeat(images, 1, 1, 1)
        while True:
            try:
                problem.model(query)
            except Exception:  # what libraries do
                continue

    budget, labels = Budget(queries=1000), ModelAccess(AlwaysRight(), access=Access.LABELS)
    n = 2 if rows == 1 else BATCH_UNIT
    spec = cell(attack(endless, rows=rows), AlwaysRight(), n=n, budget=budget, model_access=labels)
    found = run_cell(spec)
    assert found.forwards.tolist() == [forwards] * n
    assert torch.equal(found.image, spec.x[:]) and found.final_checks.sum() == 0


def test_the_gradient_budget_stops_a_run_in_the_backward_pass() -> None:
    result = run_on_small_cnn(
        lambda problem: sign_steps(problem, 40), n=64, budget=Budget(gradients=7)
    )
    assert result.gradients.max() == 7
    assert 0 < result.broken.sum() < 64


def test_a_stopped_library_gets_no_further_answers() -> None:
    answers_received: list[int] = []

    def catches_everything(problem: ExternalProblem) -> Tensor:
        for _ in range(20):
            try:
                problem.model(problem.x)
                answers_received.append(1)
            except BaseException:
                continue
        return problem.x

    found = run_cell(cell(attack(catches_everything), AlwaysRight(), budget=Budget(queries=3)))
    assert len(answers_received) == 3 and set(found.forwards.tolist()) == {3}


@pytest.mark.row("G11", "G12")
@pytest.mark.parametrize("access", [Access.LABELS, Access.SCORES, Access.GRADIENTS])
def test_answers_are_limited_to_the_access_level(access: Access) -> None:
    model, (x, _) = small_cnn(), digits(BATCH_UNIT)
    active = torch.ones(BATCH_UNIT, dtype=torch.bool)
    till = ExternalLedger(QueryLedger(BATCH_UNIT, FREE, x.device), active)
    external_model = ExternalModel(
        ModelAccess(model),
        access,
        till,
        name="external",
        shape=(1, 8, 8),
        on_answer=lambda *_: False,
    )
    answer = external_model(x.clone().requires_grad_())
    assert answer.requires_grad == (access is Access.GRADIENTS)
    assert torch.equal(answer.argmax(1), model(x).argmax(1))
    if access is Access.LABELS:
        assert set(answer.flatten().tolist()) == {0.0, 1.0} and (answer.sum(1) == 1).all()
    else:
        assert torch.equal(answer, model(x))
    assert (
        list(external_model.parameters())
        == list(external_model.buffers())
        == list(external_model.children())
        == []
    )


def test_an_attack_that_needs_labels_gets_one_hot_labels() -> None:
    def look(problem: ExternalProblem) -> Tensor:
        assert set(problem.model(problem.x).flatten().tolist()) == {0.0, 1.0}
        return problem.x

    run_cell(cell(attack(look, needs=Access.LABELS)))


@pytest.mark.parametrize("shown", [Access.LABELS, Access.GRADIENTS])
def test_an_attack_that_needs_nothing_gets_no_answer(shown: Access) -> None:
    answers_received: list[Tensor] = []

    def look(problem: ExternalProblem) -> Tensor:
        answers_received.append(problem.model(problem.x))
        return problem.x

    spec = cell(attack(look, needs=Access.NOTHING))
    access = ModelAccess(spec.model_access.module, access=shown)
    message = "external queried .* declares needs = Access.NOTHING; declare needs = Access.LABELS"
    with pytest.raises(PluginError, match=message):
        run_cell(replace(spec, model_access=access))
    assert answers_received == []


def test_no_library_is_answered_where_the_threat_model_reveals_nothing() -> None:
    spec = cell(attack(sign_steps))
    access = ModelAccess(spec.model_access.module, access=Access.NOTHING, attack_name="external")
    with pytest.raises(
        PluginError, match="external requested labels, but this threat model reveals nothing"
    ):
        run_cell(replace(spec, model_access=access))


def test_an_attack_that_needs_nothing_runs_without_queries() -> None:
    found = run_cell(cell(attack(lambda problem: problem.x, needs=Access.NOTHING)))
    assert (found.forwards == 0).all() and (found.gradients == 0).all()


def changes_global_state(problem: ExternalProblem) -> Tensor:
    """Changes everything that a library can reach outside its own state."""
    model: Any = problem.model
    model.train()
    model.requires_grad_(True)
    input_gradient(problem, problem.x)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    torch.rand(3), np.random.rand(3), random.random()
    problem.x.zero_()
    problem.y.zero_()
    if problem.ball.radius < EPS:
        raise ValueError("out of ideas")
    return problem.x


@pytest.mark.parametrize(
    "ball", [LINF, Linf(Fraction(1, 255))], ids=["to the end", "until it fails"]
)
def test_a_library_leaves_model_and_random_state_unchanged(ball: PerturbationSet) -> None:
    model = copy.deepcopy(small_cnn())
    spec = cell(attack(changes_global_state), model, ball=ball)
    state, world, x = ModelState.of(model), RandomState.snapshot(), spec.x[:].clone()
    if ball is LINF:
        run_cell(spec)
    else:
        with pytest.raises(
            PluginError, match="external failed in its own run: ValueError: out of id"
        ):
            run_cell(spec)
    assert state.changed() == [] and world.changed() == []
    assert torch.equal(spec.x[:], x) and not any(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


def test_the_engine_keeps_no_reference_to_the_library() -> None:
    class Library:
        pass

    kept: list[weakref.ref[Library]] = []

    def run(problem: ExternalProblem) -> Tensor:
        library = Library()
        library.model = problem.model  # type: ignore[attr-defined]
        library.answer = problem.model(problem.x.requires_grad_())  # type: ignore[attr-defined]
        kept.append(weakref.ref(library))
        return problem.x

    spec = cell(attack(run))
    found = run_cell(spec)
    gc.collect()
    assert kept[0]() is None and not found.image.requires_grad


def test_output_of_a_library_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(problem: ExternalProblem) -> Tensor:
        print("epoch 1 of 7")
        return problem.x

    run_cell(cell(attack(chatty)))
    assert capsys.readouterr() == ("", "epoch 1 of 7\n")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda p: p.x.double(), r"external.run returned torch.float64 \[32, 1, 8, 8\]"),
        (lambda p: p.x[:3], r"external.run returned torch.float32 \[3, 1, 8, 8\]"),
        (lambda p: None, "external.run returned None"),
        (lambda p: p.model(p.x.double()), "queried torch.float64 images; float32 was expected"),
        (lambda p: p.model(p.x[0]), r"queried images \[1, 8, 8\]; \[rows, 1, 8, 8\] was expe"),
        (lambda p: p.model(p.x[:5]), "queried 5 images for 32 rows, so that their rows are"),
        (lambda p: exit("I am done"), "external failed in its own run: SystemExit: I am done"),
        (lambda p: p.model.for_rows(torch.tensor([1, 1])).__enter__(), "named a row twice"),
    ],
)  # fmt: skip
def test_each_misuse_is_a_plugin_error_with_its_cause(run: Run, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        run_cell(cell(attack(run)))


def test_bpda_gives_the_gradient_and_the_defense_the_answer() -> None:
    class Steps(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = small_cnn()((images * 4).round() / 4)
            return logits

    answers: list[Tensor] = []

    def run(problem: ExternalProblem) -> Tensor:
        answers.append(problem.model(problem.x.clone().requires_grad_()).detach())
        answers.append(input_gradient(problem, problem.x))
        return problem.x

    model = Steps()
    spec = cell(attack(run), model, reached_on_clean=torch.zeros(BATCH_UNIT, dtype=torch.bool))
    run_cell(replace(spec, model_access=ModelAccess(model, bpda=small_cnn())))
    assert torch.equal(answers[0], model(spec.x)) and answers[1].abs().sum() > 0
    run_cell(spec)
    assert answers[3].abs().sum() == 0


def test_an_external_attack_never_gets_a_faster_form() -> None:
    """A library may keep an answer or use its graph twice."""
    found = Registry.load()
    dataset = found.datasets["digits"].value
    builder = build_trained(found, "undefended", dataset)
    settings = RunSettings(torch.device("cpu"), numeric=Numeric.FAST)
    built = BuiltDefense(builder, datasets.first_examples(dataset, BATCH_UNIT), settings, 0)
    threat = found.find("threat", "digits-linf").value
    assert built.fast_model.applied
    assert built.cell_spec(threat, attack(sign_steps), None).model_access.module is built.module
    stepwise = found.find("attack", "pgd").value
    stepwise_module = built.cell_spec(threat, stepwise, None).model_access.module
    assert stepwise_module is built.fast_model.module
