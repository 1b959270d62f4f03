"""Checks of an attack: its declarations, its states and its images.

Each check runs a few steps on a small model, where a step costs microseconds, and without the
engine, which would hide some faults.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from difflib import get_close_matches

import torch
from torch import Tensor

from bench.contract.attack_fixture import GOAL_EXAMPLES, WIDE_BALLS, AttackFixture
from bench.contract.attack_independence_checks import INDEPENDENCE_CHECKS
from bench.contract.check import Check, DoesNotApply, checks_of
from bench.contract.fixtures import (
    ROWS,
    LinearClassifier,
    constant_fixture,
    linear_fixture,
    random_fixture,
)
from bench.core.protocols import DECLARED, LEARNED, LEARNED_STRONG
from bench.engine.cell_spec import CellSpec
from bench.engine.problem import BatchProblem, points_of, tensors_of
from bench.engine.runner import run_attack
from bench.plugin import OPTIONAL_METHODS, Attack, StopRule, Traits
from bench.registry.registry import Registry
from bench.threats.access import Access, Budget
from bench.threats.fingerprint import parameters_of
from bench.threats.threat_model import Goal

REQUIRED = ("name", "needs", "steps", "start", "step", "run")
"""What an attack must have; an external attack has `run` in place of `steps`, `start`, `step`."""
OPTIONAL = (*(field.name for field in fields(Traits)), *OPTIONAL_METHODS)
"""What an attack may have besides."""
MOST_STEPS = 1000
"""Steps that are made on a linear model."""
REACHED = 0.999
"""Share of the way to the best point of the set below which an attack has too few steps."""
SIMILAR_NAME = 0.85  # of 1: `minimizes` and `minimises` have 0.9


def _surrogate_roles(registry: Registry) -> set[str]:
    """The roles that `source` may name: built-in ones, and those of registered protocols."""
    protocols = [found.value.protocol for found in registry.threats.values()]
    named = {role for protocol in protocols for role in protocol.surrogates}
    return {"", DECLARED, LEARNED, LEARNED_STRONG, *named}


def declarations_are_typed(fixture: AttackFixture) -> str:
    """Optional attributes have the types and values that `Traits` declares."""
    attack, traits = fixture.attack, fixture.traits
    stop_rule, joint = getattr(attack, "stop_rule", StopRule.NEVER), getattr(attack, "joint", False)
    if not isinstance(stop_rule, StopRule):
        return f"stop_rule is {stop_rule!r}; use a member of StopRule."
    if unknown := [goal for goal in traits.goals if goal not in GOAL_EXAMPLES]:
        return f"goals contain {unknown[0]!r}; known goals: {', '.join(GOAL_EXAMPLES)}."
    if traits.source not in (roles := _surrogate_roles(fixture.registry)):
        return f"source is {traits.source!r}; use one of {', '.join(map(repr, sorted(roles)))}."
    if not isinstance(joint, bool):
        return f"joint is {joint!r}; write True where the losses use the rejection score."
    if not isinstance(traits.rows, int) or traits.rows < 0:
        return f"rows is {traits.rows!r}; write a count, or 0 for all examples at once."
    if traits.stop_rule is StopRule.CONVERGENCE and not hasattr(attack, "done"):
        return "stop_rule is CONVERGENCE, but done(state) is missing."
    return ""


def no_name_is_nearly_one_of_the_contract(fixture: AttackFixture) -> str:
    """No attribute has a misspelt name of an optional one, which would then have no effect."""
    for name in dir(fixture.attack):
        near = get_close_matches(name, OPTIONAL, 1, SIMILAR_NAME)
        if near and name not in (*OPTIONAL, *REQUIRED):
            return f"the attribute {name} has no effect; write {near[0]}, or choose another name."
    return ""


def parameters_have_a_digest(fixture: AttackFixture) -> str:
    """The parameters can be written as JSON, and are the same when read twice."""
    same = parameters_of(fixture.attack) == parameters_of(fixture.attack)
    return "" if same else "the parameters differ from one reading to the next."


def runs_are_counted_from_one(fixture: AttackFixture) -> str:
    """There is at least one restart for 2, 10 and 1000 classes."""
    counts = {n: Traits.restart_count(fixture.attack, n) for n in (2, 10, 1000)}
    wrong = [f"{count} for {n} classes" for n, count in counts.items() if count < 1]
    return f"restart_count returned {wrong[0]}; at least one is needed." if wrong else ""


def start_asks_nothing(fixture: AttackFixture) -> str:
    """`start` makes no query of the defense."""
    fixture.require_steps()
    problem = fixture.problem()
    # A query in `start` raises PluginError.
    fixture.attack.start(problem.at_start(torch.arange(len(problem.x))))
    return ""


def start_keeps_the_shape(fixture: AttackFixture) -> str:
    """`start` returns points with the shape, dtype and device of the clean ones, in every set."""
    for ball in fixture.balls.values():
        problem = fixture.problem(ball=ball)
        if why := _why_unlike(points_of(fixture.start(problem)), problem.points, "start"):
            return why
    return ""


def steps_keep_the_shape(fixture: AttackFixture) -> str:
    """`step` returns points like the clean ones, and a state with the same types and shapes."""
    problem = fixture.problem()
    before = fixture.start(problem)
    after = fixture.advance(problem, before, 1)
    if type(after) is not type(before):
        return f"step turned {type(before).__name__} into {type(after).__name__}."
    changed = [
        f"{old.dtype} {list(old.shape)} into {new.dtype} {list(new.shape)}"
        for old, new in zip(tensors_of(before), tensors_of(after), strict=True)
        if old.dtype != new.dtype or old.shape != new.shape
    ]
    if changed:
        return f"step turned a field of the state from {changed[0]}."
    return _why_unlike(points_of(after), problem.points, "step")


def _why_unlike(adv: Tensor, x: Tensor, where: str) -> str:
    if adv.shape == x.shape and adv.dtype == x.dtype and not adv.requires_grad:
        return ""
    graph = " with a graph" if adv.requires_grad else ""
    found, expected = f"{adv.dtype} {list(adv.shape)}{graph}", f"{x.dtype} {list(x.shape)}"
    return f"{where} returned {found}; {expected} was expected."


def state_has_the_rows_first(fixture: AttackFixture) -> str:
    """The state is a tensor, or a NamedTuple of tensors with `adv` first; rows are dimension 0."""
    problem = fixture.problem()
    state = fixture.advance(problem, fixture.start(problem), 1)
    if not isinstance(state, Tensor) and getattr(state, "_fields", ("",))[0] != "adv":
        kind = type(state).__name__
        return f"the state is {kind}; a tensor or a NamedTuple with adv first was expected."
    others = [part for part in tensors_of(state) if not isinstance(part, Tensor)]
    if others:
        return f"the state holds {type(others[0]).__name__}; only tensors were expected."
    short = [list(t.shape) for t in tensors_of(state) if t.dim() == 0 or len(t) != ROWS]
    return f"the state holds {short[0]} for {ROWS} rows; put the rows first." if short else ""


def iterates_stay_inside(fixture: AttackFixture) -> str:
    """Every iterate is finite and in the ball and [0, 1]; if the attack minimises, in [0, 1]."""
    return fixture.why_outside(fixture.problem())


def every_claimed_set_works(fixture: AttackFixture) -> str:
    """For each norm in `norms`, every iterate stays in the ball and in [0, 1]."""
    problems = ((f"in {n}", fixture.problem(ball=ball)) for n, ball in fixture.balls.items())
    return _first_outside(fixture, problems)


def every_claimed_goal_works(fixture: AttackFixture) -> str:
    """For each goal in `goals`, every iterate stays in the ball and in [0, 1]."""
    goals = fixture.goals.items()
    problems = ((f"for a {name} goal", fixture.problem(goal=goal)) for name, goal in goals)
    return _first_outside(fixture, problems)


def _first_outside(fixture: AttackFixture, problems: Iterable[tuple[str, BatchProblem]]) -> str:
    """The first of the named problems in which an iterate leaves the set; empty for none."""
    for where, problem in problems:
        if wrong := fixture.why_outside(problem):
            return f"{where}, {wrong}"
    return ""


def saturated_images_are_images(fixture: AttackFixture) -> str:
    """From all-black and all-white images, every iterate stays in the ball and in [0, 1]."""
    black = torch.zeros_like(fixture.model_fixture.x[: ROWS // 2])
    x = torch.cat([black, torch.ones_like(black)])
    return fixture.why_outside(fixture.problem(replace(fixture.model_fixture, x=x)))


def other_shapes_and_class_counts_work(fixture: AttackFixture) -> str:
    """Colour images that are not square work, and two classes."""
    models = [random_fixture((3, 5, 7), 4), random_fixture((1, 6, 6), 2)]
    names = [f"on {list(model.x.shape[1:])} with {model.classes} classes" for model in models]
    return _first_outside(fixture, zip(names, map(fixture.problem, models), strict=True))


def a_zero_gradient_is_no_crash(fixture: AttackFixture) -> str:
    """On a model whose gradients are all zero, every iterate is finite and inside."""
    return fixture.why_outside(fixture.problem(constant_fixture(fixture.model_fixture)))


def radius_zero_is_the_clean_image(fixture: AttackFixture) -> str:
    """In a ball of radius 0 every iterate is the clean image.

    Raises DoesNotApply for an attack that minimises.
    """
    if fixture.traits.minimises:
        raise DoesNotApply("it minimises; its iterates need not stay in the ball.")
    points = {n: ball.scaled(0) for n, ball in fixture.balls.items()}
    problems = ((f"in {n} of radius 0", fixture.problem(ball=point)) for n, point in points.items())
    return _first_outside(fixture, problems)


def it_asks_only_what_it_declares(fixture: AttackFixture) -> str:
    """The attack works with no more access to the defense than its `needs`."""
    fixture.iterates(fixture.problem())  # the problem grants no more: PluginError otherwise
    return ""


def done_answers_for_each_row(fixture: AttackFixture) -> str:
    """`done(state)` returns bool [n].

    Raises DoesNotApply for an attack that does not stop by convergence.
    """
    if fixture.traits.stop_rule is not StopRule.CONVERGENCE:
        raise DoesNotApply("its stop_rule is not CONVERGENCE.")
    problem = fixture.problem()
    state = fixture.advance(problem, fixture.start(problem), 1)
    done = fixture.attack.done(state)  # type: ignore[attr-defined]
    if done.dtype is torch.bool and done.shape == (ROWS,):
        return ""
    return f"done returned {done.dtype} {list(done.shape)}; torch.bool [{ROWS}] was expected."


def it_breaks_something(fixture: AttackFixture) -> str:
    """In a wide ball around digits, it breaks at least one example of an undefended model.

    Raises DoesNotApply for an attack of more than 500 steps.
    """
    external, steps = Traits.is_external(fixture.attack), _steps_of_all_restarts(fixture)
    if steps > 500:
        raise DoesNotApply(f"it makes {steps} steps; the check allows 500.")
    name = next(iter(fixture.balls))
    problem = fixture.problem(ball=WIDE_BALLS[name])
    budget = Budget(gradients=1000, queries=1000) if external else Budget()
    spec = fixture.cell_spec(problem, budget)
    if _broken_images(spec) > int(spec.reached_on_clean.sum()):
        return ""
    count = int((~spec.reached_on_clean).sum())
    return f"it broke none of {count} correctly classified images in {name} {problem.ball.eps}."


def _steps_of_all_restarts(fixture: AttackFixture) -> int:
    """Steps per example over all restarts; 0 for an external attack."""
    restarts = Traits.restart_count(fixture.attack, fixture.model_fixture.classes)
    return 0 if Traits.is_external(fixture.attack) else fixture.attack.steps * restarts


def _broken_images(spec: CellSpec) -> int:
    """How many adversarial examples the attack of a cell finds."""

    def confirm(items: Tensor, points: Tensor) -> Tensor:
        """Which candidates [m, ...] are adversarial examples, bool [m]."""
        x = spec.x[items]
        inside = spec.ball.contains(points.double(), x.double())
        return inside & spec.reaches_goal(spec.defense.logits(spec.ball.apply(points, x)), items)

    return sum(int(confirm(a.item, a.image).sum()) for a in run_attack(spec, confirm))


def steps_cross_the_set(fixture: AttackFixture) -> str:
    """On a linear model it reaches the end of the set: steps times step size are two radii.

    With fewer or smaller steps an iterate cannot cross the set from a random start, and a defense
    seems robust to it that is not (arXiv:1807.10272). Raises DoesNotApply for an attack that
    minimises, makes one step or uses no gradient.
    """
    fixture.require_steps()
    attack, traits = fixture.attack, fixture.traits
    if traits.minimises or traits.joint or attack.needs < Access.GRADIENTS:
        raise DoesNotApply("it does not ascend a gradient in a fixed set.")
    if attack.steps == 1 or "untargeted" not in fixture.goals:
        raise DoesNotApply("it makes one step, or has a target.")
    model, linear = linear_fixture((1, 8, 8), 10)
    problem = fixture.problem(linear, goal=Goal())
    state = fixture.advance(problem, fixture.start(problem), min(attack.steps, MOST_STEPS))
    reached = _share_of_the_way(problem, model, points_of(state))
    if reached >= REACHED:
        return ""
    return (
        f"after {attack.steps} steps it has made {reached:.1%} of the way to the end of the set on "
        "a linear model; make steps times step size at least two radii."
    )


def _share_of_the_way(problem: BatchProblem, model: LinearClassifier, adv: Tensor) -> float:
    """The least share of the way from x to an end of the set that images [n, C, H, W] have made."""
    weight = model.weight.expand_as(problem.x)
    ends = [problem.ball.farthest(sign * weight, problem.x) for sign in (1, -1)]
    start = model.value(problem.x)
    whole = torch.stack([model.value(end) - start for end in ends])
    shares = (model.value(adv) - start) / whole
    return float(shares.amax(0).min())  # a loss without the label may go either way


def why_steps_do_not_cross(attack: Attack) -> str:
    """The sentence of `steps_cross_the_set`; empty where it passes or does not apply."""
    try:
        return steps_cross_the_set(AttackFixture(Registry.empty(), attack))
    except DoesNotApply:
        return ""


ATTACK_CHECKS = (
    *checks_of(
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
    ),
    *INDEPENDENCE_CHECKS,
    *checks_of(it_asks_only_what_it_declares, done_answers_for_each_row, it_breaks_something),
    Check(steps_cross_the_set, warns=True),
)
