"""A batch of rows as an attack sees it: the Problem, and its plain use without an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.answers import predicted_labels, reaches_goal
from bench.engine.ledger import QueryLedger
from bench.engine.model_access import ModelAccess, signed_loss
from bench.plugin import Attack, Gradient, Jacobian, State, Traits
from bench.plugin.losses import Loss
from bench.threats.access import Access, Budget
from bench.threats.norms import PerturbationSet, per_row
from bench.threats.random_numbers import KeyedRandomNumbers, example_key
from bench.threats.threat_model import Goal

Answer = TypeVar("Answer", Gradient, Jacobian)
Asked = TypeVar("Asked", Tensor, Gradient, Jacobian)
BATCH_UNIT = 32  # rows: elsewhere CPU kernels differ in the last bit
QueryCallback = Callable[[Tensor, Tensor, Tensor], None]
"""(images, whole answers, charged rows): hears every offer."""


class BatchProblem:
    """The Problem of `bench.plugin`, over rows that an engine (or nobody) exchanges.

    Every tensor has the rows first: images [n, C, H, W], the rest [n].
    """

    def __init__(
        self,
        model_access: ModelAccess | None,
        ball: PerturbationSet,
        goal: Goal,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor,
        clean_logits: Tensor,
        example: Tensor,
        seed: int,
        name: str,
        budget: Budget,
    ) -> None:
        self.door, self.ball, self.goal = model_access, ball, goal
        self.x, self.y, self.target, self.example = x, y, target, example
        self.clean = clean_logits
        self.classes = clean_logits.shape[1]
        self.seed, self.name = seed, name
        self.t = torch.zeros_like(example)
        self.restart = torch.zeros_like(example)
        self.active = torch.ones_like(example, dtype=torch.bool)
        """Rows that still play: only they are charged and watched."""
        self.ledger = QueryLedger(len(x), budget, x.device)
        self.on_query: QueryCallback | None = None
        self.access: Access | None = None
        """What is revealed where there is no door to ask."""
        self.reset_keys()

    def reset_keys(self) -> None:
        """Take up what follows from examples and runs after they have changed."""
        self._key: Tensor | None = None
        self._other_classes: Tensor | None = None

    @property
    def key(self) -> Tensor:
        """[n] int64: of the row's random numbers."""
        if self._key is None:
            self._key = example_key(self.seed, self.name, self.example, self.restart)
        return self._key

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only; `rows` [m] int64."""
        self.x, self.y, self.target = self.x[rows], self.y[rows], self.target[rows]
        self.clean, self.example = self.clean[rows], self.example[rows]
        self.t, self.restart, self.active = self.t[rows], self.restart[rows], self.active[rows]
        self.ledger.keep(rows)
        self.reset_keys()

    def at_start(self, rows: Tensor) -> BatchProblem:
        """These rows before their first step; questions are refused there."""
        part = self.select(rows, None)
        # Start draws at t = -1, so that its numbers differ from those of step 0.
        part.t = torch.full_like(part.example, -1)
        part.access = self.required_model_access.access
        return part

    def select(self, rows: Tensor, model_access: ModelAccess | None) -> BatchProblem:
        """These rows [m] int64, each as often as it is named, at step 0 of their runs."""
        part = BatchProblem(
            model_access, self.ball, self.goal, self.x[rows], self.y[rows],
            target=self.target[rows], clean_logits=self.clean[rows], example=self.example[rows],
            seed=self.seed, name=self.name, budget=Budget(),
        )  # fmt: skip
        part.restart = self.restart[rows]
        return part

    @property
    def required_model_access(self) -> ModelAccess:
        """The target; a start that asks is refused."""
        if self.door is None:
            raise PluginError(
                f"{self.name} asked the defense a question in start; ask in step, as phase 0."
            )
        return self.door

    def _reveal(self, access: Access) -> None:
        if self.access is not None and self.access >= access:
            return
        self.required_model_access.require(access)

    @property
    def clean_logits(self) -> Tensor:
        """[n, K] of the clean images."""
        self._reveal(Access.SCORES)
        return self.clean

    @property
    def other_classes(self) -> Tensor:
        """[n, K - 1] other classes, the likeliest first; ties in class order."""
        self._reveal(Access.SCORES)
        if self._other_classes is None:
            order = self.clean.argsort(dim=1, descending=True, stable=True)
            self._other_classes = order[order != self.y[:, None]].view(len(self.y), -1)
        return self._other_classes

    def gradient(self, adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        """One forward and one gradient for each row that plays."""
        self.required_model_access.require(Access.GRADIENTS)
        allowed = self._charge(
            where, self.required_model_access.draws, self.required_model_access.draws
        )
        targeted = self.goal.kind == "targeted"
        label = self.target if targeted else self.y
        answer = self.required_model_access.gradient(
            adv, signed_loss(loss, label, -1 if targeted else 1)
        )
        self._offer(adv, answer.logits, allowed)
        return self._seen(self._paid(answer, allowed, where))

    def jacobian(
        self,
        adv: Tensor,
        classes: Tensor,
        where: Tensor | None = None,
        *,
        minus: Tensor | None = None,
    ) -> Jacobian:
        """One forward and k gradients for each row that plays."""
        self.required_model_access.require(Access.GRADIENTS)
        draws = self.required_model_access.draws
        allowed = self._charge(where, draws, draws * classes.shape[1])
        answer = self.required_model_access.jacobian(adv, classes, minus)
        self._offer(adv, answer.logits, allowed)
        return self._seen(self._paid(answer, allowed, where))

    def logits(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """[n, K]."""
        self.required_model_access.require(Access.SCORES)
        return self._ask(adv, where)

    def labels(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """[n]."""
        self.required_model_access.require(Access.LABELS)
        return self._ask(adv, where)[:, : self.classes].argmax(1)

    def reaches_goal(self, answer: Tensor) -> Tensor:
        """[n] bool: the goal of the board is reached by these logits [n, K] or labels [n].

        With a rejection score as column K only where it accepts, too.
        """
        rejects = answer.dim() == 2 and answer.shape[1] > self.classes
        label = predicted_labels(answer, rejects=rejects) if answer.dim() == 2 else answer
        targeted = self.goal.kind == "targeted"
        known = self.target if targeted else self.y
        return reaches_goal(label, known, targeted=targeted, rejects=rejects)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape] in [0, 1)."""
        return KeyedRandomNumbers(self.key, self.t).uniform(name, shape)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape], standard normal."""
        return KeyedRandomNumbers(self.key, self.t).normal(name, shape)

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape] in [0, high)."""
        return KeyedRandomNumbers(self.key, self.t).integers(name, high, shape)

    def _ask(self, adv: Tensor, where: Tensor | None) -> Tensor:
        allowed = self._charge(where, self.required_model_access.draws, 0)
        logits = self.required_model_access.logits(adv)
        self._offer(adv, logits, allowed)
        return self.required_model_access.visible(self._paid(logits, allowed, where))

    def _paid(self, answer: Asked, allowed: Tensor, where: Tensor | None) -> Asked:
        """The answers of rows that asked and could pay; zeros for the others."""
        if where is None and not self.ledger.limited:
            return answer
        paid: Asked = map_state(lambda said: torch.where(per_row(allowed, said), said, 0), answer)
        return paid

    def _seen(self, answer: Answer) -> Answer:
        shown = self.required_model_access.visible
        return (
            answer._replace(logits=shown(answer.logits))
            if self.required_model_access.hides_rejection
            else answer
        )

    def _charge(self, where: Tensor | None, forwards: int, gradients: int) -> Tensor:
        asking = self.active if where is None else self.active & where
        return self.ledger.charge(asking, forwards, gradients)

    def _offer(self, adv: Tensor, answer: Tensor, allowed: Tensor) -> None:
        if self.on_query is not None:
            self.on_query(adv, answer, allowed)


def images_of(state: State) -> Tensor:
    """The image of a state: the tensor itself, or its first field."""
    return state if isinstance(state, Tensor) else state[0]


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Apply `function` to each tensor of states of one shape."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    fields: Any = zip(*states, strict=True)
    return type(first)(*(function(*column) for column in fields))


def padded_size(count: int) -> int:
    """The next multiple of UNIT, at least one unit."""
    return max(BATCH_UNIT, -(-count // BATCH_UNIT) * BATCH_UNIT)


def pad_rows(rows: Tensor, count: int) -> Tensor:
    """`rows` with its last row repeated up to `count` rows."""
    missing = count - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def attack_once(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: PerturbationSet,
    *,
    seed: int,
    example: Tensor,
    tally: Counter[str] | None = None,
) -> Tensor:
    """The last iterate of one run against a model at hand, as training needs it.

    No referee, no retirement, no counting: every row makes every step. Mode, parameters' gradient
    flags and gradients of the model are as before.

    Args:
        attack: any attack whose runs are alike.
        model: takes x and gives logits [n, K]; asked in eval mode.
        x: [n, C, H, W] in [0, 1].
        y: [n] int64.
        ball: where the result lies.
        seed: with `example` [n] int64, the key of every random number.
        example: [n] int64.
        tally: gets the gradients of all images added under `gradients`.

    Returns:
        [n, C, H, W], detached.
    """
    training = model.training
    asks = [(p, p.requires_grad) for p in model.parameters()]
    try:
        target = ModelAccess(model, attack_name=attack.name, threat_model="training")
        clean = target.logits(x)
        rows = BatchProblem(
            target, ball, Goal(), x, y, target=torch.full_like(y, -1), clean_logits=clean,
            example=example, seed=seed, name=attack.name, budget=Budget(),
        )  # fmt: skip
        state = attack.start(rows.at_start(torch.arange(len(x), device=x.device)))
        for _ in range(attack.steps):
            state = attack.step(rows, state)
            rows.t = rows.t + 1
        if tally is not None:
            tally["gradients"] += int(rows.ledger.gradients.sum())
    finally:
        model.train(training)
        for parameter, asked in asks:
            parameter.requires_grad_(asked)
    return images_of(state).detach()


def checked_restart_count(attack: Attack, classes: int) -> int:
    """How many runs a row may need."""
    runs = Traits.restart_count(attack, classes)
    if runs < 1:
        raise PluginError(f"{attack.name} declares {runs} runs for {classes} classes; at least 1.")
    return runs
