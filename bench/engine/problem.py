"""The Problem of `bench.plugin` over a batch of rows, and its use without the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench.core.errors import PluginError, error_text
from bench.engine.answers import predicted_labels, reaches_goal
from bench.engine.attack_view import started, stepped
from bench.engine.ledger import QueryLedger
from bench.engine.model_access import ModelAccess, signed_loss
from bench.engine.pull_back import pulled_back
from bench.engine.values import checked_column, checked_points, description
from bench.plugin import Attack, Gradient, Jacobian, State, Traits
from bench.plugin.losses import Loss
from bench.threats.access import Access, Budget
from bench.threats.norms import PerturbationSet, per_row
from bench.threats.random_numbers import KeyedRandomNumbers, example_key
from bench.threats.threat_model import Goal

GradientAnswer = TypeVar("GradientAnswer", Gradient, Jacobian)
Answer = TypeVar("Answer", Tensor, Gradient, Jacobian)
BATCH_UNIT = 32  # rows; in other batches CPU kernels may differ in the last bit
QueryCallback = Callable[[Tensor, Tensor, Tensor], None]
"""Called for every query with points [n, ...], whole answers [n, K] and charged rows [n]."""


class BatchProblem:
    """The Problem of `bench.plugin` over n rows, whose data the engine may replace.

    Args:
        model_access: the model; None where queries are refused.
        ball: the perturbation set.
        goal: the goal of the threat model.
        x: [n, C, H, W] clean images.
        y: [n] int64 labels.
        target: [n] int64 declared target classes, -1 without.
        clean_logits: [n, K] logits of the clean images.
        example: [n] int64, with `seed` and `name` the key of all random numbers.
        seed: of the evaluation cell.
        name: of the attack.
        budget: what each row may spend.
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
        self.model_access, self.ball, self.goal = model_access, ball, goal
        self.x, self.y, self.target, self.example = x, y, target, example
        self.clean = clean_logits
        self.classes = clean_logits.shape[1]
        self.seed, self.name = seed, name
        self.t = torch.zeros_like(example)
        self.restart = torch.zeros_like(example)
        self.active = torch.ones_like(example, dtype=torch.bool)
        """[n] bool: rows whose restart goes on; only their queries are charged and tracked."""
        self.ledger = QueryLedger(len(x), budget, x.device)
        self.on_query: QueryCallback | None = None
        self.access: Access | None = None
        """The access level of properties that need no query, where `model_access` is None."""
        self.reset_keys()

    def reset_keys(self) -> None:
        """Discards what was derived from examples and restarts; call it after they have changed."""
        self._key: Tensor | None = None
        self._other_classes: Tensor | None = None

    @property
    def points(self) -> Tensor:
        """The points [n, ...] of the clean images in the perturbation set; x in a norm ball."""
        return self.ball.start(self.x)

    @property
    def key(self) -> Tensor:
        """[n] int64: the keys of the rows' random numbers."""
        if self._key is None:
            self._key = example_key(self.seed, self.name, self.example, self.restart)
        return self._key

    def keep(self, rows: Tensor) -> None:
        """Keeps only the rows `rows` [m] int64."""
        self.x, self.y, self.target = self.x[rows], self.y[rows], self.target[rows]
        self.clean, self.example = self.clean[rows], self.example[rows]
        self.t, self.restart, self.active = self.t[rows], self.restart[rows], self.active[rows]
        self.ledger.keep(rows)
        self.reset_keys()

    def at_start(self, rows: Tensor) -> BatchProblem:
        """The rows `rows` [m] int64 before their first step, where queries are refused."""
        part = self.select(rows, None)
        # The start draws at t = -1, so that its random numbers differ from those of step 0.
        part.t = torch.full_like(part.example, -1)
        part.access = self.required_model_access.access
        return part

    def select(self, rows: Tensor, model_access: ModelAccess | None) -> BatchProblem:
        """The rows `rows` [m] int64, which may repeat, at step 0 of their restarts."""
        part = BatchProblem(
            model_access, self.ball, self.goal, self.x[rows], self.y[rows],
            target=self.target[rows], clean_logits=self.clean[rows], example=self.example[rows],
            seed=self.seed, name=self.name, budget=Budget(),
        )  # fmt: skip
        part.restart = self.restart[rows]
        return part

    @property
    def required_model_access(self) -> ModelAccess:
        """The model; raises PluginError in `start`, where the attack must not query it."""
        if self.model_access is None:
            raise PluginError(
                f"{self.name} queried the defense in start; make the first query in step."
            )
        return self.model_access

    def _reveal(self, access: Access) -> None:
        if self.access is not None and self.access >= access:
            return
        self.required_model_access.require(access)

    @property
    def clean_logits(self) -> Tensor:
        """Logits [n, K] of the clean images."""
        self._reveal(Access.SCORES)
        return self.clean

    @property
    def other_classes(self) -> Tensor:
        """The other classes [n, K - 1], largest clean logit first; ties in class order."""
        self._reveal(Access.SCORES)
        if self._other_classes is None:
            order = self.clean.argsort(dim=1, descending=True, stable=True)
            place = (order == self.y[:, None]).int().argmax(1, keepdim=True)
            every = torch.arange(order.shape[1] - 1, device=order.device)
            # By index: a mask has a size that the host would have to wait for.
            self._other_classes = order.gather(1, every + (every >= place))
        return self._other_classes

    def gradient(self, adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        """Gradient [n, ...], loss [n] and logits [n, K] at the points `adv` [n, ...].

        Charges one query and one gradient evaluation to each active row, or to those of `where`
        [n] bool.
        """
        model_access = self._granted(Access.GRADIENTS, adv)
        allowed = self._charge(where, model_access.draws, model_access.draws)
        targeted = self.goal.kind == "targeted"
        label = (self.target if targeted else self.y).clone()
        signed = signed_loss(loss, label, -1 if targeted else 1)
        answer = model_access.gradient(self.images(adv), signed)
        pulled = pulled_back(self.ball, adv, self.x, answer.gradient)
        self._report(adv, answer.logits, allowed)
        return self._visible(self._allowed(answer._replace(gradient=pulled), allowed, where))

    def jacobian(
        self,
        adv: Tensor,
        classes: Tensor,
        where: Tensor | None = None,
        *,
        minus: Tensor | None = None,
    ) -> Jacobian:
        """Gradients [n, k, ...] of the logits `classes` [n, k], and logits [n, K].

        Charges one query and k gradient evaluations to each active row, or to those of `where`
        [n] bool. With `minus` [n], the gradients of the differences to the logit of that class.
        """
        model_access = self._granted(Access.GRADIENTS, adv)
        self._check_classes(classes, minus)
        draws = model_access.draws
        allowed = self._charge(where, draws, draws * classes.shape[1])
        answer = model_access.jacobian(self.images(adv), classes, minus)
        if self.ball.parametric:
            rows = [pulled_back(self.ball, adv, self.x, one) for one in answer.rows.unbind(1)]
            answer = answer._replace(rows=torch.stack(rows, 1))
        self._report(adv, answer.logits, allowed)
        return self._visible(self._allowed(answer, allowed, where))

    def logits(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """Logits [n, K] at points `adv` [n, ...]; charges one query to each row of `where` [n]."""
        model_access = self._granted(Access.SCORES, adv)
        return self._query(adv, where, model_access.draws, model_access.logits)

    def labels(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """Labels [n] int64 at points `adv` [n, ...]; charges one query to each row of `where` [n].

        Of a random defense each label may be a vote over several draws, each of which is charged.
        """
        model_access = self._granted(Access.LABELS, adv)
        draws, answers = model_access.draws_at(Access.LABELS), model_access.label_answers
        return self._query(adv, where, draws, answers)[:, : self.classes].argmax(1)

    def reaches_goal(self, answer: Tensor) -> Tensor:
        """[n] bool: logits [n, K] or labels [n] reach the goal of the threat model.

        With a rejection score as column K, a rejected image reaches no goal.
        """
        rejects = answer.dim() == 2 and answer.shape[1] > self.classes
        label = predicted_labels(answer, rejects=rejects) if answer.dim() == 2 else answer
        targeted = self.goal.kind == "targeted"
        known = self.target if targeted else self.y
        return reaches_goal(label, known, targeted=targeted, rejects=rejects)

    def images(self, adv: Tensor) -> Tensor:
        """The images [n, C, H, W] of points [n, ...] of these rows."""
        return self.ball.apply(adv, self.x)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform keyed random numbers [n, *shape] in [0, 1)."""
        return KeyedRandomNumbers(self.key, self.t).uniform(name, shape)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal keyed random numbers [n, *shape]."""
        return KeyedRandomNumbers(self.key, self.t).normal(name, shape)

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Keyed random integers [n, *shape] in [0, high)."""
        return KeyedRandomNumbers(self.key, self.t).integers(name, high, shape)

    def _query(
        self, adv: Tensor, where: Tensor | None, draws: int, answers: Callable[[Tensor], Tensor]
    ) -> Tensor:
        allowed = self._charge(where, draws, 0)
        answer = answers(self.images(adv))
        self._report(adv, answer, allowed)
        return self.required_model_access.visible(self._allowed(answer, allowed, where))

    def _granted(self, access: Access, adv: Tensor) -> ModelAccess:
        """The model, where it may be queried so at points `adv` [n, ...].

        Raises:
            PluginError: the access is not granted, or the points are none of these rows.
        """
        model_access = self.required_model_access
        model_access.require(access)
        checked_points(adv, self.points, f"{self.name} queried")
        return model_access

    def _check_classes(self, classes: Tensor, minus: Tensor | None) -> None:
        """Raises PluginError unless these are classes [n, k] and [n] int64 of these rows."""
        given = [(classes, 2, f"[{len(self.x)}, k]"), (minus, 1, f"[{len(self.x)}]")]
        for part, dims, shape in given if minus is not None else given[:1]:
            if (
                not isinstance(part, Tensor)
                or part.dtype is not torch.int64
                or part.dim() != dims
                or len(part) != len(self.x)
            ):
                raise PluginError(
                    f"{self.name} queried the gradients of {description(part)}; class numbers "
                    f"torch.int64 {shape} were expected."
                )

    def _allowed(self, answer: Answer, allowed: Tensor, where: Tensor | None) -> Answer:
        """The answers of charged rows; zeros for rows outside `where` or over their budget."""
        if where is None and not self.ledger.limited:
            return answer
        masked: Answer = map_state(
            lambda part: torch.where(per_row(allowed, part), part, 0), answer
        )
        return masked

    def _visible(self, answer: GradientAnswer) -> GradientAnswer:
        shown = self.required_model_access.visible
        return (
            answer._replace(logits=shown(answer.logits))
            if self.required_model_access.hides_rejection
            else answer
        )

    def _charge(self, where: Tensor | None, forwards: int, gradients: int) -> Tensor:
        if where is None:
            return self.ledger.charge(self.active, forwards, gradients)
        charged = self.active & checked_column(where, len(self.x), f"{self.name} queried where =")
        return self.ledger.charge(charged, forwards, gradients)

    def _report(self, adv: Tensor, answer: Tensor, allowed: Tensor) -> None:
        if self.on_query is not None:
            self.on_query(adv, answer, allowed)


def points_of(state: State) -> Tensor:
    """The points [n, ...] of a state: the tensor itself, or its first field."""
    return state if isinstance(state, Tensor) else state[0]


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Applies `function` to each field [n, ...] of states of the same kind."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    fields: Any = zip(*states, strict=True)
    return type(first)(*(function(*column) for column in fields))


def tensors_of(state: State) -> list[Tensor]:
    """The fields [n, ...] of a state: itself where it is a tensor."""
    return [state] if isinstance(state, Tensor) else list(state)


def padded_size(count: int) -> int:
    """The next multiple of BATCH_UNIT, at least one unit."""
    return max(BATCH_UNIT, -(-count // BATCH_UNIT) * BATCH_UNIT)


def pad_rows(rows: Tensor, count: int) -> Tensor:
    """`rows` [n, ...] with the last row repeated up to `count` rows."""
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
    """The last iterate of one restart against a model, for adversarial training.

    Every row makes every step; nothing is verified and no row stops early. Training mode and the
    `requires_grad` flags of the parameters are restored.

    Args:
        attack: any attack with `start` and `step`; its first restart is run.
        model: images [n, C, H, W] to logits [n, K]; evaluated in eval mode.
        x: [n, C, H, W] in [0, 1].
        y: [n] int64.
        ball: the perturbation set.
        seed: with `example` the key of every random number.
        example: [n] int64.
        tally: the number of gradient evaluations is added under `gradients`.

    Returns:
        Points [n, ...] of the set, detached; in a norm ball images [n, C, H, W].
    """
    training = model.training
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model_access = ModelAccess(model, attack_name=attack.name, threat_model="training")
        rows = BatchProblem(
            model_access, ball, Goal(), x, y, target=torch.full_like(y, -1),
            clean_logits=model_access.logits(x), example=example, seed=seed, name=attack.name,
            budget=Budget(),
        )  # fmt: skip
        state = started(attack, rows.at_start(torch.arange(len(x), device=x.device)))
        for _ in range(attack.steps):
            state = stepped(attack, rows, state)
            rows.t = rows.t + 1
        if tally is not None:
            tally["gradients"] += int(rows.ledger.gradients.sum())
    finally:
        model.train(training)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return points_of(state).detach()


def checked_restart_count(attack: Attack, classes: int) -> int:
    """The number of restarts that an item may need.

    Raises:
        PluginError: the attack declares none.
    """
    try:
        count = Traits.restart_count(attack, classes)
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{attack.name}.restart_count returned no number for {classes} classes "
            f"({error_text(error)}); return an int, at least 1."
        ) from error
    if count < 1:
        raise PluginError(
            f"{attack.name} declares {count} restarts for {classes} classes; at least 1 is needed."
        )
    return count
