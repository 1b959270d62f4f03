"""Printed patterns: terms for printing, several views, and nuisances that were not fitted to."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.shared_point import TrainingImages, fit_point
from bench.evaluation.nuisance_model import seen_through
from bench.evaluation.physical import labels_over_draws
from bench.plugin import MaskedPattern, Nuisance, cross_entropy
from plugins.attacks.printed_pattern import PrintedPattern, non_printability, total_variation
from tests.plugins.attacks.test_shared_gradient import fashion
from tests.threats.test_parametric import draws, random_images

GLASSES = MaskedPattern("glasses")
STICKERS = MaskedPattern("stickers")
VIEWS = 10
ITEMS = 6
WHOLE = torch.ones(6, 7, dtype=torch.bool)


def fitted(
    attack: PrintedPattern, ball: MaskedPattern, x: Tensor, y: Tensor, nuisance: Nuisance | None
) -> Tensor:
    """The pattern [1, C, H, W] that an attack fits to images [n, C, H, W] with labels [n]."""
    training = problem(attack, ball, x, y, nuisance)
    return fit_point(attack, training, training._model_access)


def problem(
    attack: PrintedPattern, ball: MaskedPattern, x: Tensor, y: Tensor, nuisance: Nuisance | None
) -> TrainingImages:
    """What the attack sees: images [n, C, H, W] with labels [n], behind a nuisance."""
    noise = None if nuisance is None else SeededNoise(0, "fit", x.device)
    access = ModelAccess(
        seen_through(nuisance, fashion()[0]), noise=noise, draws=nuisance.draws if nuisance else 1
    )
    return TrainingImages(access, ball, x, y, classes=10, seed=0, name=attack.name)


@cache
def items() -> list[tuple[Tensor, Tensor]]:
    """Images [1, 1, 28, 28] of Fashion-MNIST that are right, with their labels [1]."""
    model, _, (x, y) = fashion()
    right = (model(x).argmax(1) == y).nonzero()[:ITEMS, 0].tolist()
    return [(x[item : item + 1], y[item : item + 1]) for item in right]


@pytest.mark.row("P04", "P05")
def test_the_terms_are_zero_for_a_constant_and_for_printable_colours() -> None:
    printable = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.5, 0.5]])
    constant = torch.full((2, 3, 6, 7), 0.3)
    assert total_variation(constant, WHOLE).tolist() == [0, 0]
    assert (non_printability(constant, WHOLE, printable) > 0).all()
    choice = torch.randint(2, (2, 6, 7), generator=torch.Generator().manual_seed(0))
    printed = printable[choice].permute(0, 3, 1, 2)
    assert non_printability(printed, WHOLE, printable).tolist() == [0, 0]
    assert (total_variation(printed, WHOLE) > 0).all()


@pytest.mark.row("P04")
def test_the_terms_are_those_of_the_paper_within_the_mask() -> None:
    """By hand, on a row of four pixels of which the last is outside."""
    colours = torch.tensor([0.0, 0.5, 0.3, 0.9]).view(1, 1, 1, 4)
    mask = torch.tensor([[True, True, True, False]])
    assert total_variation(colours, mask).item() == pytest.approx((0.5 + 0.2) / 3)
    printable = torch.tensor([[0.0], [1.0]])
    expected = (0 + 0.5 * 0.5 + 0.3 * 0.7) / 3
    assert non_printability(colours, mask, printable).item() == pytest.approx(expected)


@pytest.mark.row("P04")
@pytest.mark.parametrize("term", ["variation", "printability", "contrast"])
def test_a_large_weight_lowers_its_own_term(term: str) -> None:
    x, y = items()[0]
    weights = {"variation": 0.0, "printability": 0.0, "contrast": 0.0}
    costs = []
    measure = PrintedPattern(**weights | {term: 1.0})  # type: ignore[arg-type]
    for weight in (0.0, 10.0):
        attack = PrintedPattern(epochs=20, **weights | {term: weight})  # type: ignore[arg-type]
        point = fitted(attack, GLASSES, x, y, None)
        costs.append(float(measure.cost(GLASSES.colours(point), GLASSES.mask(x))))
    assert costs[1] < 0.5 * costs[0], costs


@pytest.mark.row("P05")
def test_of_one_image_without_nuisance_and_terms_it_is_targeted_ascent_on_the_mask() -> None:
    model = fashion()[0]
    x, y = items()[1]
    target = int((y + 1) % 10)
    attack = PrintedPattern(epochs=10, target=target, variation=0.0, printability=0.0)
    point = STICKERS.sample(x, problem(attack, STICKERS, x, y, None).draws)
    for done in range(10):
        leaf = point.clone().requires_grad_()
        loss = -cross_entropy(model(STICKERS.apply(leaf, x)), torch.tensor([target]))
        torch.autograd.backward(loss.sum())
        assert leaf.grad is not None
        point = (point + 0.1 * (1 - done / 10) * leaf.grad.sign()).clamp(-1, 1)
    assert torch.allclose(fitted(attack, STICKERS, x, y, None), point, atol=1e-6)
    before, after = (model(one).softmax(1)[0, target] for one in (x, STICKERS.apply(point, x)))
    assert after > 10 * before


@pytest.mark.slow
@pytest.mark.row("P04")
def test_glasses_across_five_views_beat_random_colours_also_on_views_not_fitted_to() -> None:
    """Measured on 30 items: 145 of 150 views, and of other views; random colours 54."""
    model = fashion()[0]
    moves = Nuisance(shift=1.0, degrees=10.0)
    fooled, others, random = 0, 0, 0.0
    for x, y in items():
        views = moves.seen(x.expand(VIEWS, -1, -1, -1), draws(VIEWS))
        pattern = fitted(PrintedPattern(epochs=30), GLASSES, views[:5], y.expand(5), None)
        wrong = model(GLASSES.apply(pattern.expand_as(views), views)).argmax(1) != y
        fooled, others = fooled + int(wrong[:5].sum()), others + int(wrong[5:].sum())
        colours = 2 * random_images((1, 28, 28), 20) - 1
        for one in colours:
            image = GLASSES.apply(one.expand_as(views), views)
            random += int((model(image).argmax(1) != y)[:5].sum()) / len(colours)
    assert fooled > 0.8 * 5 * ITEMS and others > 0.8 * 5 * ITEMS, (fooled, others)
    assert fooled > 1.5 * random, (fooled, random)


@pytest.mark.slow
@pytest.mark.row("P05")
def test_a_sticker_fitted_over_draws_reaches_its_target_on_more_fresh_draws() -> None:
    """Share of 100 draws; measured on 30 items: glasses .39 with EOT, .25 without."""
    moves = Nuisance(shift=1.5, smallest=0.9, largest=1.1, degrees=22.5, draws=8)
    shares = []
    for x, y in items():
        target = int((y + 1) % 10)
        attack = PrintedPattern(epochs=40, target=target)
        found = [fitted(attack, GLASSES, x, y, known) for known in (moves, None)]
        images = torch.cat([GLASSES.apply(point, x) for point in found])
        labels = labels_over_draws(fashion()[0], images, moves)
        shares.append((labels == target).double().mean(0))
    eot, without = torch.stack(shares).mean(0).tolist()
    assert eot > 1.2 * without, (eot, without)
