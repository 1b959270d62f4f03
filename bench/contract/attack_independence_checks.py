"""Checks that an attack is repeatable, treats examples independently and has no side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.contract.attack_fixture import CHECKED_STEPS, AttackFixture
from bench.contract.check import Check, DoesNotApply, checks_of
from bench.contract.fixtures import ROWS, ModelState, RandomState
from bench.engine.problem import BatchProblem, map_state, points_of, tensors_of
from bench.plugin import State
from bench.threats.fingerprint import parameters_of
from bench.threats.norms import per_row

INPUTS = ("x", "y", "target", "clean", "example", "restart")
"""Tensors of a problem that an attack only reads."""


def the_same_again(fixture: AttackFixture) -> str:
    """A second run on the same images gives the same result, to the bit."""
    one, two = fixture.final_images(fixture.problem()), fixture.final_images(fixture.problem())
    far = float((one - two).abs().max())
    hint = "use the random numbers of problem only."
    return "" if far == 0 else f"a second run differs by {far:.2g}; {hint}"


def rows_are_independent(fixture: AttackFixture) -> str:
    """The result for an image does not depend on its batch or its place there, to the bit."""
    fixture.require_steps()
    model = fixture.model_fixture
    order = torch.cat([torch.arange(ROWS, ROWS + ROWS // 2), torch.arange(ROWS // 2)])
    one, mixed = fixture.final_images(fixture.problem()), fixture.problem()
    mixed.x, mixed.y = model.x[order], model.y[order]
    mixed.clean = mixed.required_model_access.logits(model.x[order])
    mixed.example = order
    if mixed.goal.kind == "targeted":
        mixed.target = (mixed.y + 1) % model.classes
    mixed.reset_keys()
    two = fixture.final_images(mixed)
    return _why_changed(one[: ROWS // 2], two[ROWS // 2 :], "other images at other places")


def late_rows_are_as_good(fixture: AttackFixture) -> str:
    """An image that joins a batch after others have made steps gets the same result, to the bit.

    Raises DoesNotApply for an attack of one step and for an external attack.
    """
    fixture.require_steps()
    ahead = min(3, fixture.attack.steps // 2)
    if ahead == 0:
        raise DoesNotApply("it makes one step only.")
    steps = min(CHECKED_STEPS, fixture.attack.steps - ahead)
    alone = fixture.problem(first=ROWS)
    wanted = points_of(fixture.advance(alone, fixture.start(alone), steps))
    mixed, late = fixture.problem(), torch.arange(ROWS // 2, ROWS)
    state = fixture.advance(mixed, fixture.start(mixed), ahead)
    state = fixture.advance(mixed, _with_late_rows(fixture, mixed, state, late), steps)
    beside = f"images that are {ahead} steps ahead"
    return _why_changed(wanted[late], points_of(state)[late], beside)


def _with_late_rows(
    fixture: AttackFixture, mixed: BatchProblem, state: State, late: Tensor
) -> State:
    """The state in which the rows `late` [m] of the problem start with other examples."""
    fresh = fixture.problem(first=ROWS)
    for name in ("x", "y", "target", "clean", "example", "t"):
        getattr(mixed, name)[late] = getattr(fresh, name)[late]
    mixed.reset_keys()
    begun = fixture.attack.start(mixed.at_start(late.repeat(2)))
    return map_state(lambda old, new: old.index_copy(0, late, new[: len(late)]), state, begun)


def _why_changed(wanted: Tensor, found: Tensor, beside: str) -> str:
    count = int((wanted != found).flatten(1).any(1).sum())
    hint = "keep counters, sums and schedules per row, and use the random numbers of problem."
    sentence = f"{count} of {len(wanted)} results changed beside {beside}; {hint}"
    return sentence if count else ""


def inputs_are_left_alone(fixture: AttackFixture) -> str:
    """The attack does not write to clean images, labels or clean logits."""
    used, unused = fixture.problem(), fixture.problem()
    fixture.iterates(used)
    changed = [n for n in INPUTS if not torch.equal(getattr(used, n), getattr(unused, n))]
    return f"it wrote into problem.{changed[0]}; work on a copy." if changed else ""


def states_are_left_alone(fixture: AttackFixture) -> str:
    """`step` returns a new state and does not write to the old one."""
    problem = fixture.problem()
    state = fixture.start(problem)
    before = [tensor.clone() for tensor in tensors_of(state)]
    fixture.advance(problem, state, 1)
    same = all(torch.equal(a, b) for a, b in zip(before, tensors_of(state), strict=True))
    return "" if same else "step wrote into the state that it was given; return new tensors."


def attacked_model_is_left_alone(fixture: AttackFixture) -> str:
    """The attack changes no weight, buffer, mode, hook or gradient of the defense."""
    problem = fixture.problem()
    before = ModelState.of(problem.required_model_access.module)
    fixture.iterates(problem)
    changed = before.changed()
    return f"it changed {', '.join(changed[:3])} of the defense." if changed else ""


def attack_uses_no_global_random_state(fixture: AttackFixture) -> str:
    """The attack uses no global random generator, only the random numbers of problem."""
    problem, before = fixture.problem(), RandomState.after_draws()
    try:
        fixture.iterates(problem)
        changed = before.changed()
    finally:
        before.restore()
    return f"it used the global random generator of {', '.join(changed)}." if changed else ""


def attack_is_left_alone(fixture: AttackFixture) -> str:
    """A run changes no attribute of the attack; everything that changes is in the state."""
    before = parameters_of(fixture.attack)
    fixture.iterates(fixture.problem())
    after = parameters_of(fixture.attack)
    names = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return f"a run changed its attribute {names[0]!r}; keep it in the state." if names else ""


def masked_rows_are_not_read(fixture: AttackFixture) -> str:
    """Answers for rows that `where` leaves out are not used."""
    fixture.require_steps()
    honest, altered = fixture.problem(), _with_altered_answers(fixture.problem())
    one, two = fixture.final_images(honest), fixture.final_images(altered)
    return "" if torch.equal(one, two) else "it used answers for rows that `where` left out."


def _with_altered_answers(problem: BatchProblem) -> BatchProblem:
    """The problem, all its answers set to 1 in the rows that `where` leaves out."""
    for name in ("gradient", "jacobian", "logits", "labels"):
        setattr(problem, name, _with_other_rows_set(getattr(problem, name)))
    return problem


def _with_other_rows_set(query: Callable[..., Any]) -> Callable[..., Any]:
    """The same query, its answers set to 1 in the rows that `where` leaves out."""

    def altered(*args: Any, **named: Any) -> Any:
        answer = query(*args, **named)
        where = named.get("where", args[-1])
        if not isinstance(where, Tensor) or where.dtype is not torch.bool or where.dim() != 1:
            return answer
        return map_state(lambda part: part.masked_fill(per_row(~where, part), 1), answer)

    return altered


INDEPENDENCE_CHECKS = (
    *checks_of(
        the_same_again,
        rows_are_independent,
        late_rows_are_as_good,
        inputs_are_left_alone,
        states_are_left_alone,
    ),
    Check(attacked_model_is_left_alone, "model-is-left-alone"),
    Check(attack_uses_no_global_random_state, "global-random-state-is-left-alone"),
    *checks_of(attack_is_left_alone, masked_rows_are_not_read),
)
