"""Optimisation inside an answer is counted; declared passes and built-in defenses are clear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.engine.answer_work import work_of_answer
from bench.plugin import AnswerWork, Finding, Subject
from plugins.diagnostics.inner_optimisation import MANY, InnerOptimisation
from tests.plugins.diagnostics.dynamic import (
    OPTIMISING,
    STEPS,
    Dynamic,
    by_backward,
    by_func,
    by_grad,
    by_query_and_func,
    by_search,
    costing,
    optimising,
)
from tests.plugins.diagnostics.networks import digits, network, registry, subject


class Recurrent(nn.Module):
    """A network that repeats one layer over the rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(8, 16), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        state = images.new_zeros(len(images), 16)
        for row in images.squeeze(1).unbind(1):
            state = self.cell(row, state)
        logits: Tensor = self.head(state)
        return logits


class MeanOf(nn.Module):
    """The mean answer to several moved copies of an image."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.module, self.copies = network(), copies

    def forward(self, images: Tensor) -> Tensor:
        answers = [self.module(images.roll(k, -1)) for k in range(self.copies)]
        return torch.stack(answers).mean(0)


@pytest.mark.parametrize(
    ("module", "work"),
    [
        (network(), AnswerWork(1, 0)),
        (Recurrent(), AnswerWork(1, 0)),
        (nn.Flatten(), AnswerWork(0, 0)),
        (MeanOf(7), AnswerWork(7, 0)),
        (Dynamic(by_grad), AnswerWork(STEPS + 1, STEPS)),
        (Dynamic(by_backward, 3), AnswerWork(4, 3)),
        (Dynamic(by_func, 3), AnswerWork(4, 1)),
        (Dynamic(by_query_and_func, 2), AnswerWork(5, 1)),
        (Dynamic(by_search), AnswerWork(2 * STEPS + 1, 0)),
    ],
    ids=["network", "recurrent", "no parameters", "mean of 7", "gradients", "optimizer",
         "torch.func", "torch.func after a query", "search"],
)  # fmt: skip
def test_passes_and_gradients_of_an_answer_are_counted(module: nn.Module, work: AnswerWork) -> None:
    images = digits().x[:3]
    kept = images.clone()
    assert work_of_answer(module.requires_grad_(False), images) == work
    assert torch.equal(images, kept)
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_counting_changes_no_gradient_inside() -> None:
    """Tensors are detached when they are kept for a backward pass, which must not change it."""
    found: list[Tensor] = []

    def step(module: nn.Module, images: Tensor) -> Tensor:
        found.append(by_grad(module, images))
        return found[-1]

    module = Dynamic(step)
    work_of_answer(module, digits().x[:5])
    with torch.no_grad():
        module(digits().x[:5])
    assert all(torch.equal(one, two) for one, two in zip(found[:STEPS], found[STEPS:], strict=True))


def test_an_error_of_the_defense_is_its_own() -> None:
    def fail(module: nn.Module, images: Tensor) -> Tensor:
        raise RuntimeError("no images today")

    with pytest.raises(RuntimeError, match="no images today"):
        work_of_answer(Dynamic(fail), digits().x[:2])


@pytest.mark.parametrize(
    "build",
    [
        costing(optimising(by_grad), STEPS + 1),
        costing(optimising(by_backward, 1), 2),
        costing(optimising(by_search), 2 * STEPS + 1),
        lambda: subject(Recurrent()),
        lambda: subject(MeanOf(MANY)),
    ],
    ids=["gradients", "one gradient", "search", "recurrent", "few passes"],
)
def test_declared_passes_and_ordinary_networks_are_clear(build: Callable[[], Subject]) -> None:
    evidence = InnerOptimisation().examine_subject(build())
    assert evidence.finding is Finding.PASSED, evidence.sentence


def test_the_sentence_names_the_kind_and_the_declaration() -> None:
    sentences = {w: InnerOptimisation().examine_subject(costing(make, forwards)()).sentence
                 for w, make, forwards in OPTIMISING}  # fmt: skip
    assert sentences["gradients"] == (
        f"dynamic: it optimises while it answers: for one answer it takes {STEPS} gradients and"
        f" makes {STEPS + 1} passes of its network, and declares forwards=1; declare"
        f" forwards={STEPS + 1}."
    )
    assert sentences["a search without gradients"].startswith("it repeats its network: ")
    assert f"forwards={STEPS}; declare" in sentences["more gradients than declared"]


def test_what_cannot_be_observed_is_not_tested() -> None:
    found = InnerOptimisation().examine_subject(subject(network())._replace(answer_work=None))
    assert found.finding is Finding.NOT_TESTED


class Untrained:
    """A loader that leaves random weights."""

    shape, classes = (1, 8, 8), 10

    def trained(self, module: nn.Module) -> nn.Module:
        return module

    def weights(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        return module

    def defense(self, name: str) -> nn.Module:
        module: nn.Module = registry().find("defense", name).value.build(self)
        return module


def test_no_built_in_defense_is_accused() -> None:
    accused = {}
    for name, found in registry().defenses.items():
        if "digits" in found.value.datasets:
            module = found.value.build(Untrained()).eval().requires_grad_(False)
            built = subject(module)._replace(defense=found.value)
            evidence = InnerOptimisation().examine_subject(built)
            if evidence.finding is not Finding.PASSED:
                accused[name] = evidence.sentence
    assert accused == {}
