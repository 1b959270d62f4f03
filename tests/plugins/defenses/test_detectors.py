"""Detectors: thresholds, codes and dimensions with known values, and joint attacks."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.outcomes import Outcomes, Verdict
from bench.core.statistics import roc
from bench.data import datasets
from bench.data.image_rows import to_float
from bench.engine.problem import attack_once
from bench.engine.runner import run_attack
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.plugin import Attack, Dataset
from bench.referee.referee import judge
from bench.registry.registry import Registry
from bench.threats.norms import Linf
from bench.threats.threat_model import ThreatModel
from bench.training.tasks import build_trained
from plugins.attacks.joint_pgd import JointPGD
from plugins.defenses._detector import (
    RATE,
    Detector,
    calibration_split,
    layer_outputs,
    logistic_regression,
    score_threshold,
)
from plugins.defenses.detector_binary import BinaryDetector
from plugins.defenses.detector_lid import BATCH, LIDDetector, lid
from plugins.defenses.safetynet import SVM_IMAGES, SafetyNet, late_units

BOARD = ThreatModel("here", "digits", Linf(Fraction(51, 255)))
EPS = BOARD.ball.eps
UNSEEN = Fraction(6, 100)
NAMES = ("detector-binary", "detector-lid", "safetynet")


class LayerOutputs(NamedTuple):
    """Layer outputs of the base network on images, and on images attacked against it alone."""

    base: nn.Sequential
    fitted: list[Tensor]
    attacked: list[Tensor]
    clean: list[Tensor]
    known: list[Tensor]
    weak: list[Tensor]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="module")
def layers(registry: Registry) -> LayerOutputs:
    """700 training and 200 test images of digits."""
    digits: Dataset = registry.datasets["digits"].value
    base = cast(nn.Sequential, build_trained(registry, "undefended", digits).build())
    images = datasets.load_dataset(digits)
    assert images.train is not None
    pgd: Attack = registry.find("attack", "pgd").value

    def attacked(x: Tensor, y: Tensor, eps: Fraction) -> list[Tensor]:
        adv = attack_once(pgd, base, x, y, Linf(eps), seed=0, example=torch.arange(len(x)))
        return layer_outputs(base, adv)

    x, y = (
        to_float(torch.tensor(images.train.images[:700])),
        torch.tensor(images.train.labels[:700]),
    )
    test, truth = to_float(torch.tensor(images.test.images[:200])), images.test.labels[:200]
    y2 = torch.tensor(truth)
    with torch.no_grad():
        clean = layer_outputs(base, x), layer_outputs(base, test)
    return LayerOutputs(
        base, clean[0], attacked(x, y, EPS), clean[1], attacked(test, y2, EPS),
        attacked(test, y2, UNSEEN),
    )  # fmt: skip


def fitted_detector(detector: Detector, layers: LayerOutputs) -> Detector:
    with torch.no_grad():
        detector.fit(layers.fitted, layers.attacked)
    return detector


@pytest.fixture(scope="module")
def detectors(layers: LayerOutputs) -> dict[str, Detector]:
    sizes = [output.shape[1] for output in layers.clean]
    made: dict[str, Detector] = {
        "detector-binary": BinaryDetector(sizes[-2]),
        "detector-lid": LIDDetector(sizes),
        "safetynet": SafetyNet(late_units(layers.clean).shape[1]),
    }
    return {name: fitted_detector(detector, layers) for name, detector in made.items()}


def auc(detector: Detector, clean: list[Tensor], attacked: list[Tensor]) -> float:
    with torch.no_grad():
        one, other = (detector(outputs).double().numpy() for outputs in (clean, attacked))
    return roc(one, other).area


# The threshold.


@pytest.mark.row("F12")
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5, 0.99])
def test_a_threshold_rejects_exactly_the_declared_share(rate: float) -> None:
    for count in (101, 200, 997):
        scores = torch.randn(count, generator=torch.Generator().manual_seed(count))
        above = scores - score_threshold(scores, rate) > 0
        assert int(above.sum()) == int(rate * count)
        assert scores[above].min() > scores[~above].max()


def test_a_threshold_with_all_scores_on_one_side_is_refused() -> None:
    for rate in (0.001, 1.0):
        with pytest.raises(ValueError, match="a threshold needs at least one score on each side"):
            score_threshold(torch.arange(10.0), rate)


HELD_BACK: dict[str, Callable[[int], Tensor]] = {
    "detector-binary": lambda n: calibration_split(n)[1],
    "detector-lid": lambda n: torch.cat(
        [torch.zeros(BATCH).bool(), calibration_split(n - BATCH)[1]]
    ),
    "safetynet": lambda n: torch.arange(n) >= SVM_IMAGES,
}
"""Which training images each detector sets its threshold on."""


@pytest.mark.row("F10", "F11", "F12")
@pytest.mark.parametrize("name", NAMES)
def test_a_detector_rejects_the_declared_share_of_the_images_it_is_calibrated_on(
    name: str, detectors: dict[str, Detector], layers: LayerOutputs
) -> None:
    rows = HELD_BACK[name](len(layers.fitted[0]))
    with torch.no_grad():
        scores = detectors[name]([output[rows] for output in layers.fitted])
    assert int((scores > 0).sum()) == int(RATE * int(rows.sum())) > 0


# Scores.


@pytest.mark.row("F12")
def test_the_regression_finds_the_optimum() -> None:
    """The gradient of its loss is zero there, for features of any scale."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(300, 3, generator=generator) * torch.tensor([1.0, 100, 0.01])
    attacked = clean.flip(0) + torch.tensor([1.0, 0, 0.02])
    weight, bias = logistic_regression(clean, attacked)
    x = torch.cat([clean, attacked]).double()
    p = (x @ weight.double() + bias.double()).sigmoid()
    error = p - torch.cat([torch.zeros(300), torch.ones(300)])
    scale = x.std(0)
    slope = (x / scale).T @ error + weight.double() * scale
    centred = slope - (x / scale).mean(0) * error.sum()
    assert abs(float(error.sum())) < 1e-3 and float(centred.abs().max()) < 1e-2
    assert weight[0] > 0 and weight[2] > 0


@pytest.mark.row("F11")
@pytest.mark.parametrize(("dimension", "expected"), [(2, 2.25), (5, 5.47), (10, 9.94)])
def test_the_local_dimension_of_a_gaussian_is_found_at_every_scale(
    dimension: int, expected: float
) -> None:
    """2,000 draws, k = 20; in a space of 50 dimensions the estimate is that of the subspace."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, dimension, generator=generator)
    basis = torch.linalg.qr(torch.randn(50, dimension, generator=generator)).Q
    points, reference = draws[:2000], draws[2000:]
    found = lid(points, reference, 20)
    assert float(found.mean()) == pytest.approx(expected, rel=0.04)
    assert torch.allclose(lid(8 * points, 8 * reference, 20), found, rtol=1e-3)
    inside = lid(points @ basis.T, reference @ basis.T, 20)
    assert float(inside.mean()) == pytest.approx(float(found.mean()), rel=1e-3)


@pytest.mark.row("F11")
def test_the_local_dimension_is_the_formula_of_the_paper() -> None:
    reference = torch.tensor([[1.0], [2.0], [-4.0], [9.0]])
    distances = torch.tensor([1.0, 2, 4])
    expected = -1 / (distances / 4).log().mean()
    assert lid(torch.zeros(1, 1), reference, 3).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.row("F10")
def test_code_and_score_are_equal_to_the_bit_while_no_unit_crosses_its_mean(
    detectors: dict[str, Detector], layers: LayerOutputs
) -> None:
    net = detectors["safetynet"]
    assert isinstance(net, SafetyNet)
    units = late_units(layers.clean)
    distance = (units - net.mean).abs()
    noise = torch.rand(units.shape, generator=torch.Generator().manual_seed(0))
    moved = units + 0.9 * distance * (2 * noise - 1)
    late_layers = [torch.zeros(0)] * 3 + [moved[:, :-128], torch.zeros(0), moved[:, -128:]]
    late_layers.append(torch.zeros(0))
    assert (moved != units).any() and torch.equal(net.code(late_layers), net.code(layers.clean))
    assert torch.equal(net(late_layers), net(layers.clean))


@pytest.mark.row("F10")
def test_hard_bits_have_no_gradient_and_smooth_bits_have_one(
    detectors: dict[str, Detector], layers: LayerOutputs
) -> None:
    net = detectors["safetynet"]
    assert isinstance(net, SafetyNet)
    smooth = SafetyNet(len(net.mean), smooth=True)
    smooth.load_state_dict(net.state_dict())
    for module, slopes in ((net, False), (smooth, True)):
        leaf = layers.clean[3].clone().requires_grad_()
        score = module([*layers.clean[:3], leaf, *layers.clean[4:]])
        assert score.requires_grad is slopes
        if slopes:
            (slope,) = torch.autograd.grad(score.sum(), leaf)
            assert (slope.flatten(1).abs().sum(1) > 0).double().mean() > 0.9
    with torch.no_grad():
        both = np.corrcoef(net(layers.known).numpy(), smooth(layers.known).numpy())
    assert both[0, 1] > 0.8


@pytest.mark.row("F10")
def test_an_svm_of_shuffled_labels_detects_nothing(layers: LayerOutputs) -> None:
    """On the mean of eight shuffles; with the true labels it detects almost all."""
    net = SafetyNet(late_units(layers.clean).shape[1])
    net.mean.copy_(late_units(layers.fitted).mean(0))
    codes = torch.cat([net.code(part)[:SVM_IMAGES] for part in (layers.fitted, layers.attacked)])
    found = []
    for seed in range(8):
        mixed = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))]
        net.fit_svm(mixed[:SVM_IMAGES], mixed[SVM_IMAGES:])
        found.append(auc(net, layers.clean, layers.known))
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)
    net.fit_svm(codes[:SVM_IMAGES], codes[SVM_IMAGES:])
    assert auc(net, layers.clean, layers.known) > 0.95


@pytest.mark.row("F10", "F11", "F12")
@pytest.mark.parametrize(
    ("name", "known", "decrease"),
    [("detector-binary", 0.85, 0.15), ("detector-lid", 0.7, 0.1), ("safetynet", 0.95, 0.05)],
)
def test_a_detector_detects_its_training_attack_and_smaller_perturbations_less(
    name: str,
    known: float,
    decrease: float,
    detectors: dict[str, Detector],
    layers: LayerOutputs,
) -> None:
    """PGD on the base network alone: radius .2 as in training, and .06."""
    strong = auc(detectors[name], layers.clean, layers.known)
    weak = auc(detectors[name], layers.clean, layers.weak)
    assert strong > known and strong - weak > decrease


# The registered defenses.


def built_defense(registry: Registry, name: str, n: int = 64) -> BuiltDefense:
    digits: Dataset = registry.datasets["digits"].value
    builder, settings = build_trained(registry, name, digits), RunSettings(torch.device("cpu"), 64)
    return BuiltDefense(builder, datasets.first_examples(digits, n), settings, 0)


def outcomes(built: BuiltDefense, attack: Attack) -> Outcomes:
    referee = built.referee(BOARD, attack)
    attempts = run_attack(built.cell_spec(BOARD, attack, None), referee.confirm)
    chunks = judge(attempts, referee, built.clean_answers(BOARD))
    return Outcomes.concatenate([chunk.outcomes for chunk in chunks])


@pytest.mark.row("F10", "F11", "F12")
@pytest.mark.parametrize("name", [*NAMES[:2], pytest.param(NAMES[2], marks=pytest.mark.slow)])
def test_a_joint_attack_breaks_a_detector_that_stops_attacks_on_the_base_network(
    name: str, registry: Registry
) -> None:
    here = built_defense(registry, name)
    clean = here.clean.votes[0] == here.y
    pgd: Attack = registry.find("attack", "pgd").value
    oblivious, joint = (outcomes(here, attack) for attack in (pgd, JointPGD(restarts=1)))
    left = [int(clean[found.verdict != Verdict.BROKEN].sum()) for found in (oblivious, joint)]
    assert clean.double().mean() > 0.8
    assert left[1] < left[0]
    assert left[1] <= {"detector-binary": 10, "detector-lid": 6, "safetynet": 30}[name]
    # Broken images were accepted, and rejected images are not broken, under both attacks.
    for found in (oblivious, joint):
        assert (found.rejection[found.verdict == Verdict.BROKEN] <= 0).all()
        assert (found.verdict[found.rejection > 0] == Verdict.ROBUST).all()
        assert np.isfinite(found.rejection).all()


def test_the_output_is_the_base_network_s_logits_and_a_score(registry: Registry) -> None:
    here = built_defense(registry, "detector-binary")
    base = build_trained(registry, "undefended", here.dataset).build()
    assert torch.equal(here.module(here.x)[:, :10], base(here.x))
    assert torch.equal(here.classifier(here.x), base(here.x))
    assert here.clean.logits.shape == (64, 10) and here.clean.rejection.isfinite().all()
