"""Worked examples of lectures and reports: printed matrices, curves over radii, confidences."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bench.core.errors import UnavailableError
from bench.data.datasets import load_dataset
from bench.engine.model_access import ModelAccess
from bench.registry.registry import Registry
from bench.results.defense_report import accuracy_curve
from bench.results.figures import GalleryPicture, draw_gallery
from bench.threats.norms import L2, Linf
from bench.threats.threat_model import Goal
from plugins.attacks import fast_gradient
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.pgd import PGD
from plugins.certifiers.linear_exact import worst_margin
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    last_iterate,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
)

FGSM = next(attack for attack in fast_gradient.bench_attacks() if attack.name == "fgsm")

RAW = [
    [0.217, 0.213, 0.281, 0.301, 0.250, 0.221, 0.216],
    [0.167, 0.205, 0.278, 0.308, 0.272, 0.234, 0.235],
    [0.121, 0.160, 0.212, 0.250, 0.236, 0.258, 0.219],
    [0.119, 0.099, 0.171, 0.204, 0.229, 0.179, 0.213],
    [0.144, 0.117, 0.105, 0.167, 0.173, 0.204, 0.265],
    [0.170, 0.152, 0.114, 0.203, 0.245, 0.264, 0.235],
    [0.168, 0.184, 0.186, 0.203, 0.263, 0.299, 0.288],
    [0.180, 0.170, 0.220, 0.222, 0.237, 0.269, 0.324],
]
"""The raw pixels of the slide: eight rows."""
SIGNS = [
    [1, 1, 1, 1, 1, 1, -1],
    [-1, 1, -1, -1, 1, -1, -1],
    [1, -1, -1, -1, 1, 1, -1],
    [-1, -1, -1, 1, 1, 1, 1],
    [-1, -1, -1, -1, 1, 1, -1],
    [1, 1, -1, -1, 1, -1, -1],
    [-1, -1, -1, -1, 1, 1, 1],
]
"""The signed gradient of the slide: seven rows, so one row of pixels has no printed sign."""
SLIDE_RADII = ("0.01", "0.1", "0.15", "0.5", "0.7")
REPORT_RADII = ("0.001", "0.01", "0.05", "0.1", "0.3", "0.5")
RADII = sorted({Fraction(radius) for radius in SLIDE_RADII + REPORT_RADII})


@pytest.mark.row("X20", "RP15")
@pytest.mark.parametrize("eps", [Fraction(1, 100), Fraction(9, 100)], ids=str)
def test_fgsm_moves_each_printed_pixel_by_eps_along_its_printed_sign(eps: Fraction) -> None:
    """Of the first seven rows; for one pixel, for two, and for all."""
    assert (len(RAW), len(SIGNS)) == (8, 7)
    x = torch.tensor(RAW[:7])[None, None]
    signs = torch.tensor(SIGNS, dtype=torch.float32)
    sizes = 0.5 + torch.rand(signs.shape, generator=torch.Generator().manual_seed(0))
    for kept in (1, 2, 49):
        moves = (torch.arange(49) < kept).view(7, 7) * signs
        model = binary(-(sizes * moves).flatten(), offset=10.0)  # the label is 1
        rows = rows_of(FGSM, model, x, torch.tensor([1]), Linf(eps))
        change = (last_iterate(FGSM, rows) - x)[0, 0]
        assert torch.equal(change.sign(), moves)
        assert torch.allclose(change, float(eps) * moves, atol=1e-7)


@pytest.mark.row("X15")
@pytest.mark.parametrize("eps", [Fraction(5, 1000), Fraction(1, 1000), Fraction(15, 100)], ids=str)
def test_an_image_plus_eps_times_its_perturbation_is_the_adversarial_image(eps: Fraction) -> None:
    """The three pictures of a triptych; the perturbation is a sign where no pixel is clipped."""
    x, y = digits(64)
    adv = last_iterate(FGSM, rows_of(FGSM, small_cnn(), x, y, Linf(eps)))
    direction = (adv.double() - x.double()) / float(eps)
    assert torch.equal((x.double() + float(eps) * direction).float(), adv)
    inside = (x > float(eps)) & (x < 1 - float(eps)) & (adv != x)
    assert inside.float().mean() > 0.1
    assert torch.allclose(direction[inside].abs(), torch.ones(1).double(), atol=1e-4)


@pytest.mark.row("RP14")
def test_confidence_falls_from_90_to_55_percent_without_a_change_of_label() -> None:
    """log(.9 / .1) - log(.55 / .45) = eps ||w||_1 on a linear model of two classes."""
    weight, x = gaussian(12, seed=5), interior(16, 12)
    flat = x.flatten(1).double() @ weight.double()
    eps = (math.log(9) - math.log(55 / 45)) / float(weight.double().abs().sum())
    ball = Linf(Fraction(eps))
    for i in range(16):
        model = binary(weight, math.log(9) - float(flat[i]))
        image, label = x[i : i + 1], torch.tensor([1])
        adv = last_iterate(FGSM, rows_of(FGSM, model, image, label, ball))
        before, after = (
            float(ModelAccess(model).logits(one).softmax(1)[0, 1]) for one in (image, adv)
        )
        assert before == pytest.approx(0.9, abs=1e-5)
        assert after == pytest.approx(0.55, abs=1e-5)


@pytest.mark.row("RP17")
@pytest.mark.parametrize(
    ("eps", "before", "after"),
    [(Fraction(5, 1000), 0.91, 0.99), (Fraction(1, 1000), 0.9, 0.9)],
    ids=["a two-hundredth", "a thousandth"],
)
def test_many_pixels_of_a_photograph_make_a_tiny_change_decisive(
    eps: Fraction, before: float, after: float
) -> None:
    """logit(before) + logit(after) = eps ||w||_1 for 3x224x224 pixels and weights of one size.

    The same weights move by eps ||w||_2 along a random direction: less than a hundredth.
    """
    pixels = 3 * 224 * 224
    move = math.log(before / (1 - before)) + math.log(after / (1 - after))
    weight = gaussian(pixels, seed=7).sign() * move / float(eps) / pixels
    assert float(eps) * float(weight.double().norm()) < 0.01 * move
    x = 0.4 + 0.2 * torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    at = float(x.flatten().double() @ weight.double())
    model = binary(weight, math.log(before / (1 - before)) - at)
    y = torch.tensor([1])
    adv = last_iterate(FGSM, rows_of(FGSM, model, x, y, Linf(eps)))
    shares = [float(ModelAccess(model).logits(one).softmax(1)[0, 1]) for one in (x, adv)]
    assert shares[0] == pytest.approx(before, abs=2e-3)
    assert 1 - shares[1] == pytest.approx(after, abs=2e-3)
    noise = x + float(eps) * gaussian(1, 3, 224, 224).sign()
    assert float(ModelAccess(model).logits(noise).softmax(1)[0, 1]) > before - 0.02


def photographs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Horses (1) and aeroplanes (0) of CIFAR-10: 2,000 to train on, 400 of the test half."""
    data = Registry.without_submissions().find("dataset", "cifar10").value
    try:
        images = load_dataset(data)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert images.train is not None
    found: list[Tensor] = []
    for half, count in ((images.train, 2000), (images.test, 400)):
        chosen = np.flatnonzero(np.isin(half.labels, (0, 7)))[:count]
        found += [
            torch.from_numpy(half.images[chosen].astype(np.float32) / 255),
            torch.from_numpy((half.labels[chosen] == 7).astype(np.int64)),
        ]
    return found[0], found[1], found[2], found[3]


@pytest.mark.row("RP17")
def test_a_confident_horse_becomes_a_confident_aeroplane_within_a_two_hundredth() -> None:
    """A logistic regression on photographs, at .005: the slide's pig of 91 %, airliner of 99 %."""
    x, y, test_x, test_y = photographs()
    made = LogisticRegression(C=1e4, max_iter=300).fit(x.flatten(1).numpy(), y.numpy())
    weight = torch.from_numpy(made.coef_[0]).float()
    model = binary(weight, float(made.intercept_[0]))
    eps = Fraction(5, 1000)
    clean = ModelAccess(model).logits(test_x).softmax(1)
    horses = (test_y == 1) & (clean[:, 1] > 0.91)
    assert horses.sum() > 50
    rows = rows_of(FGSM, model, test_x[horses], test_y[horses], Linf(eps))
    adv = last_iterate(FGSM, rows)
    assert (adv - test_x[horses]).abs().max() <= float(eps) + 1e-6
    planes = ModelAccess(model).logits(adv).softmax(1)[:, 0]
    assert (planes > 0.99).sum() >= 5
    noise = test_x[horses] + float(eps) * gaussian(*adv.shape).sign()
    kept = ModelAccess(model).logits(noise.clamp(0, 1)).argmax(1) == 1
    assert kept.float().mean() > 0.9


@pytest.mark.row("E01", "E19")
def test_accuracy_over_the_radii_begins_at_clean_accuracy_and_falls() -> None:
    """The curves of FGSM and PGD over the radii of two sources; noise is two standard errors."""
    x, y = digits(128)
    model = small_cnn()
    clean = float((ModelAccess(model).logits(x).argmax(1) == y).double().mean())
    curves = {}
    for attack in (FGSM, PGD(steps=20)):
        points = []
        for eps in (Fraction(0), *RADII):
            broken = run_and_judge(attack, model, x, y, Linf(eps)).broken
            points.append(1 - float(broken.double().mean()))
        curves[attack.name] = points
    for points in curves.values():
        assert points[0] == clean
        for p, q in pairwise(points):
            assert q <= p + 2 * math.sqrt(p * (1 - p) / 128)
        assert points[-1] < 0.2
    assert all(many <= one for one, many in zip(curves["fgsm"], curves["pgd"], strict=True))
    assert curves["pgd"][-1] == 0


@pytest.mark.row("RP12", "X15")
def test_the_gallery_of_fgsm_over_the_radii_of_the_slide() -> None:
    """One digit at each radius: the loss rises, and the captions tell the class and its share."""
    x, y = digits(1)
    model = small_cnn()
    pictures, losses = [], []
    for eps in (Fraction(0), *map(Fraction, SLIDE_RADII)):
        adv = last_iterate(FGSM, rows_of(FGSM, model, x, y, Linf(eps)))
        assert float((adv - x).abs().max()) == pytest.approx(float(eps), abs=1e-6)
        shares = ModelAccess(model).logits(adv).softmax(1)[0]
        caption = f"{int(shares.argmax())} ({float(shares.max()):.0%})"
        pictures.append(GalleryPicture(adv[0, 0].numpy(), caption))
        losses.append(-float(shares[y[0]].log()))
    assert losses[0] < losses[1] < losses[2] < losses[3]
    assert pictures[0].caption.startswith(f"{int(y[0])} (")
    assert not pictures[3].caption.startswith(f"{int(y[0])} (")
    heads = ["clean", *SLIDE_RADII]
    drawn = draw_gallery([pictures], heads, "FGSM on one digit").axes
    assert [axes.get_title() for axes in drawn] == heads
    assert [axes.get_xlabel() for axes in drawn] == [picture.caption for picture in pictures]
    for axes, picture in zip(drawn, pictures, strict=True):
        assert np.array_equal(np.asarray(axes.get_images()[0].get_array()), picture.pixels)


@pytest.mark.row("G05")
def test_the_nearest_distances_give_the_accuracy_at_every_radius() -> None:
    """acc(eps) = P(||r*|| > eps), against exact robustness and an attack within each radius."""
    weight, x = gaussian(6, 12, seed=4), interior(64, 12)
    model, attack = linear(weight), DeepFool()
    y = ModelAccess(model).logits(x).argmax(1)
    y[:8] = (y[:8] + 1) % 6  # misclassified without an attack: at no distance
    far = run_and_judge(attack, model, x, y, L2(Fraction(8)), goal=Goal("nearest"))
    assert far.broken.all() and (far.distance[:8] == 0).all()
    curve = accuracy_curve(far.distance.numpy(), np.arange(64) >= 8)
    assert curve.correct[0] == 56
    known = far.distance[8:].sort().values
    wide = [(a + b) / 2 for a, b in pairwise(known.tolist()) if b > 1.006 * a]
    assert len(wide) > 15
    for radius in wide:
        ball = L2(Fraction(radius))
        robust = int((worst_margin(model, x, y, ball) < 0).sum())
        at = int(curve.correct[np.searchsorted(curve.x, radius, side="right") - 1])
        assert at == robust == int((far.distance > radius).sum())
    for radius in wide[::8]:
        broken = run_and_judge(attack, model, x, y, L2(Fraction(radius))).broken
        assert torch.equal(broken, far.distance <= radius)
    median = float(known.median())
    assert curve.correct[np.searchsorted(curve.x, median)] == 56 - 28


def linear_curve(strength: float) -> tuple[float, float]:
    """Test accuracy and mean distance |f| / ||w|| of a logistic regression with an L2 penalty."""
    x, y = digits(1700)
    pixels, labels = x.flatten(1).double().numpy(), y.numpy()
    made = LogisticRegression(C=1 / strength, max_iter=2000, tol=1e-6)
    made.fit(pixels[:1200], labels[:1200])
    weight, bias = torch.from_numpy(made.coef_), torch.from_numpy(made.intercept_)
    logits = torch.from_numpy(pixels[1200:]) @ weight.T + bias
    return accuracy_and_distance(weight, logits, y[1200:])


def accuracy_and_distance(weight: Tensor, logits: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy, and the mean over the correct of min_k (z_y - z_k) / ||w_y - w_k||."""
    right = logits.argmax(1) == y
    apart = (weight[y][:, None] - weight).norm(dim=2)
    gap = logits.gather(1, y[:, None]) - logits
    nearest = torch.where(apart > 0, gap / apart, torch.inf).amin(1)
    return float(right.double().mean()), float(nearest[right].mean())


@pytest.mark.row("RP21")
def test_robustness_still_grows_where_regularisation_already_costs_accuracy() -> None:
    curve = [linear_curve(strength) for strength in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)]
    accuracies, distances = zip(*curve, strict=True)
    assert all(a < b for a, b in pairwise(distances))
    best = accuracies.index(max(accuracies))
    assert best < len(curve) - 2, "the last strengths are too large for accuracy"
    assert accuracies[-1] < accuracies[best] - 0.01
    assert distances[-1] > 1.2 * distances[best]
