"""Runs an attack a few steps at a time on a small model, without the engine."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor, nn

from bench.contract.check import DoesNotApply
from bench.contract.fixtures import ROWS, ModelFixture, fitted_fixture
from bench.data.datasets import first_examples, load_dataset
from bench.engine.cell_spec import CellSpec
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem, points_of
from bench.engine.runner import run_attack
from bench.engine.values import checked_state
from bench.plugin import Attack, State, Traits
from bench.registry.registry import Registry
from bench.threats.access import Access, Budget
from bench.threats.corruption import Corruption
from bench.threats.elastic import ElasticField
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.patch import Patch
from bench.threats.sparse import L0
from bench.threats.spatial import RotationTranslation
from bench.threats.threat_model import Goal

CHECKED_STEPS = 12
EXTERNAL_BUDGET = Budget(gradients=100, queries=100)
"""Budget per example of an external attack while it is checked."""
ONE_BY_ONE_ROWS = 4  # examples of an external attack that takes one at a time
NORMS: dict[str, PerturbationSet] = {
    "Linf": Linf(Fraction(51, 255)),
    "L2": L2(Fraction(1)),
    "L1": L1(Fraction(2)),
}
PARAMETRIC_EXAMPLES: dict[str, PerturbationSet] = {
    "rotation-translation": RotationTranslation(degrees=30.0, pixels=1.0),
    "elastic-field": ElasticField(pixels=1.0),
    "patch": Patch(3, 3, 1, 1),
}
"""Attacks that work in every parametric set are checked in these."""
BALLS = NORMS | PARAMETRIC_EXAMPLES | {"L0": L0(Fraction(4)), "corruption": Corruption()}
WIDE_BALLS: dict[str, PerturbationSet] = {
    "Linf": Linf(Fraction(1, 2)),
    "L2": L2(Fraction(4)),
    "L1": L1(Fraction(16)),
    "L0": L0(Fraction(32)),
    "rotation-translation": RotationTranslation(degrees=90.0, pixels=3.0),
    "elastic-field": ElasticField(pixels=3.0),
    "patch": Patch(5, 5),
    "corruption": Corruption(),
}
GOAL_EXAMPLES = {
    "untargeted": Goal(),
    "nearest": Goal("nearest"),
    "targeted": Goal("targeted", "next"),
}


@dataclass(frozen=True)
class AttackFixture:
    """An attack with a small model, images and threat models on which it is checked."""

    registry: Registry
    attack: Attack

    @property
    def model_fixture(self) -> ModelFixture:
        """Digits, with a model fitted to their training half; copies that no check has used.

        Raises DoesNotApply where the training half is missing.
        """
        kept = self._fitted
        model = copy.deepcopy(kept.model)
        return replace(kept, model=model, x=kept.x.clone(), y=kept.y.clone())

    @cached_property
    def _fitted(self) -> ModelFixture:
        dataset = self.registry.find("dataset", "digits").value
        split = load_dataset(dataset).train
        if split is None:
            raise DoesNotApply("the digits came without their training half.")
        few = first_examples(dataset, 3 * ROWS)
        labels = torch.from_numpy(few.labels.copy())
        return fitted_fixture(split, len(dataset.classes), few.tensor(), labels)

    @property
    def traits(self) -> Traits:
        """The attack's optional attributes."""
        return Traits.of(self.attack)

    @property
    def balls(self) -> dict[str, PerturbationSet]:
        """A set for each one that the attack declares; the three norms where it declares none.

        Raises DoesNotApply where it declares only sets that are not built in.
        """
        names = self.traits.norms or tuple(NORMS)
        names += tuple(PARAMETRIC_EXAMPLES) if self.traits.coordinates else ()
        known = {name: BALLS[name] for name in names if name in BALLS}
        if not known:
            raise DoesNotApply(
                f"it declares {', '.join(names)}; the checks know {', '.join(BALLS)} only."
            )
        return known

    @property
    def ball(self) -> PerturbationSet:
        """The first of `balls`."""
        return next(iter(self.balls.values()))

    @property
    def goals(self) -> dict[str, Goal]:
        """A goal of each kind that the attack declares; all kinds where it declares none."""
        return {name: GOAL_EXAMPLES[name] for name in self.traits.goals or tuple(GOAL_EXAMPLES)}

    @property
    def steps(self) -> int:
        """How many steps are run: all, but at most CHECKED_STEPS."""
        return min(self.attack.steps, CHECKED_STEPS)

    def problem(
        self,
        model_fixture: ModelFixture | None = None,
        ball: PerturbationSet | None = None,
        goal: Goal | None = None,
        first: int = 0,
    ) -> BatchProblem:
        """A problem over 32 images of a fixture, with example numbers from `first` on."""
        fixture, goal = model_fixture or self.model_fixture, goal or next(iter(self.goals.values()))
        x, y = fixture.x[first : first + ROWS].clone(), fixture.y[first : first + ROWS].clone()
        model_access = self.model_access(fixture.model)
        target = (y + 1) % fixture.classes if goal.kind == "targeted" else torch.full_like(y, -1)
        return BatchProblem(
            model_access, ball or self.ball, goal, x, y, target=target,
            clean_logits=model_access.logits(x), example=torch.arange(first, first + ROWS),
            seed=0, name=self.attack.name, budget=Budget(),
        )  # fmt: skip

    def model_access(self, model: nn.Module) -> ModelAccess:
        """A model as the attack may use it: with the access of its `needs`."""
        access = Access.GRADIENTS if self.traits.source else self.attack.needs
        rules = "its declared `needs`"
        return ModelAccess(model, access=access, attack_name=self.attack.name, threat_model=rules)

    def require_steps(self) -> None:
        """Do nothing for a stepwise attack. Raises DoesNotApply for an external one."""
        if Traits.is_external(self.attack):
            raise DoesNotApply("it is an external attack, without `start` and `step`.")

    def start(self, problem: BatchProblem) -> State:
        """The state before the first step. Raises DoesNotApply for an external attack."""
        self.require_steps()
        rows = problem.at_start(torch.arange(len(problem.x)))
        return checked_state(self.attack.start(rows), problem.points, "start")

    def advance(self, problem: BatchProblem, state: State, steps: int) -> State:
        """The state after `steps` more steps."""
        for _ in range(steps):
            state = checked_state(self.attack.step(problem, state), problem.points, "step")
            problem.t = problem.t + 1
        return state

    def iterates(self, problem: BatchProblem) -> list[Tensor]:
        """The points [n, ...] at the start and after each step.

        Of an external attack, its final images only.
        """
        if Traits.is_external(self.attack):
            return [self.external_images(problem)]
        state = self.start(problem)
        images = [points_of(state).detach().clone()]
        for _ in range(self.steps):
            state = self.advance(problem, state, 1)
            images.append(points_of(state).detach().clone())
        return images

    def cell_spec(self, problem: BatchProblem, budget: Budget) -> CellSpec:
        """The cell of a problem's rows; of a few where they are attacked one by one."""
        one_by_one = Traits.is_external(self.attack) and self.traits.rows == 1
        few = slice(ONE_BY_ONE_ROWS if one_by_one else None)
        model_access = problem.required_model_access
        return CellSpec(
            self.attack, model_access, ModelAccess(model_access.module), problem.ball,
            problem.goal, budget,
            problem.x[few], problem.y[few], problem.target[few], problem.clean[few],
            problem.reaches_goal(problem.clean)[few], 0, ROWS,
        )  # fmt: skip

    def external_images(self, problem: BatchProblem) -> Tensor:
        """The candidates [n, C, H, W] of an external attack; clean images where there is none."""
        spec = self.cell_spec(problem, EXTERNAL_BUDGET)

        def confirm(items: Tensor, images: Tensor) -> Tensor:
            """Which candidates [m, C, H, W] lie in the set, bool [m]."""
            return spec.ball.contains(images.double(), spec.x[items].double())

        images = problem.x.clone()
        for part in run_attack(spec, confirm):
            images[part.item] = part.image
        return images

    def final_images(self, problem: BatchProblem) -> Tensor:
        """The points [n, ...] after the last step that is run."""
        return self.iterates(problem)[-1]

    def why_outside(self, problem: BatchProblem) -> str:
        """Which step leaves the ball or [0, 1], as a sentence; empty where none does."""
        for step, adv in enumerate(self.iterates(problem)):
            if not torch.isfinite(adv).all():
                return f"step {step} returned NaN or infinite values."
            images = problem.images(adv).flatten(1)
            inside = (images.amin(1) >= 0) & (images.amax(1) <= 1)
            if not self.traits.minimises:
                inside &= problem.ball.contains(adv.double(), problem.x.double())
            if not inside.all():
                far = float(problem.ball.distance(adv, problem.x).max())
                return (
                    f"step {step}: {int((~inside).sum())} of {len(adv)} images left the ball or "
                    f"[0, 1] (largest distance {far:.4g}, radius {problem.ball.radius:.4g}); "
                    "project them."
                )
        return ""
