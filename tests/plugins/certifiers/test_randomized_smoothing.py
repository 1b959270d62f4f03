"""Smoothing and PixelDP against the closed form of a linear model, and their limits."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from statistics import NormalDist

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from bench.core.cards import kind_fields
from bench.plugin import L1, L2, Certifier, Linf
from bench.registry.registry import Registry
from plugins.certifiers.pixeldp import PixelDP, certified_lead, lead_after_change, privacy_epsilon
from plugins.certifiers.randomized_smoothing import (
    Smoothing,
    certified_radius,
    class_counts,
    lower_limit,
    required_probability,
)
from plugins.defenses.randomized_smoothing import MeanNoisyProbability, Smoothed

SIGMA = 0.25
SIDE = 4
NORMAL = NormalDist()


def half(weight: Tensor, threshold: float) -> nn.Module:
    """Two classes, separated by <weight, image> and a threshold."""
    layer = nn.Linear(weight.numel(), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weight.flatten(), weight.flatten()]))
        layer.bias.copy_(torch.tensor([threshold, -threshold]))
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


def vote_and_images(rows: int, votes: int = 64) -> tuple[Smoothed, Tensor, Tensor, Tensor]:
    """A vote over a linear model, images on both sides, their labels and their true radii.

    Smoothing a half space gives the same half space: |<w, x> - t| / ||w||.
    """
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(SIDE, SIDE, generator=generator)
    x = torch.rand(rows, 1, SIDE, SIDE, generator=generator)
    values = (x.double() * weight).flatten(1).sum(1)
    threshold = float(values.median())
    margin = (values - threshold) / torch.linalg.vector_norm(weight.double())
    module = Smoothed(half(weight, threshold), SIGMA, votes).eval()
    return module, x, (margin > 0).long(), margin.abs()


@pytest.mark.row("V07")
@pytest.mark.parametrize(("alpha", "allowed"), [(1e-6, 0), (1e-3, 5)])
def test_smoothing_is_below_the_true_radius_of_a_linear_model(alpha: float, allowed: int) -> None:
    module, x, y, true = vote_and_images(1000)
    hits = class_counts(module, x, 500).gather(1, y[:, None])[:, 0]
    found = [certified_radius(k, 500, SIGMA, alpha) for k in hits.tolist()]
    beyond = int((torch.tensor(found).double() > true).sum())
    assert beyond <= allowed
    assert (torch.tensor(found) > 0).double().mean() > 0.5
    near = torch.tensor(found).double() > 0.5 * true
    assert near[(true > 0.15) & (true < 0.4)].double().mean() > 0.8


@pytest.mark.row("V07")
def test_the_share_of_wrong_bounds_is_close_to_the_stated_error() -> None:
    """At alpha = 0.05 about one bound in twenty is wrong; a bound that never errs wastes draws."""
    module, x, y, true = vote_and_images(1000)
    hits = class_counts(module, x, 500).gather(1, y[:, None])[:, 0].tolist()
    p = [NORMAL.cdf(r / SIGMA) for r in true.tolist()]
    wrong = sum(lower_limit(k, 500, 0.05) > share for k, share in zip(hits, p, strict=True))
    assert 20 <= wrong <= 75


@pytest.mark.row("V07")
def test_the_largest_radius_is_that_of_a_unanimous_vote() -> None:
    assert certified_radius(2000, 2000, 0.25, 0.001) == pytest.approx(
        0.25 * NORMAL.inv_cdf(0.001 ** (1 / 2000))
    )
    assert certified_radius(2000, 2000, 0.25, 0.001) == pytest.approx(0.675, abs=5e-4)


@pytest.mark.row("V07")
def test_it_abstains_where_the_label_has_no_certain_majority() -> None:
    assert (
        certified_radius(1000, 2000, SIGMA, 0.001)
        == certified_radius(1050, 2000, SIGMA, 0.001)
        == 0
    )
    assert certified_radius(1100, 2000, SIGMA, 0.001) > 0
    assert certified_radius(0, 2000, SIGMA, 0.001) == 0


@pytest.mark.parametrize("votes", [1, 2, 63, 64])
def test_a_majority_is_missed_with_probability_alpha_at_the_limit(votes: int) -> None:
    share = required_probability(votes, 0.001)
    assert float(binom.cdf(votes // 2, votes, share)) == pytest.approx(0.001, rel=1e-6)


@pytest.mark.row("V07")
def test_the_vote_is_right_at_the_worst_image_of_a_certified_example() -> None:
    module, x, y, _ = vote_and_images(300)
    ball = L2(Fraction(1, 4))
    certified = Smoothing().certify(module, x, y, ball)
    assert 30 < int(certified.sum()) < 270
    weight = module.classifier.get_parameter("1.weight")[1].view(1, 1, SIDE, SIDE)
    away = ball.radius * weight / torch.linalg.vector_norm(weight)
    torch.manual_seed(0)
    worst = torch.where(y[:, None, None, None] == 1, x - away, x + away)
    lost = sum(int((module(worst).argmax(1) != y)[certified].sum()) for _ in range(20))
    assert lost <= 3, "each vote of a certified example is lost with probability 0.001 at most"
    assert (module(worst).argmax(1) != y)[~certified].any()


def test_the_logits_count_the_votes() -> None:
    module, x, _, _ = vote_and_images(50)
    torch.manual_seed(0)
    votes = module(x).exp() - 0.5
    assert torch.allclose(votes, votes.round(), atol=1e-4)
    assert torch.equal(votes.sum(1).round(), torch.full((50,), 64.0))
    torch.manual_seed(0)
    again = torch.stack([module.vote(x) for _ in range(64)]).sum(0)
    assert torch.allclose(votes, again, atol=1e-4)


def test_few_votes_certify_less_than_many() -> None:
    few, x, y, _ = vote_and_images(300, votes=8)
    many = Smoothed(few.classifier, SIGMA, 512)
    ball = L2(Fraction(1, 10))
    by_few, by_many = (Smoothing(500).certify(module, x, y, ball) for module in (few, many))
    assert not (by_few & ~by_many).any() and int(by_many.sum()) > int(by_few.sum()) > 0


@pytest.mark.row("V06")
def test_a_lead_is_kept_exactly_on_the_condition_of_the_paper() -> None:
    found = []
    for own, other, epsilon, delta in torch.rand(500, 4, dtype=torch.float64).tolist():
        due = math.exp(2 * epsilon) * other + (1 + math.exp(epsilon)) * delta / 10
        found.append(own > due)
        assert (lead_after_change(own, other, epsilon, delta / 10) > 0) == found[-1]
    assert 50 < sum(found) < 450


@pytest.mark.row("V06")
def test_no_lead_where_the_limits_overlap_or_epsilon_exceeds_one() -> None:
    assert certified_lead([520, 480, 0], 0, 0.0, 0.0, 0.001) < 0
    assert certified_lead([600, 400, 0], 0, 0.0, 0.0, 0.001) > 0
    assert certified_lead([1000, 0, 0], 0, 1.01, 0.05, 0.001) == -math.inf


@pytest.mark.row("V06")
def test_the_certificate_grows_with_the_draws() -> None:
    leads = [certified_lead([9 * n, n, 0], 0, 0.2, 0.05, 0.001) for n in (5, 50, 500, 5000)]
    assert leads == sorted(leads) and leads[-1] > leads[0] + 0.1


@pytest.mark.row("V06")
def test_pixeldp_certifies_no_more_than_smoothing_or_the_true_radius() -> None:
    module, x, y, true = vote_and_images(300, votes=512)
    hits = class_counts(module, x, 2000)
    own = hits.gather(1, y[:, None])[:, 0].tolist()
    far = torch.tensor([certified_radius(k, 2000, SIGMA, 0.001) for k in own]).double()
    some = 0
    for eps in (Fraction(1, 100), Fraction(1, 40), Fraction(1, 20), Fraction(2, 25)):
        certified = PixelDP().certify(module, x, y, L2(eps))
        assert (far[certified] >= float(eps)).all() and (true[certified] >= float(eps)).all()
        some += int(certified.sum())
    assert some > 30


@pytest.mark.row("V06")
def test_the_noise_is_the_calibration_of_the_paper() -> None:
    """sigma = L sqrt(2 ln(1.25 / delta)) / epsilon at sensitivity 1; L = 0.1, epsilon = 1."""
    sigma = 0.1 * math.sqrt(2 * math.log(1.25 / 0.05))
    assert privacy_epsilon(0.1, sigma, 0.05) == pytest.approx(1)
    assert "needs 1 or less" in PixelDP().refuses(vote_and_images(4)[0], L2(Fraction(1)))


STATISTICAL: list[Certifier] = [Smoothing(500), PixelDP(500)]
every_certifier = pytest.mark.parametrize("certifier", STATISTICAL, ids=lambda tool: tool.name)


@every_certifier
def test_certificates_are_reproducible_and_do_not_depend_on_the_batch(certifier: Certifier) -> None:
    module, x, y, _ = vote_and_images(100, votes=512)
    ball = L2(Fraction(1, 20))
    torch.manual_seed(1)
    whole = certifier.certify(module, x, y, ball)
    order = torch.randperm(100)[:37]
    before = torch.get_rng_state()
    again = certifier.certify(module, x[order], y[order], ball)
    assert torch.equal(torch.get_rng_state(), before)
    assert 5 < int(whole.sum()) < 100 and torch.equal(again, whole[order])


@pytest.mark.row("V09", "E22")
@every_certifier
def test_certificates_shrink_with_the_radius_and_cover_no_wrong_label(certifier: Certifier) -> None:
    module, x, y, _ = vote_and_images(100, votes=512)
    before = torch.ones(100, dtype=torch.bool)
    for eps in (Fraction(1, 100), Fraction(1, 20), Fraction(2, 25)):
        found = certifier.certify(module, x, y, L2(eps))
        assert not (found & ~before).any()
        assert not certifier.certify(module, x, 1 - y, L2(eps)).any()
        before = found


@every_certifier
def test_other_models_and_norms_are_refused_with_a_sentence(certifier: Certifier) -> None:
    module = vote_and_images(4)[0]
    tenth = Fraction(1, 20)
    assert certifier.refuses(module, L2(tenth)) == ""
    for ball in (Linf(tenth), L1(tenth)):
        assert ball.name in certifier.refuses(module, ball)
    other = MeanNoisyProbability(module.classifier, SIGMA, 2)
    for stranger in (module.classifier, other):
        assert "is no vote" in certifier.refuses(stranger, L2(tenth))


def test_the_bpda_approximation_has_a_gradient_and_votes_have_none() -> None:
    module, x, y, _ = vote_and_images(20)
    leaf = x.clone().requires_grad_()
    assert not module(leaf).requires_grad
    torch.manual_seed(0)
    soft = MeanNoisyProbability(module.classifier, SIGMA, 400)
    logits = soft(leaf)
    (slope,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), leaf)
    assert (slope != 0).any(1).all()
    assert torch.allclose(logits.exp().sum(1), torch.full((20,), 400.0), rtol=1e-4)


def test_the_cards_of_statistical_certifiers_state_their_error() -> None:
    registry = Registry.load()
    stated = {card.name: kind_fields(card) for card in registry.cards() if card.kind == "certifier"}
    assert stated["smoothing"] == stated["pixeldp"] == {"exact": False, "error": 0.001}
    assert stated["linear-exact"] == {"exact": True, "error": 0.0}
    assert stated["intervals"] == {"exact": False, "error": 0.0}


class Recorder(nn.Module):
    """Keeps the first pixel of every noisy image that it receives."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.pixels: list[Tensor] = []

    def forward(self, copies: Tensor) -> Tensor:
        self.pixels.append(copies[:, 0, 0, 0].clone())
        answer: Tensor = self.classifier(copies)
        return answer


class Memorising(nn.Module):
    """Predicts class 1 for images whose first pixel it has stored, and class 0 for all others."""

    pixels: Tensor

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.register_buffer("pixels", pixels)

    def forward(self, copies: Tensor) -> Tensor:
        known = torch.isin(copies[:, 0, 0, 0], self.pixels)
        return torch.nn.functional.one_hot(known.long(), 2).float()


def recorded_pixels(classifier: nn.Module, x: Tensor, draws: int = 500) -> Tensor:
    """The first pixels of the noisy images of a vote of this classifier."""
    recorder = Recorder(classifier)
    class_counts(Smoothed(recorder, SIGMA, 64).eval(), x, draws)
    return torch.cat(recorder.pixels)


def shared(first: Tensor, second: Tensor) -> float:
    """The share of values that occur among the others; some do by chance."""
    return float(torch.isin(first, second).double().mean())


@every_certifier
def test_memorised_draws_certify_nothing(certifier: Certifier) -> None:
    module, x, _, _ = vote_and_images(20)
    crib = Smoothed(Memorising(recorded_pixels(module.classifier, x)), SIGMA, 512).eval()
    y = torch.ones(20).long()
    torch.manual_seed(1)
    assert not (crib(x).argmax(1) == y).any(), "fresh noise is not in the crib"
    assert not certifier.certify(crib, x, y, L2(Fraction(1, 100))).any()


def test_the_noise_depends_on_every_parameter_and_buffer() -> None:
    module, x, _, _ = vote_and_images(4)
    first = recorded_pixels(module.classifier, x)
    assert torch.equal(recorded_pixels(copy.deepcopy(module.classifier), x), first)
    for name, value in module.classifier.state_dict().items():
        other = copy.deepcopy(module.classifier)
        moved = other.state_dict()[name].flatten()[-1:]
        moved += 2.0**-10
        assert shared(recorded_pixels(other, x), first) < 0.01, name
        assert not torch.equal(value, other.state_dict()[name])


def test_the_noise_depends_on_buffers_that_are_not_saved() -> None:
    module, x, _, _ = vote_and_images(4)
    module.classifier.register_buffer("unsaved", torch.zeros(1), persistent=False)
    first = recorded_pixels(module.classifier, x)
    module.classifier.get_buffer("unsaved").fill_(1)
    assert shared(recorded_pixels(module.classifier, x), first) < 0.01
