"""Certificates of networks trained on the digits testbed: the expected order, with wide margins."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor, nn

from bench.plugin import L2, Certifier, Linf, TrainingBatch, cross_entropy
from plugins.certifiers._network_graph import Network, ReLU, propagate_boxes, read_network
from plugins.certifiers.dual_bound import DualBound, Region, dual_margins, refined_boxes
from plugins.certifiers.interval import Intervals, interval_margins, other_classes, perturbation_box
from plugins.certifiers.lipschitz_margin import LipschitzMargin
from plugins.certifiers.randomized_smoothing import certified_radius, class_counts
from plugins.defenses._losses import adversarial_loss
from plugins.defenses.randomized_smoothing import Smoothed, add_noise
from tests.fixtures.images import attacked
from tests.fixtures.protocol_dg import DigitsTestbed, pgd, recipe, testbed

__all__ = ["testbed"]
pytestmark = pytest.mark.slow
RADII = (Fraction(1, 200), Fraction(1, 100), Fraction(1, 50))


def standard(testbed: DigitsTestbed) -> nn.Module:
    return testbed.train("standard", recipe())


def adversarial(testbed: DigitsTestbed) -> nn.Module:
    return testbed.train("pgd-7", recipe(adversarial_loss, inner=pgd(7)))


def worst_logits(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """[n, K]: the lower interval bound of the label's logit and the upper ones of the others.

    c' = W c + b, r' = |W| r.
    """
    centre, reach = x.flatten(1), torch.full_like(x.flatten(1), eps)
    for layer in module.children():
        if isinstance(layer, nn.Linear):
            centre, reach = layer(centre), reach @ layer.weight.abs().T
        elif isinstance(layer, nn.ReLU):
            low, high = (centre - reach).relu(), (centre + reach).relu()
            centre, reach = (low + high) / 2, (high - low) / 2
    own = F.one_hot(y, centre.shape[1]).bool()
    return torch.where(own, centre - reach, centre + reach)


def interval_training(batch: TrainingBatch) -> Tensor:
    """0.9 of the clean loss and 0.1 of the loss of the worst logits (arXiv:1810.12715)."""
    worst = worst_logits(batch.model, batch.x, batch.y, 0.02)
    clean = cross_entropy(batch.model(batch.x), batch.y)
    return 0.9 * clean + 0.1 * cross_entropy(worst, batch.y)


def noise_training(batch: TrainingBatch) -> Tensor:
    """-log p(y | x + noise)."""
    return cross_entropy(batch.model(add_noise(batch.x, 0.25)), batch.y)


@pytest.mark.row("V04")
def test_adversarial_training_certifies_more_and_interval_training_most(
    testbed: DigitsTestbed,
) -> None:
    plain, robust = standard(testbed), adversarial(testbed)
    bounded = testbed.train("intervals", recipe(interval_training))

    def certified(module: nn.Module, eps: Fraction) -> float:
        return float(Intervals().certify(module, testbed.x, testbed.y, Linf(eps)).double().mean())

    assert testbed.clean(bounded) > 0.9
    between = Fraction(16, 1000)
    assert certified(robust, between) > certified(plain, between) + 0.08
    assert certified(bounded, RADII[2]) > certified(robust, RADII[2]) + 0.4
    assert certified(plain, RADII[2]) < 0.2 < 0.5 < certified(plain, RADII[1])


@pytest.mark.row("V03", "V04", "V05", "V09", "E22")
@pytest.mark.parametrize("robust", [False, True], ids=["plain", "robust"])
def test_every_certified_curve_falls_and_is_below_robust_accuracy(
    robust: bool, testbed: DigitsTestbed
) -> None:
    module = adversarial(testbed) if robust else standard(testbed)
    x, y = testbed.x[:200], testbed.y[:200]
    tools: list[Certifier] = [Intervals(), DualBound(), LipschitzMargin()]
    before = {tool.name: module(x).argmax(1) == y for tool in tools}
    for eps in RADII:
        robust = module(attacked(module, x, y, Linf(eps))).argmax(1) == y
        for tool in tools:
            found = tool.certify(module, x, y, Linf(eps))
            assert not (found & ~robust).any(), tool.name
            assert not (found & ~before[tool.name]).any(), tool.name
            before[tool.name] = found
    assert before["dual-bound"].double().mean() > before["intervals"].double().mean() + 0.4


@pytest.mark.row("V03")
def test_the_relaxed_optimum_is_between_the_dual_bound_and_the_attack(
    testbed: DigitsTestbed,
) -> None:
    """Intervals <= dual bound <= optimum of the relaxed program <= result of PGD."""
    module, ball = standard(testbed), Linf(Fraction(3, 100))
    x, y = testbed.x[:20], testbed.y[:20]
    network, region = read_network(module), Region(x.double(), ball)
    boxes = refined_boxes(network, region, 1.0)
    dual = dual_margins(network, boxes, region, y)
    loose = interval_margins(network, propagate_boxes(network, perturbation_box(x, ball)), y)
    adv = attacked(module, x, y, ball)
    inside = [boxes[at + 1] for at in before_rectifiers(network)]
    near = 0
    for i in range(20):
        place = int(dual[i].argmin())
        other = int(other_classes(y, 10)[i, place])
        bounds = [(box.lower[i].flatten(), box.upper[i].flatten()) for box in (boxes[0], *inside)]
        found = relaxed(module, bounds, int(y[i]), other)
        logits = module(adv[i : i + 1])[0].double()
        assert float(dual[i, place]) <= found + 1e-6
        assert found <= float(logits[y[i]] - logits[other]) + 1e-4
        near += found - float(dual[i, place]) < 0.25 * (found - float(loose[i, place]))
    assert (dual >= loose).double().mean() > 0.95
    assert near >= 15, "the dual bound closes most of the gap between intervals and the program"


def before_rectifiers(network: Network) -> list[int]:
    """The indices of the steps in front of the ReLUs."""
    return [step.inputs[0] for step in network.steps if isinstance(step.op, ReLU)]


def relaxed(
    module: nn.Module, bounds: list[tuple[Tensor, Tensor]], label: int, other: int
) -> float:
    """min z_label - z_other with each open ReLU in its triangle, by HiGHS.

    Variables are the pixels and the outputs of both hidden layers; a >= h, a >= 0 and a <= u (h -
    l) / (u - l) with h = W a_before + b.
    """
    first, second, last = (part for part in module.modules() if isinstance(part, nn.Linear))
    sizes = [first.in_features, first.out_features, second.out_features]
    rows, limits = [], []
    low = [bounds[0][0].double().numpy()]
    high = [bounds[0][1].double().numpy()]
    for layer, (lower, upper) in enumerate(bounds[1:]):
        weight = (first, second)[layer].weight.double().numpy()
        bias = (first, second)[layer].bias.double().numpy()
        under = np.minimum(lower.double().numpy(), 0)
        above = np.maximum(upper.double().numpy(), 0)
        slope = above / np.maximum(above - under, 1e-300)
        for factor, side, limit in (
            (np.ones_like(slope), -1.0, -bias),  # h - a <= 0, where the unit may be active
            (-slope, 1.0, slope * (bias - under)),  # a - d h <= -d l
        ):
            block = np.zeros((len(bias), sum(sizes)))
            start = sum(sizes[:layer])
            block[:, start : start + sizes[layer]] = factor[:, None] * weight
            own = sum(sizes[: layer + 1])
            block[:, own : own + len(bias)] = side * np.eye(len(bias))
            rows.append(block[above > 0])
            limits.append(limit[above > 0])
        low.append(0 * above)
        high.append(above)
    out = (last.weight[label] - last.weight[other]).double().numpy()
    cost = np.concatenate([np.zeros(sizes[0] + sizes[1]), out])
    solution = linprog(
        cost, np.concatenate(rows), np.concatenate(limits),
        bounds=np.stack([np.concatenate(low), np.concatenate(high)], 1),
    )  # fmt: skip
    assert solution.success
    return float(solution.fun + (last.bias[label] - last.bias[other]).double())


@pytest.mark.row("V07", "V09", "E22")
def test_training_with_noise_certifies_more_and_every_curve_falls(testbed: DigitsTestbed) -> None:
    x, y = testbed.x[:100], testbed.y[:100]
    share: dict[str, list[float]] = {}
    for name, module in (
        ("noise", testbed.train("noise-quarter", recipe(noise_training))),
        ("plain", standard(testbed)),
    ):
        hits = (
            class_counts(Smoothed(module, 0.25, 64), x, 2000).gather(1, y[:, None])[:, 0].tolist()
        )
        reach = [certified_radius(k, 2000, 0.25, 0.001) for k in hits]
        assert max(reach) < 0.6755, "a unanimous vote reaches no farther"
        share[name] = [sum(r > 0 and r >= eps for r in reach) / 100 for eps in (0, 0.1, 0.25, 0.5)]
        assert share[name] == sorted(share[name], reverse=True)
    assert share["noise"][0] > 0.85
    assert share["noise"][3] > share["plain"][3] + 0.15


@pytest.mark.row("V05", "V09", "E22")
def test_the_lipschitz_curve_is_below_robust_accuracy_in_l2(testbed: DigitsTestbed) -> None:
    module = adversarial(testbed)
    x, y = testbed.x[:200], testbed.y[:200]
    some = 0
    before = module(x).argmax(1) == y
    for eps in (Fraction(1, 100), Fraction(1, 20), Fraction(1, 10)):
        found = LipschitzMargin().certify(module, x, y, L2(eps))
        robust = module(attacked(module, x, y, L2(eps))).argmax(1) == y
        assert not (found & ~robust).any() and not (found & ~before).any()
        before, some = found, some + int(0 < int(found.sum()) < 200)
    assert some
