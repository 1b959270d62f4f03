"""The exact certificate of linear models against scipy, random search and the closed form."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from bench.plugin import L1, L2, Goal, KeyedRandomNumbers, Linf, PerturbationSet
from plugins.attacks.deepfool import DeepFool
from plugins.certifiers.interval import Intervals
from plugins.certifiers.linear_exact import LinearExact, weight_and_bias, worst_margin
from plugins.defenses.softmax_regression import regression
from tests.fixtures.known_models import gaussian, interior, linear, run_and_judge

Array = npt.NDArray[np.float64]
SHAPE = (1, 3, 4)
CLASSES = 4
NORMS: list[Callable[[Fraction], PerturbationSet]] = [Linf, L2, L1]
DUAL = {"Linf": 1, "L2": 2, "L1": float("inf")}
HALVING = {"Linf": Fraction(1, 4), "L2": Fraction(3, 5), "L1": Fraction(1)}
"""Radii at which some of the examples of `model_and_x` are certified and some are not."""
every_norm = pytest.mark.parametrize("norm", NORMS, ids=["Linf", "L2", "L1"])
certifier = LinearExact()


def model_and_x(rows: int = 12, seed: int = 0, sharpness: float = 1.0) -> tuple[nn.Module, Tensor]:
    """A softmax regression, and images with many pixels at the edge of the box."""
    generator = torch.Generator().manual_seed(seed)
    model = regression(SHAPE, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(sharpness * torch.randn(parameter.shape, generator=generator))
    x = (1.6 * torch.rand(rows, *SHAPE, generator=generator) - 0.3).clamp(0, 1)
    return model.eval().requires_grad_(False), x


def reference(weight: Array, x: Array, ball: PerturbationSet) -> float:
    """max of weight . x' over ball and box by scipy."""
    eps, d = ball.radius, len(x)
    if ball.name == "Linf":
        bounds = list(zip(np.maximum(x - eps, 0), np.minimum(x + eps, 1), strict=True))
        return -float(linprog(-weight, bounds=bounds).fun)
    if ball.name == "L1":
        # x' = x + up - down; at most eps in all.
        bounds = [(0, 1 - pixel) for pixel in x] + [(0, pixel) for pixel in x]
        cost = np.concatenate([-weight, weight])
        answer = linprog(cost, A_ub=np.ones((1, 2 * d)), b_ub=[eps], bounds=bounds)
        return float(weight @ x - answer.fun)
    answer = minimize(
        lambda z: -weight @ z,
        x,
        jac=lambda z: -weight,
        bounds=[(0, 1)] * d,
        constraints={
            "type": "ineq",
            "fun": lambda z: eps**2 - ((z - x) ** 2).sum(),
            "jac": lambda z: -2 * (z - x),
        },
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return -float(answer.fun)


@pytest.mark.row("V01")
@every_norm
@pytest.mark.parametrize("eps", [Fraction(1, 10), Fraction(1, 2), Fraction(2)])
def test_the_worst_margin_is_the_optimum_of_scipy(
    norm: Callable[[Fraction], PerturbationSet], eps: Fraction
) -> None:
    model, x = model_and_x(rows=6)
    y = torch.arange(6) % CLASSES
    ball = norm(eps)
    weight, bias = (part.numpy() for part in weight_and_bias(model))
    for i, found in enumerate(worst_margin(model, x, y, ball)):
        label, pixels = int(y[i]), x[i].double().flatten().numpy()
        expected = max(
            reference(weight[k] - weight[label], pixels, ball) + bias[k] - bias[label]
            for k in range(CLASSES)
            if k != label
        )
        assert float(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.row("V01")
@every_norm
def test_random_search_never_breaks_a_certified_example(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    ball = norm(HALVING[norm(Fraction(0)).name])
    model, x = model_and_x(rows=64, seed=1)
    y = model(x).argmax(1)
    certified = certifier.certify(model, x, y, ball)
    gap = worst_margin(model, x, y, ball)
    assert 8 <= int(certified.sum()) <= 56
    zero = torch.zeros(64, dtype=torch.int64)
    for seed in range(300):
        draws = KeyedRandomNumbers(torch.arange(64) + 1000 * seed, zero)
        adv = ball.sample(x, draws)
        logits = model(adv)
        assert not (certified & (logits.argmax(1) != y)).any()
        own = logits.gather(1, y[:, None])[:, 0]
        rival = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        assert (rival - own <= gap + 1e-5).all()


@pytest.mark.row("V01")
@every_norm
def test_an_example_that_is_not_certified_is_broken_by_its_worst_image(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    ball = norm(HALVING[norm(Fraction(0)).name])
    model, x = model_and_x(rows=64, seed=1)
    y = model(x).argmax(1)
    certified = certifier.certify(model, x, y, ball)
    weight, _ = weight_and_bias(model)
    broken = torch.zeros(64, dtype=torch.bool)
    for rival in range(CLASSES):
        adv = ball.farthest((weight[rival] - weight[y]).float().view_as(x), x)
        broken |= ball.contains(adv, x) & (model(adv).argmax(1) != y)
    assert torch.equal(broken, ~certified)


@pytest.mark.row("V01")
@every_norm
def test_away_from_the_box_the_radius_is_the_margin_over_the_dual_norm(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    model, _ = model_and_x(sharpness=3)
    x = torch.full((1, *SHAPE), 0.5) + 0.01 * torch.arange(12).view(1, *SHAPE) / 12
    y = model(x).argmax(1)
    weight, bias = weight_and_bias(model)
    z = weight @ x.double().flatten() + bias
    order = DUAL[norm(Fraction(1)).name]
    radius = min(
        float((z[y] - z[k]) / torch.linalg.vector_norm(weight[y] - weight[k], order))
        for k in range(CLASSES)
        if k != int(y)
    )
    assert radius < 0.48, "the box would be active"
    inside, outside = Fraction(radius * 0.999), Fraction(radius * 1.001)
    assert certifier.certify(model, x, y, norm(inside)).all()
    assert not certifier.certify(model, x, y, norm(outside)).any()


@pytest.mark.row("V01", "A10")
@pytest.mark.parametrize("norm", NORMS[:2], ids=["Linf", "L2"])
def test_the_radius_is_the_distance_found_by_deepfool(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    model, x = linear(gaussian(6, 12, seed=4)), interior(64, 12)
    y = model(x).argmax(1)
    found = run_and_judge(DeepFool(), model, x, y, norm(Fraction(4)), goal=Goal("nearest"))
    assert found.broken.all()
    for i, distance in enumerate(found.distance.tolist()):
        row = model, x[i : i + 1], y[i : i + 1]
        assert not certifier.certify(*row, norm(Fraction(distance))).any()
        assert certifier.certify(*row, norm(Fraction(distance / 1.021))).all(), "its overshoot"


@pytest.mark.row("V09", "E22")
@every_norm
def test_certificates_shrink_with_the_radius_and_start_at_clean_accuracy(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    model, x = model_and_x(rows=64, seed=2)
    y = (torch.arange(64) * 7) % CLASSES
    before = model(x).argmax(1) == y
    assert torch.equal(certifier.certify(model, x, y, norm(Fraction(0))), before)
    for eps in (Fraction(1, 20), Fraction(1, 5), Fraction(1)):
        certified = certifier.certify(model, x, y, norm(eps))
        assert not (certified & ~before).any()
        before = certified


def test_a_tie_is_not_certified() -> None:
    model, x = model_and_x(rows=2)
    for parameter in model.parameters():
        parameter.zero_()
    assert not certifier.certify(model, x, torch.zeros(2).long(), Linf(Fraction(0))).any()


def test_a_margin_below_float32_rounding_is_not_certified() -> None:
    model = regression((1, 1, 1), 2)
    with torch.no_grad():
        weight, bias = model.parameters()
        weight.zero_()
        bias.copy_(torch.tensor([1.0, 1.0 - 2.0**-23]))
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1).long()
    assert not certifier.certify(model, x, y, Linf(Fraction(0))).any()


def test_the_tolerance_of_the_referee_is_covered() -> None:
    # z_1 - z_0 = 1000 (x - 0.6): an image 1e-7 inside the boundary, with eps 1/10.
    model = regression((1, 1, 1), 2)
    with torch.no_grad():
        weight, bias = model.parameters()
        weight.copy_(torch.tensor([[0.0], [1000.0]]))
        bias.copy_(torch.tensor([0.0, -600.0]))
    y = torch.zeros(1).long()
    near, far = (torch.full((1, 1, 1, 1), 0.5 - gap) for gap in (5e-7, 1e-3))
    assert not certifier.certify(model, near, y, Linf(Fraction(1, 10))).any()
    assert certifier.certify(model, far, y, Linf(Fraction(1, 10))).all()


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)), "ReLU"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 4)), "2 linear layers"),
        (nn.Sequential(nn.Flatten(), *2 * [nn.Linear(4, 4)]), "2 linear layers"),
        (nn.Sequential(nn.Flatten()), "0 linear layers"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Softmax(1)), "Softmax"),
    ],
    ids=["relu", "two-layers", "one-layer-twice", "no-layer", "softmax"],
)
def test_other_models_are_refused_with_a_sentence(model: nn.Module, word: str) -> None:
    sentence = certifier.refuses(model, Linf(Fraction(1, 10)))
    assert word in sentence
    assert sentence.endswith(".")


def test_a_subclass_of_a_linear_layer_is_refused() -> None:
    class Bent(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).abs()

    assert "Bent" in certifier.refuses(nn.Sequential(nn.Flatten(), Bent(12, 4)), L2(Fraction(1)))


def turned(module: nn.Module, taken: tuple[Tensor], answer: Tensor) -> Tensor:
    return -answer


def with_hook(place: str) -> nn.Module:
    model, _ = model_and_x()
    model.get_submodule(place).register_forward_hook(turned)
    return model


def with_hook_before() -> nn.Module:
    model, _ = model_and_x()
    model.register_forward_pre_hook(lambda module, taken: (1 - taken[0],))
    return model


def with_forward_of_its_own() -> nn.Module:
    model, _ = model_and_x()
    layer = model.get_submodule("1")
    weight, bias = layer.parameters()
    layer.forward = lambda taken: -nn.functional.linear(taken, weight, bias)
    return model


@pytest.mark.parametrize(
    "make",
    [partial(with_hook, "1"), partial(with_hook, ""), with_hook_before, with_forward_of_its_own],
    ids=["hook-of-the-layer", "hook-of-the-model", "hook-before", "forward-on-the-instance"],
)
def test_a_model_with_hooks_is_refused(
    make: Callable[[], nn.Module],
) -> None:
    for tool in (certifier, Intervals()):
        sentence = tool.refuses(make(), Linf(Fraction(1, 10)))
        assert "hook" in sentence and tool.name in sentence and sentence.endswith(".")


class Fading(nn.Sequential):
    """Linear during tracing, and with reversed logits on bright images."""

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return (
            torch.where(bright(images)[:, None], -answer, answer) if are_numbers(images) else answer
        )


def bright(images: Tensor) -> Tensor:
    return images.flatten(1).mean(1) > 0.5


def are_numbers(images: object) -> bool:
    """Whether these are numbers and not the symbols of a trace."""
    return isinstance(images, Tensor)


def test_nothing_is_certified_where_the_logits_differ_from_the_traced_network() -> None:
    model, x = model_and_x(rows=64)
    y = model(x).argmax(1)
    assert 8 < int(bright(x).sum()) < 56
    assert certifier.certify(model, x, y, Linf(Fraction(0))).all()
    found = certifier.certify(Fading(*model.children()), x, y, Linf(Fraction(0)))
    assert torch.equal(found, ~bright(x))


@pytest.mark.row("M03")
@every_norm
def test_softmax_regression_is_supported(norm: Callable[[Fraction], PerturbationSet]) -> None:
    assert certifier.refuses(model_and_x()[0], norm(Fraction(1, 10))) == ""


def test_a_layer_without_bias_is_supported() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES, bias=False)).requires_grad_(False)
    _, x = model_and_x()
    y = model(x).argmax(1)
    assert certifier.certify(model, x, y, Linf(Fraction(0))).all()
