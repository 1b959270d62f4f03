"""Perturbation sets against exact references and scipy; ids of threat models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog, minimize
from scipy.stats import chisquare, kstest
from torch import Tensor

from bench.core.protocols import LeaderboardProtocol
from bench.plugin import KeyedRandomNumbers, example_key
from bench.registry.loader import module_from_source
from bench.threats.access import Access, Budget
from bench.threats.norms import L1, L2, Linf, PerturbationSet, per_row
from bench.threats.threat_model import TARGET_RULE_NAMES, Goal, ThreatModel, describe_set

Array = npt.NDArray[np.float64]
SHAPE = (3, 1, 2, 3)
NORMS: list[Callable[[Fraction], PerturbationSet]] = [Linf, L2, L1]
RADII = [Fraction(0), Fraction(1, 255), Fraction(8, 255), Fraction(1, 2), Fraction(1), Fraction(4)]

deterministic = settings(derandomize=True, deadline=None, max_examples=150)
every_norm = pytest.mark.parametrize("norm", NORMS, ids=["Linf", "L2", "L1"])
radii = st.sampled_from(RADII)


def images(shape: tuple[int, ...] = SHAPE) -> st.SearchStrategy[Tensor]:
    """Pixels in [0, 1], often exactly 0 or 1, sometimes all equal."""
    pixel = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1, width=32))
    whole = arrays(np.float32, shape, elements=pixel, fill=st.nothing())
    constant = pixel.map(lambda value: np.full(shape, value, np.float32))
    return st.one_of(whole, whole, constant).map(torch.from_numpy)


def vectors(size: float = 4, shape: tuple[int, ...] = SHAPE) -> st.SearchStrategy[Tensor]:
    """Any direction or image, zeros and ties included."""
    entry = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-size, size, width=32))
    return arrays(np.float32, shape, elements=entry, fill=st.nothing()).map(torch.from_numpy)


def keyed(rows: int, seed: int = 0) -> KeyedRandomNumbers:
    zero = torch.zeros(rows, dtype=torch.int64)
    return KeyedRandomNumbers(example_key(seed, "test", torch.arange(rows), zero), zero - 1)


# References: exact, in float64, one image at a time.


def distance_of(ball: PerturbationSet, change: Array) -> float:
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[ball.name]
    return float(np.linalg.norm(change.ravel(), order))


def nearest(ball: PerturbationSet, adv: Array, x: Array) -> Array:
    """The projection: the one multiplier is found by sorting its breakpoints."""
    if ball.name == "Linf":
        return np.clip(adv, np.maximum(x - ball.radius, 0), np.minimum(x + ball.radius, 1))
    if distance_of(ball, np.clip(adv, 0, 1) - x) <= ball.radius:
        return np.clip(adv, 0, 1)
    return nearest_l2(adv, x, ball.radius) if ball.name == "L2" else nearest_l1(adv, x, ball.radius)


def nearest_l2(adv: Array, x: Array, radius: float) -> Array:
    return x + along(adv - x, x, radius)


def along(direction: Array, x: Array, radius: float) -> Array:
    """The change clamp(x + s d) - x of length `radius`, or into every corner."""
    square, cap = direction**2, np.where(direction > 0, 1 - x, x) ** 2
    moving = (square > 0) & (cap > 0)
    breaks = np.sort(cap[moving] / square[moving])

    def excess(t: float) -> float:
        return float(np.minimum(t * square, cap)[moving].sum() - radius**2)

    beyond = [t for t in breaks if excess(t) >= -1e-14 * radius**2]  # up to the rounding of a sum
    if not beyond:
        return np.where(moving, np.where(direction > 0, 1 - x, -x), 0.0)
    free = moving & (cap >= beyond[0] * square * (1 - 1e-15))
    t = (radius**2 - cap[moving & ~free].sum()) / square[free].sum()
    return np.asarray(np.clip(x + np.sqrt(max(t, 0)) * direction, 0, 1) - x)


def nearest_l1(adv: Array, x: Array, radius: float) -> Array:
    change = adv - x
    size, reach = np.abs(change), np.where(change > 0, 1 - x, x)

    def norm(threshold: float) -> float:
        return float(np.clip(size - threshold, 0, reach).sum())

    corners = np.unique(np.concatenate([[0.0], size, np.maximum(size - reach, 0)]))
    high = next(c for c in corners if norm(c) <= radius)
    low = max([c for c in corners if c < high], default=high)
    part = (norm(low) - radius) / max(norm(low) - norm(high), 1e-300)
    threshold = low + min(part, 1.0) * (high - low)
    return np.asarray(x + np.sign(change) * np.clip(size - threshold, 0, reach))


def best_gain(ball: PerturbationSet, weight: Array, x: Array) -> float:
    """The most that <weight, change> can be inside ball and box."""
    size, room = np.abs(weight), np.where(weight > 0, 1 - x, x)
    if ball.name == "Linf":
        return float((size * np.minimum(room, ball.radius)).sum())
    if ball.name == "L2":
        return float((weight * along(weight, x, ball.radius)).sum())
    gain, left = 0.0, ball.radius
    for pixel in np.argsort(-size):
        spent = min(left, room[pixel])
        gain, left = gain + spent * size[pixel], left - spent
    return gain


def rows(*tensors: Tensor) -> list[tuple[Array, ...]]:
    """Each image of each tensor, flat and in float64."""
    flat = [t.flatten(1).double().numpy() for t in tensors]
    return list(zip(*flat, strict=True))


# Projection.


@pytest.mark.row("G07")
@every_norm
@given(x=images(), adv=vectors(), eps=radii)
@deterministic
def test_projection_is_the_nearest_point_of_ball_and_box(
    norm: Callable[[Fraction], PerturbationSet], x: Tensor, adv: Tensor, eps: Fraction
) -> None:
    ball = norm(eps)
    for mine, a, clean in rows(ball.project(adv, x), adv, x):
        assert np.abs(mine - nearest(ball, a, clean)).max() <= 1e-6


@pytest.mark.row("G07")
@every_norm
@given(x=images(), adv=vectors(), eps=radii)
@deterministic
def test_projection_is_feasible_and_idempotent(
    norm: Callable[[Fraction], PerturbationSet], x: Tensor, adv: Tensor, eps: Fraction
) -> None:
    ball = norm(eps)
    once = ball.project(adv, x)
    assert ball.contains(once, x).all()
    assert (ball.distance(once.double(), x.double()) <= ball.radius + 1e-6).all()
    assert (ball.project(once, x) - once).abs().max() <= 1e-7


@every_norm
@given(x=images(), other=images(), share=st.floats(0, 1, width=32), eps=radii)
@deterministic
def test_projection_does_not_move_points_inside(
    norm: Callable[[Fraction], PerturbationSet],
    x: Tensor,
    other: Tensor,
    share: float,
    eps: Fraction,
) -> None:
    ball = norm(eps)
    reach = ball.distance(other, x).clamp_min(1e-6)
    scale = (0.999 * share * ball.radius / reach).clamp_max(1)
    inside = (x + per_row(scale, x) * (other - x)).clamp(0, 1)
    if eps == 0:
        inside = x
    assert (ball.project(inside, x) - inside).abs().max() <= 1e-15
    assert torch.equal(ball.project(x, x), x)


@pytest.mark.row("G07")
@every_norm
@given(x=images(), a=vectors(), b=vectors(), eps=radii)
@deterministic
def test_projection_does_not_increase_the_distance_of_two_points(
    norm: Callable[[Fraction], PerturbationSet], x: Tensor, a: Tensor, b: Tensor, eps: Fraction
) -> None:
    ball = norm(eps)
    apart = (ball.project(a, x) - ball.project(b, x)).double().flatten(1).norm(dim=1)
    assert (apart <= (a - b).double().flatten(1).norm(dim=1) + 2e-6).all()


@pytest.mark.row("G07")
@every_norm
def test_projection_agrees_with_scipy(norm: Callable[[Fraction], PerturbationSet]) -> None:
    rng = np.random.default_rng(0)
    for eps in (Fraction(1, 10), Fraction(1, 2), Fraction(3, 2)):
        for _ in range(8):
            x = rng.choice([0.0, 1.0, rng.random()], 6)
            adv = x + rng.normal(size=6)
            ball = norm(eps)
            mine = ball.project(
                torch.tensor(adv).view(1, 1, 2, 3), torch.tensor(x).view(1, 1, 2, 3)
            )
            assert np.abs(mine.numpy().ravel() - by_slsqp(ball, adv, x)).max() <= 1e-6


def by_slsqp(ball: PerturbationSet, adv: Array, x: Array) -> Array:
    """Nearest point by SLSQP over the sizes of the changes, which keep the signs of adv - x."""
    pull, room = np.abs(adv - x), np.where(adv > x, 1 - x, x)
    if ball.name == "Linf":
        room = np.minimum(room, ball.radius)

    def left(size: Array) -> float:
        return float(
            ball.radius**2 - size @ size if ball.name == "L2" else ball.radius - size.sum()
        )

    found = minimize(
        lambda size: ((size - pull) ** 2).sum(),
        np.minimum(room, 0.01),
        jac=lambda size: 2 * (size - pull),
        bounds=[(0, r) for r in room],
        constraints=[] if ball.name == "Linf" else [{"type": "ineq", "fun": left}],
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    return np.asarray(x + found.x * np.sign(adv - x))


@given(x=images((2, 1, 1, 40)), spread=st.floats(0, 60), eps=radii)
@example(x=torch.full((2, 1, 1, 40), 0.5), spread=60.0, eps=Fraction(3))
@deterministic
def test_l2_is_exact_for_very_uneven_directions(x: Tensor, spread: float, eps: Fraction) -> None:
    """Weights over 26 orders of magnitude need more Newton steps than any fixed count."""
    weight = torch.exp(-spread * torch.linspace(0, 1, 40)).expand_as(x).clone()
    weight[1] *= -1
    for mine, w, clean in rows(L2(eps).farthest(weight, x), weight, x):
        assert np.abs(mine - clean - along(w, clean, float(eps))).max() <= 1e-6
    far = x + 1e3 * weight
    for mine, a, clean in rows(L2(eps).project(far, x), far, x):
        assert np.abs(mine - nearest(L2(eps), a, clean)).max() <= 1e-6


@every_norm
@pytest.mark.parametrize("eps", [Fraction(1, 5), Fraction(2), Fraction(8)])
def test_projection_is_exact_on_whole_images(
    norm: Callable[[Fraction], PerturbationSet], eps: Fraction
) -> None:
    """784 pixels, so that the multiplier has many breakpoints close together."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(16, 1, 28, 28, generator=rng, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=rng) < 0.3, x.round(), x)
    adv = x + torch.randn(x.shape, generator=rng, dtype=torch.float64)
    ball = norm(eps)
    for mine, a, clean in rows(ball.project(adv, x), adv, x):
        assert np.abs(mine - nearest(ball, a, clean)).max() <= 1e-9


@every_norm
def test_every_method_treats_each_row_independently(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    ball = norm(Fraction(1, 2))
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(64, 3, 8, 8, generator=rng, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=rng) < 0.3, x.round(), x)
    other = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    other[::7] *= 1e-6 ** torch.rand(other[::7].shape, generator=rng)
    order = torch.randperm(64, generator=rng)
    for verb in (ball.project, ball.farthest, ball.steepest):
        whole, shuffled = verb(other, x), verb(other[order], x[order])
        assert torch.equal(whole[order], shuffled)
        beside_itself = verb(other[:1].repeat(32, 1, 1, 1), x[:1].repeat(32, 1, 1, 1))
        assert torch.equal(whole[0], beside_itself[0])


# Linear functions over the set, and directions.


@every_norm
@given(x=images(), weight=vectors(), eps=radii)
@deterministic
def test_farthest_reaches_the_maximum_of_the_linear_function(
    norm: Callable[[Fraction], PerturbationSet], x: Tensor, weight: Tensor, eps: Fraction
) -> None:
    ball = norm(eps)
    far = ball.farthest(weight, x)
    assert ball.contains(far, x).all()
    for end, w, clean in rows(far, weight, x):
        assert w @ (end - clean) == pytest.approx(best_gain(ball, w, clean), abs=2e-6)


@pytest.mark.parametrize("norm", [Linf, L1], ids=["Linf", "L1"])
def test_farthest_agrees_with_linear_programming(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    rng = np.random.default_rng(1)
    for eps in (Fraction(1, 10), Fraction(1, 2), Fraction(3, 2)):
        for _ in range(10):
            x, w = rng.choice([0.0, 1.0, rng.random()], 6), rng.normal(size=6)
            ball = norm(eps)
            room = np.concatenate([1 - x, x])
            best = linprog(
                -np.concatenate([w, -w]),
                A_ub=np.ones((1, 12)) if ball.name == "L1" else None,
                b_ub=[ball.radius] if ball.name == "L1" else None,
                bounds=[(0, r if ball.name == "L1" else min(r, ball.radius)) for r in room],
            )
            image = torch.tensor(x).view(1, 1, 2, 3)
            end = ball.farthest(torch.tensor(w).view(1, 1, 2, 3), image)
            assert w @ (end - image).numpy().ravel() == pytest.approx(-best.fun, abs=1e-9)


@every_norm
@given(gradient=vectors(), scale=st.sampled_from([1e-42, 1e-30, 1e-20, 1.0, 1e20]))
@deterministic
def test_steepest_reaches_the_dual_norm(
    norm: Callable[[Fraction], PerturbationSet], gradient: Tensor, scale: float
) -> None:
    ball = norm(Fraction(1, 2))
    gradient = gradient.round(decimals=2) * scale
    step = ball.steepest(gradient, torch.full(SHAPE, 0.5))
    assert torch.isfinite(step).all()
    dual = {"Linf": 1, "L2": 2, "L1": np.inf}[ball.name]
    for direction, g in rows(step, gradient):
        gain = np.linalg.norm(g, dual)
        assert direction @ g == pytest.approx(gain, rel=1e-4 if scale < 1e-38 else 1e-6)
        size = distance_of(ball, direction)
        assert size == (pytest.approx(1, abs=1e-5) if gain > 0 else 0)


@every_norm
@given(x=images(), gradient=vectors())
@deterministic
def test_steepest_is_zero_at_pixels_that_cannot_move(
    norm: Callable[[Fraction], PerturbationSet], x: Tensor, gradient: Tensor
) -> None:
    ball = norm(Fraction(1, 2))
    step = ball.steepest(gradient, x)
    stuck = ((x >= 1) & (gradient > 0)) | ((x <= 0) & (gradient < 0))
    assert (step[stuck] == 0).all()
    useful = gradient.masked_fill(stuck, 0)
    assert torch.equal(step, ball.steepest(useful, torch.full(SHAPE, 0.5)))


@every_norm
@pytest.mark.parametrize(
    "rate", [0.25, torch.linspace(0, 2, SHAPE[0])], ids=["one", "each its own"]
)
@given(x=images(), change=vectors(), gradient=vectors())
@deterministic
def test_ascend_is_a_steepest_step_and_a_projection(
    norm: Callable[[Fraction], PerturbationSet], rate: float | Tensor,
    x: Tensor, change: Tensor, gradient: Tensor,
) -> None:  # fmt: skip
    ball = norm(Fraction(1, 4))
    adv = ball.project(x + change, x)
    step = ball.radius * torch.as_tensor(rate).expand(SHAPE[0]).view(-1, 1, 1, 1)
    wanted = ball.project(adv + step * ball.steepest(gradient, adv), x)
    assert torch.equal(ball.ascend(adv, gradient, rate, x), wanted)


@given(x=images(), gradient=vectors())
@deterministic
def test_in_linf_pixels_that_cannot_move_do_not_change_the_ascent(
    x: Tensor, gradient: Tensor
) -> None:
    ball = Linf(Fraction(1, 4))
    moved = ball.project(x + ball.radius * ball.steepest(gradient, x), x)
    stuck = ((x >= 1) & (gradient > 0)) | ((x <= 0) & (gradient < 0))
    assert torch.equal(moved[stuck], x[stuck])
    assert torch.equal(moved, ball.farthest(gradient, x))


# Samples.


@every_norm
@given(x=images(), eps=radii, seed=st.integers(0, 2**31))
@deterministic
def test_samples_are_inside(
    norm: Callable[[Fraction], PerturbationSet], x: Tensor, eps: Fraction, seed: int
) -> None:
    ball = norm(eps)
    assert ball.contains(ball.sample(x, keyed(len(x), seed)), x).all()


@every_norm
def test_samples_are_uniform_in_the_ball(norm: Callable[[Fraction], PerturbationSet]) -> None:
    """(distance / eps)^d is uniform; every pixel is as often the largest; signs are even."""
    ball, count = norm(Fraction(1, 4)), 6000
    x = torch.full((count, 1, 1, 5), 0.5)
    change = (ball.sample(x, keyed(count)) - x).double()
    radius = ball.distance(change, torch.zeros_like(change)) / ball.radius
    assert kstest((radius**5).numpy(), "uniform").pvalue > 1e-3
    largest = change.flatten(1).abs().argmax(1).bincount(minlength=5)
    assert chisquare(largest.numpy()).pvalue > 1e-3
    signs = (change.flatten(1) > 0).sum(0).double() / count
    assert ((signs - 0.5).abs() < 4 * 0.5 / count**0.5).all()
    middle = (radius - radius.median()).sign()
    first = change.flatten(1)[:, 0].sign()
    assert abs(float((middle * first).mean())) < 4 / count**0.5


# Threat models.

RULES = ThreatModel("digits-linf", "digits", Linf(Fraction(51, 255)))
TARGETED = Goal("targeted", "next")


@pytest.mark.parametrize(
    "other",
    [
        replace(RULES, dataset="mnist"),
        replace(RULES, ball=Linf(Fraction(50, 255))),
        replace(RULES, ball=L2(Fraction(51, 255))),
        replace(RULES, access=Access.LABELS),
        replace(RULES, goal=TARGETED),
        replace(RULES, goal=Goal("targeted", "all")),
        replace(RULES, goal=Goal("nearest")),
        replace(RULES, budget=Budget(gradients=10)),
        replace(RULES, budget=Budget(queries=10)),
    ],
)
def test_a_changed_rule_changes_the_id(other: ThreatModel) -> None:
    assert other.id != RULES.id
    assert other.id != replace(RULES, goal=TARGETED).id or other.goal == TARGETED


def test_name_order_summary_and_protocol_do_not_change_the_id() -> None:
    renamed = replace(RULES, name="x", order=3, summary="y", examples=10)
    assert renamed.id == RULES.id
    for protocol in (LeaderboardProtocol(("pgd",)), LeaderboardProtocol(ranked=False)):
        assert replace(RULES, protocol=protocol).id == RULES.id
    assert replace(RULES, ball=Linf(Fraction(1, 5))).id == RULES.id
    assert len(RULES.id) == 16


def test_a_radius_is_stored_as_an_exact_fraction() -> None:
    assert describe_set(Linf(Fraction(8, 255))) == {
        "name": "Linf",
        "eps": "8/255",
        "radius": 8 / 255,
    }


def test_a_set_without_a_finite_radius_has_no_id() -> None:
    @dataclass(frozen=True)
    class Endless(L2):
        @property
        def radius(self) -> float:
            return float("inf")

    with pytest.raises(ValueError, match="must be finite"):
        describe_set(Endless(Fraction(1)))


@dataclass(frozen=True)
class Patch(Linf):
    """A cube over the first `side` rows of pixels."""

    side: int = 1
    corner: tuple[int, ...] = (0, 0)


@pytest.mark.parametrize(
    "other",
    [Patch(Fraction(1), side=5), Patch(Fraction(1), corner=(1, 0)), Linf(Fraction(1))],
    ids=["side", "corner", "class"],
)
def test_a_changed_parameter_of_a_set_changes_the_id(other: PerturbationSet) -> None:
    one = replace(RULES, ball=Patch(Fraction(1), side=1))
    assert one.id == replace(RULES, ball=Patch(Fraction(1))).id
    assert replace(RULES, ball=other).id != one.id


WRITTEN = """
from dataclasses import dataclass
from bench.plugin import Linf

@dataclass(frozen=True)
class Patch(Linf):
    def contains(self, adv, x):
        return super().contains(adv, x) & ((adv != x).flatten(1).sum(1) <= 5)

class Other(Patch):
    pass
"""


def written(folder: Path, text: str, name: str = "Patch") -> PerturbationSet:
    """The set of that name in a plugin's file."""
    folder.mkdir(exist_ok=True)
    path = folder / "plugin.py"
    path.write_text(text)
    found: PerturbationSet = getattr(module_from_source(path.read_bytes(), path), name)(Fraction(1))
    return found


def test_the_id_of_a_plugins_set_depends_on_its_code_not_on_its_path(tmp_path: Path) -> None:
    one = describe_set(written(tmp_path / "here", WRITTEN))
    assert describe_set(written(tmp_path / "there", WRITTEN)) == one
    assert describe_set(written(tmp_path / "here", WRITTEN.replace("<= 5", "<= 6"))) != one
    assert describe_set(written(tmp_path / "here", WRITTEN, "Other")) != one


@pytest.mark.parametrize("kind", ["untargeted", "nearest"])
def test_only_targeted_goals_have_a_rule(kind: str) -> None:
    assert Goal(kind).rule == ""
    with pytest.raises(ValueError, match="allowed: ''"):
        Goal(kind, "next")


@pytest.mark.parametrize("rule", TARGET_RULE_NAMES)
def test_a_targeted_goal_has_a_rule(rule: str) -> None:
    assert Goal("targeted", rule).rule == rule
    for wrong in ("", "nearby"):
        with pytest.raises(ValueError, match="'next', 'least-likely', 'random', 'all'"):
            Goal("targeted", wrong)


def test_an_unknown_goal_is_refused() -> None:
    with pytest.raises(ValueError, match="known goals: untargeted, nearest, targeted"):
        Goal("universal")


# Onto a hyperplane.


def nearest_on_plane(ball: PerturbationSet, weight: Array, rise: float, x: Array) -> float:
    """min ||z - x|| over the box with <weight, z - x> = rise: a linear programme, or a search."""
    d, w = x.size, weight.ravel()
    box = list(zip((-x).ravel(), (1 - x).ravel(), strict=True))
    if ball.name == "L2":
        plane = {"type": "eq", "fun": lambda z: z @ w - rise, "jac": lambda z: w}
        found = minimize(
            lambda z: z @ z, 0 * w, jac=lambda z: 2 * z, bounds=box, constraints=plane,
            method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return float(np.sqrt(found.fun))
    extra = 1 if ball.name == "Linf" else d
    bound = np.ones((d, 1)) if ball.name == "Linf" else np.eye(d)
    above = np.block([[np.eye(d), -bound], [-np.eye(d), -bound]])
    cost = np.concatenate([np.zeros(d), np.ones(extra)])
    line = np.concatenate([w, np.zeros(extra)])[None]
    limits = box + [(0, None)] * extra
    found = linprog(cost, above, np.zeros(2 * d), line, [rise], bounds=limits)
    return float(found.fun)


@every_norm
def test_onto_is_the_nearest_point_of_the_hyperplane_in_the_box(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    """Against scipy, with pixels at the edges of the box, rises and falls."""
    ball, generator = norm(Fraction(1, 10)), np.random.default_rng(0)
    x = np.clip(1.6 * generator.random((16, 1, 2, 4)) - 0.3, 0, 1)
    weight = generator.standard_normal(x.shape)
    most = np.where(weight > 0, weight * (1 - x), -weight * x).sum((1, 2, 3))
    least = np.where(weight > 0, -weight * x, weight * (1 - x)).sum((1, 2, 3))
    rise = np.where(generator.random(16) < 0.5, most, least) * generator.random(16)
    moved = ball.onto(*(torch.from_numpy(part) for part in (weight, rise, x)))
    change = moved.numpy() - x
    assert (rise > 0).any()
    assert (rise < 0).any()
    assert np.allclose((weight * change).sum((1, 2, 3)), rise, atol=1e-12)
    assert moved.min() >= 0
    assert moved.max() <= 1
    for row in range(16):
        expected = nearest_on_plane(ball, weight[row], rise[row], x[row])
        assert abs(distance_of(ball, change[row]) - expected) < 1e-6


@every_norm
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e8])
def test_onto_in_float32_is_that_in_float64(
    norm: Callable[[Fraction], PerturbationSet], scale: float
) -> None:
    ball, generator = norm(Fraction(1, 10)), torch.Generator().manual_seed(0)
    x = (1.6 * torch.rand(32, 3, 16, 16, generator=generator) - 0.3).clamp(0, 1)
    weight = scale * torch.randn(x.shape, generator=generator) ** 3
    rise = weight.flatten(1).abs().sum(1) * torch.linspace(-0.3, 0.3, 32)
    moved = ball.onto(weight, rise, x)
    exact = ball.onto(weight.double(), rise.double(), x.double())
    assert moved.dtype == torch.float32
    climbed = (weight.double() * (moved.double() - x)).flatten(1).sum(1)
    assert ((climbed - rise).abs() < 1e-6 * weight.flatten(1).abs().sum(1)).all()
    far, near = (ball.distance(end.double(), x.double()) for end in (moved, exact))
    assert ((far - near).abs() < 1e-6 * near.clamp_min(1)).all()
    assert ((exact > 0) & (exact < 1) & (exact != x)).flatten(1).any(1).all()


@every_norm
def test_onto_is_the_nearest_point_of_the_box_where_the_hyperplane_misses_it(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    x, weight = torch.full((2, 1, 1, 3), 0.25), torch.tensor([1.0, -2.0, 0.0]).expand(2, 1, 1, 3)
    moved = norm(Fraction(1)).onto(weight, torch.tensor([99.0, -99.0]), x)
    assert moved.flatten(1).tolist() == [[1.0, 0.0, 0.25], [0.0, 1.0, 0.25]]


@every_norm
def test_onto_does_not_move_without_a_rise_or_a_weight(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    x = torch.rand(4, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(Fraction(1)).onto(torch.ones_like(x), torch.zeros(4), x), x)
    assert torch.equal(norm(Fraction(1)).onto(torch.zeros_like(x), torch.full((4,), 1e30), x), x)
