"""What every attack promises: rows by themselves, images inside the set, nothing touched.

Each law plays a few steps in the tiny world, where a step costs microseconds, without an engine:
what the engine would forgive is seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from bench.contract.attack_fixture import CHECKED_STEPS, GOAL_EXAMPLES, WIDE_BALLS, AttackFixture
from bench.contract.check import DoesNotApply, checks_of
from bench.contract.fixtures import (
    ROWS,
    ModelFixture,
    ModelState,
    RandomState,
    constant_fixture,
    random_fixture,
)
from bench.engine.problem import images_of, map_state
from bench.engine.runner import run_attack
from bench.plugin import OPTIONAL_METHODS, State, StopRule, Traits
from bench.threats.access import Budget
from bench.threats.fingerprint import parameters_of

REQUIRED = ("name", "needs", "steps", "start", "step", "run")
"""What it must have, the last in place of the three before it."""
OPTIONAL = (*(field.name for field in fields(Traits)), *OPTIONAL_METHODS)
"""What an attack may declare or define beside what it must."""
SIMILAR_NAME = 0.85  # of 1: `minimizes` is 0.9 like `minimises`


def declarations_are_typed(player: AttackFixture) -> str:
    """Optional attributes have the types that `Traits` gives them."""
    traits, stop_rule = player.traits, getattr(player.attack, "stop_rule", StopRule.NEVER)
    if not isinstance(stop_rule, StopRule):
        return f"stop_rule came as {stop_rule!r}; use a member of StopRule."
    unknown = [goal for goal in traits.goals if goal not in GOAL_EXAMPLES]
    if unknown:
        return f"goals name {unknown[0]!r}; known goals: {', '.join(GOAL_EXAMPLES)}."
    if traits.source not in ("", "surrogate"):
        return f"source came as {traits.source!r}; 'surrogate' or nothing."
    joint = getattr(player.attack, "joint", False)
    if not isinstance(joint, bool):
        return f"joint came as {joint!r}; True where its losses want the rejection score."
    if not isinstance(traits.rows, int) or traits.rows < 0:
        return f"rows came as {traits.rows!r}; a count, or 0 for all examples at once."
    if traits.stop_rule is StopRule.CONVERGENCE and not hasattr(player.attack, "done"):
        return "stop_rule is CONVERGENCE, but done(state) is missing."
    return ""


def no_name_is_nearly_one_of_the_contract(player: AttackFixture) -> str:
    """No attribute is called nearly like an optional one, which would then be passed over."""
    for name in dir(player.attack):
        near = get_close_matches(name, OPTIONAL, 1, SIMILAR_NAME)
        if near and name not in (*OPTIONAL, *REQUIRED):
            return f"it has {name}, which nobody reads; write {near[0]}, or call it otherwise."
    return ""


def parameters_have_a_digest(player: AttackFixture) -> str:
    """Parameters resolve to JSON, twice the same."""
    same = parameters_of(player.attack) == parameters_of(player.attack)
    return "" if same else "resolved parameters differ from one look to the next."


def runs_are_counted_from_one(player: AttackFixture) -> str:
    """`restart_count` returns at least one restart for 2, 10 and 1000 classes."""
    counts = {classes: Traits.restart_count(player.attack, classes) for classes in (2, 10, 1000)}
    wrong = [f"{n} for {classes} classes" for classes, n in counts.items() if n < 1]
    return f"restart_count gave {wrong[0]}; at least one is needed." if wrong else ""


def start_asks_nothing(player: AttackFixture) -> str:
    """`start` is arithmetic: it asks the defense no question."""
    player.start(player.problem())  # where start is called there is no door: a question is refused
    return ""


def start_keeps_the_shape(player: AttackFixture) -> str:
    """`start` gives images like the clean ones: shape, float32, device."""
    rows = player.problem()
    return _unlike(images_of(player.start(rows)), rows.x, "start")


def steps_keep_the_shape(player: AttackFixture) -> str:
    """`step` gives images like the clean ones, and a state of the same make."""
    rows = player.problem()
    before = player.start(rows)
    after = player.advance(rows, before, 1)
    if type(after) is not type(before):
        return f"step turned {type(before).__name__} into {type(after).__name__}."
    changed = [
        f"{old.dtype} {list(old.shape)} into {new.dtype} {list(new.shape)}"
        for old, new in zip(_tensors(before), _tensors(after), strict=True)
        if old.dtype != new.dtype or old.shape != new.shape
    ]
    if changed:
        return f"step turned a field of the state from {changed[0]}."
    return _unlike(images_of(after), rows.x, "step")


def _unlike(adv: Tensor, x: Tensor, where: str) -> str:
    if adv.shape == x.shape and adv.dtype == x.dtype and not adv.requires_grad:
        return ""
    graph = " with a graph" if adv.requires_grad else ""
    return f"{where} gave {adv.dtype} {list(adv.shape)}{graph}; {x.dtype} {list(x.shape)} is due."


def state_has_the_rows_first(player: AttackFixture) -> str:
    """The state is a tensor, or a NamedTuple of tensors `adv` first, each with the rows first."""
    rows = player.problem()
    state = player.advance(rows, player.start(rows), 1)
    if not isinstance(state, Tensor) and getattr(state, "_fields", ("",))[0] != "adv":
        return f"the state is {type(state).__name__}; a tensor or a NamedTuple with adv is due."
    strange = [part for part in _tensors(state) if not isinstance(part, Tensor)]
    if strange:
        return f"the state holds {type(strange[0]).__name__}; only tensors can be exchanged."
    short = [list(t.shape) for t in _tensors(state) if t.dim() == 0 or len(t) != ROWS]
    return f"the state holds {short[0]} for {ROWS} rows; put the rows first." if short else ""


def _tensors(state: State) -> list[Any]:
    return [state] if isinstance(state, Tensor) else list(state)


def iterates_stay_inside(player: AttackFixture) -> str:
    """Every iterate is finite and inside ball and box; a minimiser's inside the box."""
    return player.why_outside(player.problem())


def every_claimed_set_works(player: AttackFixture) -> str:
    """It plays in every set it claims, inside."""
    for name, ball in player.balls.items():
        wrong = player.why_outside(player.problem(ball=ball))
        if wrong:
            return f"in {name}, {wrong}"
    return ""


def every_claimed_goal_works(player: AttackFixture) -> str:
    """It plays for every goal it claims, inside."""
    for name, goal in player.goals.items():
        wrong = player.why_outside(player.problem(goal=goal))
        if wrong:
            return f"for a {name} goal, {wrong}"
    return ""


def saturated_images_are_images(player: AttackFixture) -> str:
    """All-black and all-white images stay images."""
    world = player.model_fixture
    x = torch.cat([torch.zeros_like(world.x[: ROWS // 2]), torch.ones_like(world.x[: ROWS // 2])])
    return player.why_outside(player.problem(ModelFixture(world.model, x, world.y, world.classes)))


def other_shapes_and_class_counts_work(player: AttackFixture) -> str:
    """Non-square colour images work, and two classes."""
    for shape, classes in (((3, 5, 7), 4), ((1, 6, 6), 2)):
        wrong = player.why_outside(player.problem(random_fixture(shape, classes)))
        if wrong:
            return f"on {list(shape)} with {classes} classes, {wrong}"
    return ""


def a_zero_gradient_is_no_crash(player: AttackFixture) -> str:
    """A model without any slope yields finite images inside."""
    return player.why_outside(player.problem(constant_fixture(player.model_fixture)))


def radius_zero_is_the_clean_image(player: AttackFixture) -> str:
    """In a ball of radius 0 every iterate is the clean image."""
    if player.traits.minimises:
        raise DoesNotApply("it minimises; its iterates are not bound to the ball.")
    for name, ball in player.balls.items():
        point = type(ball)(Fraction(0))  # type: ignore[call-arg]
        wrong = player.why_outside(player.problem(ball=point))
        if wrong:
            return f"in {name} of radius 0, {wrong}"
    return ""


def the_same_again(player: AttackFixture) -> str:
    """The same rows give bitwise the same images again."""
    one, two = player.final_images(player.problem()), player.final_images(player.problem())
    far = float((one - two).abs().max())
    return "" if far == 0 else f"a second play differs by {far:.2g}; draw from problem only."


def rows_are_independent(player: AttackFixture) -> str:
    """A row's images do not depend on its companions or its place, to the bit."""
    player.require_steps()
    world = player.model_fixture
    order = torch.cat([torch.arange(ROWS, ROWS + ROWS // 2), torch.arange(ROWS // 2)])
    one, rows = player.final_images(player.problem()), player.problem()
    rows.x, rows.y, rows.clean = (
        world.x[order],
        world.y[order],
        rows.required_model_access.logits(world.x[order]),
    )
    rows.example = order
    if rows.goal.kind == "targeted":
        rows.target = (rows.y + 1) % world.classes
    rows.reset_keys()
    two = player.final_images(rows)
    return _moved(one[: ROWS // 2], two[ROWS // 2 :], "other companions in other places")


def late_rows_are_as_good(player: AttackFixture) -> str:
    """A row that joins when others have made steps gets the same images, to the bit."""
    player.require_steps()
    ahead = min(3, player.attack.steps // 2)
    if ahead == 0:
        raise DoesNotApply("it makes one step only.")
    steps = min(CHECKED_STEPS, player.attack.steps - ahead)
    alone = player.problem(first=ROWS)
    wanted = images_of(player.advance(alone, player.start(alone), steps))
    rows, late = player.problem(), torch.arange(ROWS // 2, ROWS)
    state = player.advance(rows, player.start(rows), ahead)
    fresh = player.problem(first=ROWS)
    for name in ("x", "y", "target", "clean", "example", "t"):
        getattr(rows, name)[late] = getattr(fresh, name)[late]
    rows.reset_keys()
    begun = player.attack.start(rows.at_start(late.repeat(2)))
    state = map_state(lambda old, new: old.index_copy(0, late, new[: len(late)]), state, begun)
    state = player.advance(rows, state, steps)
    return _moved(wanted[late], images_of(state)[late], f"rows that had made {ahead} steps")


def _moved(wanted: Tensor, found: Tensor, beside: str) -> str:
    rows = int((wanted != found).flatten(1).any(1).sum())
    if not rows:
        return ""
    return (
        f"{rows} of {len(wanted)} rows changed beside {beside}; keep counters, sums and schedules "
        "per row, and draw from problem."
    )


def inputs_are_left_alone(player: AttackFixture) -> str:
    """Clean images, labels and clean logits are not written to."""
    rows = player.problem()
    names = ("x", "y", "target", "clean", "example", "restart")
    before = {name: getattr(rows, name).clone() for name in names}
    player.iterates(rows)
    moved = [name for name in names if not torch.equal(before[name], getattr(rows, name))]
    return f"it wrote into problem.{moved[0]}; work on a copy." if moved else ""


def states_are_left_alone(player: AttackFixture) -> str:
    """`step` gives a new state and leaves the one it got as it was."""
    rows = player.problem()
    state = player.start(rows)
    before = [tensor.clone() for tensor in _tensors(state)]
    player.advance(rows, state, 1)
    same = all(torch.equal(a, b) for a, b in zip(before, _tensors(state), strict=True))
    return "" if same else "step wrote into the state it was given; use torch.where and friends."


def model_is_left_alone(player: AttackFixture) -> str:
    """Weights, buffers, modes, hooks and gradients of the defense stay as they are."""
    rows = player.problem()
    before = ModelState.of(rows.required_model_access.module)
    player.iterates(rows)
    moved = before.changed(rows.required_model_access.module)
    return f"it changed {', '.join(moved[:3])} of the defense." if moved else ""


def global_random_state_is_left_alone(player: AttackFixture) -> str:
    """No global generator moves; random numbers come from problem."""
    rows, before = player.problem(), RandomState.after_draws()
    try:
        player.iterates(rows)
        moved = before.changed()
    finally:
        before.restore()
    return f"it moved the global generator of {', '.join(moved)}." if moved else ""


def attack_is_left_alone(player: AttackFixture) -> str:
    """Playing changes no attribute of the attack: what it knows is in the state."""
    before = parameters_of(player.attack)
    player.iterates(player.problem())
    after = parameters_of(player.attack)
    moved = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return f"playing changed its {moved[0]!r}; carry it in the state." if moved else ""


def it_asks_only_what_it_declares(player: AttackFixture) -> str:
    """A door that reveals `needs` and no more is enough."""
    player.iterates(player.problem())  # such a door is the only one here: more is a PluginError
    return ""


def masked_rows_are_not_read(player: AttackFixture) -> str:
    """Answers to rows left out by `where` are not used."""
    player.require_steps()
    clean, soiled = player.problem(), player.problem()
    for name in ("gradient", "jacobian", "logits", "labels"):
        setattr(soiled, name, _soiling(getattr(soiled, name)))
    one, two = player.final_images(clean), player.final_images(soiled)
    return "" if torch.equal(one, two) else "it used answers to rows that `where` left out."


def _soiling(ask: Callable[..., Any]) -> Callable[..., Any]:
    """The same question; the rows that were not asked for get ones."""

    def asked(*args: Any, **named: Any) -> Any:
        answer = ask(*args, **named)
        where = named.get("where", args[-1])
        if not isinstance(where, Tensor) or where.dtype is not torch.bool or where.dim() != 1:
            return answer
        return map_state(lambda t: t.masked_fill(~where.view(-1, *[1] * (t.dim() - 1)), 1), answer)

    return asked


def done_answers_for_each_row(player: AttackFixture) -> str:
    """`done(state)` is [n] bool."""
    if player.traits.stop_rule is not StopRule.CONVERGENCE:
        raise DoesNotApply("it does not retire by convergence.")
    rows = player.problem()
    done = player.attack.done(player.advance(rows, player.start(rows), 1))  # type: ignore[attr-defined]
    if done.dtype is torch.bool and done.shape == (ROWS,):
        return ""
    return f"done gave {done.dtype} {list(done.shape)}; torch.bool [{ROWS}] is due."


def it_breaks_something(player: AttackFixture) -> str:
    """In a wide ball around digits, at least one right answer of an undefended model breaks."""
    whole = Traits.is_external(player.attack)
    steps = (
        0
        if whole
        else player.attack.steps * Traits.restart_count(player.attack, player.model_fixture.classes)
    )
    if steps > 500:
        raise DoesNotApply(f"it makes {steps} steps, more than a check has time for.")
    name = next(iter(player.balls))
    rows = player.problem(ball=WIDE_BALLS[name])
    game = player.cell_spec(rows, Budget(gradients=1000, queries=1000) if whole else Budget())
    lost = game.reached_on_clean

    def confirm(items: Tensor, images: Tensor) -> Tensor:
        inside = game.ball.contains(images.double(), game.x[items].double())
        return inside & game.reaches_goal(game.defense.logits(images), items)

    broken = sum(int(confirm(a.item, a.image).sum()) for a in run_attack(game, confirm))
    if broken > int(lost.sum()):
        return ""
    return f"it broke none of {int((~lost).sum())} right answers in {name} {rows.ball.eps}."


ATTACK_CHECKS = checks_of(
    declarations_are_typed,
    no_name_is_nearly_one_of_the_contract,
    parameters_have_a_digest,
    runs_are_counted_from_one,
    start_asks_nothing,
    start_keeps_the_shape,
    steps_keep_the_shape,
    state_has_the_rows_first,
    iterates_stay_inside,
    every_claimed_set_works,
    every_claimed_goal_works,
    saturated_images_are_images,
    other_shapes_and_class_counts_work,
    a_zero_gradient_is_no_crash,
    radius_zero_is_the_clean_image,
    the_same_again,
    rows_are_independent,
    late_rows_are_as_good,
    inputs_are_left_alone,
    states_are_left_alone,
    model_is_left_alone,
    global_random_state_is_left_alone,
    attack_is_left_alone,
    it_asks_only_what_it_declares,
    masked_rows_are_not_read,
    done_answers_for_each_row,
    it_breaks_something,
)
