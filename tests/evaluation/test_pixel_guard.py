"""Clean pixels: no plugin changes them, and a cell in which they have changed records nothing."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.cells import CellState, Culprit
from bench.core.errors import PluginError
from bench.core.outcomes import Outcomes
from bench.data import datasets
from bench.evaluation import plan
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.certification import certificates_of
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.diagnostics import evidence_of
from bench.evaluation.pixel_guard import PixelGuard
from bench.evaluation.plan import PlannedPair, Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Access, Defense, Evidence, Finding, Problem
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.store import Store
from tests.fixtures.known_models import small_cnn
from tests.fixtures.writing_plugins import WRITES, WritingModel

CPU = RunSettings(torch.device("cpu"), 64)


def registered(value: Any) -> Registration[Any]:
    return Registration(value, "entry-point", "tests", "0" * 64)


def defense(write: str, *, honest: bool) -> Defense:
    name = f"{write}-{'honest' if honest else 'writing'}"
    return Defense(name, lambda _: WritingModel(copy.deepcopy(small_cnn()), write, honest=honest))


class GuardedRun:
    """One registered defense and attack under digits-linf."""

    def __init__(self, defense: Defense, attack: Any = "pgd", examples: int = 64) -> None:
        self.registry = Registry.without_submissions()
        self.registry.defenses[defense.name] = registered(defense)
        if not isinstance(attack, str):
            self.registry.attacks[attack.name] = registered(attack)
            attack = attack.name
        self.selection = Selection(("digits-linf",), (defense.name,), (attack,), examples=examples)
        self.cache = DefenseCache(registry=self.registry, selection=self.selection, settings=CPU)

    def planned(self) -> tuple[PlannedPair, BuiltDefense]:
        (pair,) = plan.plan_pairs(self.registry, self.selection)
        return pair, self.cache.defense(pair.defense, pair.threat)

    def outcomes(self) -> tuple[BuiltDefense, Outcomes]:
        pair, built = self.planned()
        return built, CellPlayer().outcomes(pair, built)


@pytest.mark.parametrize("write", WRITES)
def test_a_defense_that_writes_is_judged_like_its_honest_counterpart(write: str) -> None:
    (built, one), (_, two) = (
        GuardedRun(defense(write, honest=honest)).outcomes() for honest in (False, True)
    )
    for name in Outcomes._fields:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert torch.equal(built.x[:], built.examples.tensor())
    assert (one.verdict == 1).sum() > 0


class Clamped(nn.Module):
    """The small CNN on images clamped to [0.25, 0.75] by a differentiable clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.body = copy.deepcopy(small_cnn())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images.clamp(0.25, 0.75))
        return logits


def test_adversarial_examples_of_a_clamp_in_place_break_the_same_clamp_on_a_copy() -> None:
    run = GuardedRun(defense("clamp", honest=False))
    pair, built = run.planned()
    chunks = list(CellPlayer(keep_images="all").chunks(pair, built))
    original, labels = built.examples.tensor(), torch.from_numpy(built.examples.labels.copy())
    broken = 0
    for chunk in chunks:
        assert chunk.exact is not None
        item, images = map(torch.from_numpy, chunk.exact)
        won = torch.from_numpy(chunk.outcomes.verdict == 1)
        item, images = item[won].long(), images[won]
        assert (Clamped()(images).argmax(1) != labels[item]).all()
        assert (images - original[item]).abs().max() <= 0.2 + 1e-6
        broken += len(item)
    _, plain = GuardedRun(Defense("clamped", lambda _: Clamped())).outcomes()
    assert broken >= (plain.verdict == 1).sum() > 0


def searched(write: Callable[[Tensor], object]) -> None:
    """Write into every tensor of this process that has the shape of the 64 clean images."""
    for found in gc.get_objects():
        if type(found) is Tensor and found.shape == (64, 1, 8, 8):
            write(found.data)


class Searching:
    """An attack that writes into each image batch of the process, in its second step."""

    name = "searching"
    needs = Access.NOTHING
    steps = 3

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        self.write = write

    def resolved_elsewhere(self) -> dict[str, str]:
        """No parameters."""
        return {}

    def start(self, problem: Problem) -> Tensor:
        """The clean images."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """Write, where this is the second step."""
        if int(problem.t.max()) == 1:
            searched(self.write)
        return adv


WHOLE = Defense("whole", lambda _: copy.deepcopy(small_cnn()))


@pytest.mark.parametrize(
    "write",
    [
        lambda pixels: pixels.clamp_(0.25, 0.75),
        lambda pixels: pixels[5, 0, 3, 3].add_(2**-20),
        lambda pixels: pixels.zero_(),
    ],
    ids=["clamp", "one bit", "zero"],
)
def test_a_cell_in_which_clean_pixels_change_is_refused(write: Callable[[Tensor], object]) -> None:
    run = GuardedRun(WHOLE, Searching(write))
    pair, built = run.planned()
    with pytest.raises(PluginError, match=r"searching or whole changed .* clean images"):
        CellPlayer().outcomes(pair, built)
    assert torch.equal(built.x[:], built.examples.tensor()), "the next cell has the right pixels"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def test_nothing_of_such_a_cell_is_stored(store: Store) -> None:
    run = GuardedRun(WHOLE, Searching(lambda pixels: pixels.clamp_(0.25, 0.75)))
    worker = MatrixWorker(run.registry, store, run.selection, CPU, certifiers="none")
    worker.run()
    row = next(row for row in store.cells() if row.cell.attack == "searching")
    assert (row.state, row.culprit) == (CellState.FAILED, Culprit.PLUGIN)
    assert row.reason.startswith("searching or whole changed")
    assert len(store.outcomes(row.key).item) == 0


def test_changed_labels_are_noticed_too() -> None:
    examples = datasets.first_examples(Registry.without_submissions().datasets["digits"].value, 8)
    guard = PixelGuard(examples, torch.device("cpu"))
    guard.check("a test")
    guard.labels[3] += 1
    with pytest.raises(PluginError, match=r"a or b changed 1 of 8 labels"):
        guard.check("a or b")
    guard.check("a test")
    assert torch.equal(guard.labels, torch.from_numpy(examples.labels.copy()))


class WritingTool:
    """A certifier and diagnostic that writes into images and labels."""

    name = "writing-tool"
    exact = False

    def __init__(self, *, honest: bool) -> None:
        self.honest = honest

    def refuses(self, module: nn.Module, ball: object) -> str:
        return ""

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: object) -> Tensor:
        """Certifies what is classified correctly."""
        right: Tensor = module(x).argmax(1) == y
        if not self.honest:
            x.zero_()
            y.zero_()
        return right

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, of: Defense) -> Evidence:
        """The number of correct answers."""
        return Evidence(Finding.PASSED, f"{int(self.certify(module, x, y, None).sum())} right")


def test_a_certifier_and_a_diagnostic_that_write_change_no_verdict() -> None:
    found = []
    for honest in (False, True):
        run, tool = GuardedRun(WHOLE, "fgsm"), WritingTool(honest=honest)
        pair, built = run.planned()
        certified = certificates_of(tool, built, pair.threat)
        assert certified is not None
        evidence = evidence_of(tool, built)
        found.append((certified.tolist(), evidence, CellPlayer().outcomes(pair, built)))
        assert torch.equal(built.x[:], built.examples.tensor())
    (one, two) = found
    assert one[:2] == two[:2]
    assert np.array_equal(one[2].verdict, two[2].verdict)


class Repeats:
    """A diagnostic that compares answers to the same images."""

    name = "repeats"

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, of: Defense) -> Evidence:
        """Whether a second answer equals the first, and the images are untouched."""
        given = x.clone()
        first = module(x)
        second = module(1 - x)
        same = torch.equal(first, module(x)) and torch.equal(given, x)
        return Evidence(Finding.PASSED, f"{same} {torch.equal(first, second)}")


@pytest.mark.parametrize("write", WRITES)
def test_a_diagnostic_compares_answers_that_no_later_call_changes(write: str) -> None:
    _, built = GuardedRun(defense(write, honest=False)).planned()
    assert evidence_of(Repeats(), built).sentence == "True False"
    assert not built.classifier._forward_hooks and not built.classifier._forward_pre_hooks


@pytest.mark.parametrize(
    "found", [None, (Finding.PASSED, "fine"), Evidence(cast(Finding, "maybe"), "x")]
)
def test_evidence_of_another_type_is_the_fault_of_the_diagnostic(found: Any) -> None:
    class Odd(Repeats):
        name = "odd"

        def examine(self, *_: Any) -> Any:
            return found

    _, built = GuardedRun(WHOLE).planned()
    with pytest.raises(PluginError, match=r"odd.examine returned .*Evidence"):
        evidence_of(Odd(), built)


@pytest.mark.parametrize("found", [None, torch.ones(63, dtype=torch.bool), torch.ones(64)])
def test_certificates_of_another_type_are_the_fault_of_the_certifier(found: Any) -> None:
    class Odd(WritingTool):
        name = "odd"

        def certify(self, *_: Any) -> Any:
            return found

    pair, built = GuardedRun(WHOLE).planned()
    with pytest.raises(PluginError, match=r"odd.certify returned .*torch.bool \[64\]"):
        certificates_of(Odd(honest=True), built, replace(pair.threat))
