"""An attack under examination: a few steps at a time in the tiny world, without an engine."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from bench.contract.check import DoesNotApply
from bench.contract.fixtures import ROWS, ModelFixture, fitted_fixture
from bench.data.datasets import first_examples, load_dataset
from bench.engine.cell_spec import CellSpec
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem, images_of
from bench.engine.runner import run_attack
from bench.plugin import Attack, State, Traits
from bench.registry.registry import Registry
from bench.threats.access import Access, Budget
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.threat_model import Goal

CHECKED_STEPS = 12
EXTERNAL_BUDGET = Budget(gradients=100, queries=100)
"""What a run of its own may spend where only a little of it is looked at."""
ONE_BY_ONE_ROWS = 4  # rows, where they are played one by one
BALLS: dict[str, PerturbationSet] = {
    "Linf": Linf(Fraction(51, 255)),
    "L2": L2(Fraction(1)),
    "L1": L1(Fraction(2)),
}
WIDE_BALLS: dict[str, PerturbationSet] = {
    "Linf": Linf(Fraction(1, 2)),
    "L2": L2(Fraction(4)),
    "L1": L1(Fraction(16)),
}
GOAL_EXAMPLES = {
    "untargeted": Goal(),
    "nearest": Goal("nearest"),
    "targeted": Goal("targeted", "next"),
}


@dataclass(frozen=True)
class AttackFixture:
    """An attack, and the tiny world it is let loose in."""

    registry: Registry
    attack: Attack

    @cached_property
    def model_fixture(self) -> ModelFixture:
        """The digits, before a model fitted to them."""
        dataset = self.registry.find("dataset", "digits").value
        split = load_dataset(dataset).train
        if split is None:
            raise DoesNotApply("the digits came without their training half.")
        few = first_examples(dataset, 3 * ROWS)
        labels = torch.from_numpy(few.labels.copy())
        return fitted_fixture(split, len(dataset.classes), few.tensor(), labels)

    @property
    def traits(self) -> Traits:
        """Its optional attributes."""
        return Traits.of(self.attack)

    @property
    def balls(self) -> dict[str, PerturbationSet]:
        """The sets it claims to work in."""
        names = self.traits.norms or tuple(BALLS)
        known = {name: BALLS[name] for name in names if name in BALLS}
        if not known:
            raise DoesNotApply(f"it works in {', '.join(names)}, a set of a plugin's own.")
        return known

    @property
    def ball(self) -> PerturbationSet:
        """The first of them."""
        return next(iter(self.balls.values()))

    @property
    def goals(self) -> dict[str, Goal]:
        """The goals it claims to serve."""
        return {name: GOAL_EXAMPLES[name] for name in self.traits.goals or tuple(GOAL_EXAMPLES)}

    @property
    def steps(self) -> int:
        """How many are looked at."""
        return min(self.attack.steps, CHECKED_STEPS)

    def problem(
        self,
        world: ModelFixture | None = None,
        ball: PerturbationSet | None = None,
        goal: Goal | None = None,
        first: int = 0,
    ) -> BatchProblem:
        """A problem over 32 rows of a world, the examples numbered from `first`."""
        world = world or self.model_fixture
        goal = goal or next(iter(self.goals.values()))
        x, y = world.x[first : first + ROWS].clone(), world.y[first : first + ROWS].clone()
        access = Access.GRADIENTS if self.traits.source else self.attack.needs
        door = ModelAccess(
            world.model,
            access=access,
            attack_name=self.attack.name,
            threat_model="its declared need",
        )
        aim = (y + 1) % world.classes if goal.kind == "targeted" else torch.full_like(y, -1)
        return BatchProblem(
            door, ball or self.ball, goal, x, y,
            target=aim, clean_logits=door.logits(x), example=torch.arange(first, first + ROWS),
            seed=0, name=self.attack.name, budget=Budget(),
        )  # fmt: skip

    def require_steps(self) -> None:
        """Raise DoesNotApply for an attack with a run of its own."""
        if Traits.is_external(self.attack):
            raise DoesNotApply("it has a run of its own, without start and step.")

    def start(self, rows: BatchProblem) -> State:
        """The state before the first step."""
        self.require_steps()
        return self.attack.start(rows.at_start(torch.arange(len(rows.x))))

    def advance(self, rows: BatchProblem, state: State, steps: int) -> State:
        """The state after so many steps more."""
        for _ in range(steps):
            state = self.attack.step(rows, state)
            rows.t = rows.t + 1
        return state

    def iterates(self, rows: BatchProblem) -> list[Tensor]:
        """The images at the start and after each step; of a run of its own, those it leaves."""
        if Traits.is_external(self.attack):
            return [self.external_images(rows)]
        state = self.start(rows)
        images = [images_of(state).detach().clone()]
        for _ in range(self.steps):
            state = self.advance(rows, state, 1)
            images.append(images_of(state).detach().clone())
        return images

    def cell_spec(self, rows: BatchProblem, budget: Budget) -> CellSpec:
        """The cell of these rows; of few, where they are played one by one."""
        few = slice(
            ONE_BY_ONE_ROWS if Traits.is_external(self.attack) and self.traits.rows == 1 else None
        )
        return CellSpec(
            self.attack, rows.required_model_access, ModelAccess(rows.required_model_access.module), rows.ball, rows.goal, budget,
            rows.x[few], rows.y[few], rows.target[few], rows.clean[few],
            rows.wrong(rows.clean)[few], 0, ROWS,
        )  # fmt: skip

    def external_images(self, rows: BatchProblem) -> Tensor:
        """What a run of its own brings to the referee within the trial's budget."""
        game = self.cell_spec(rows, EXTERNAL_BUDGET)

        def confirm(items: Tensor, images: Tensor) -> Tensor:
            return game.ball.contains(images.double(), game.x[items].double())

        images = rows.x.clone()
        for part in run_attack(game, confirm):
            images[part.item] = part.image
        return images

    def final_images(self, rows: BatchProblem) -> Tensor:
        """The image after the last step that is looked at."""
        return self.iterates(rows)[-1]

    def why_outside(self, rows: BatchProblem) -> str:
        """Where a trace leaves box or ball, as a sentence."""
        for step, adv in enumerate(self.iterates(rows)):
            if not torch.isfinite(adv).all():
                return f"step {step} gave NaN or infinite pixels."
            inside = (adv.flatten(1).amin(1) >= 0) & (adv.flatten(1).amax(1) <= 1)
            if not self.traits.minimises:
                inside &= rows.ball.contains(adv.double(), rows.x.double())
            if not inside.all():
                far = float(rows.ball.distance(adv, rows.x).max())
                return (
                    f"step {step}: {int((~inside).sum())} of {len(adv)} images left ball or box "
                    f"(largest distance {far:.4g}, allowed {rows.ball.radius:.4g}); project them."
                )
        return ""
