"""Training losses against their formulas, bit-depth rounding, recipes at neutral weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.problem import attack_once
from bench.plugin import (
    Dataset,
    Defense,
    InnerAttack,
    Linf,
    Recipe,
    Split,
    TrainingBatch,
    cross_entropy,
    straight_through,
)
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.training.loop import train_weights
from bench.training.recipes import resolve_inner_attack
from plugins.defenses import fgsm_training, pgd_training, softmax_regression
from plugins.defenses._cnn import cnn
from plugins.defenses._losses import adversarial_loss, clean_loss
from plugins.defenses._preprocessing import PreprocessedModel
from plugins.defenses.argmax_only import ArgmaxOnly
from plugins.defenses.bit_depth import BITS, quantize, three_bits
from plugins.defenses.fgsm_training import mixture_loss
from plugins.defenses.softmax_regression import regression
from plugins.defenses.trades import KLPGD, kl_divergence, trades_loss
from plugins.defenses.weight_decay import weight_decay_loss

SHAPE = (1, 8, 8)
DIGITS = [
    "argmax-only", "bit-depth", "fgsm-mixture", "fgsm-training", "linear", "pgd-training",
    "trades", "undefended", "weight-decay",
]  # fmt: skip
PUBLISHED = ["convex-fashion", "convex-mnist", "resnet2b-cifar10"]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load(tmp_path / "no-submissions")


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return cnn(SHAPE, 10)


def recipe_loss(plugin: ModuleType) -> Callable[[TrainingBatch], Tensor]:
    """The training loss of the first defense that a plugin registers."""
    loss: Callable[[TrainingBatch], Tensor] = next(plugin.bench_defenses()).recipe.loss
    return loss


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and other images inside the ball."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 17, (32, *SHAPE), generator=generator).float() / 16
    y = torch.randint(0, 10, (32,), generator=generator)
    noise = 0.4 * torch.rand(x.shape, generator=generator) - 0.2
    return x, y, (x + noise).clamp(0, 1)


def training_batch() -> TrainingBatch:
    x, y, adv = batch()
    return TrainingBatch(network(), x, y, adv)


def gradients(loss: Callable[[TrainingBatch], Tensor]) -> list[Tensor]:
    """The gradient of the mean loss, for each parameter of the same network."""
    given = training_batch()
    return list(torch.autograd.grad(loss(given).mean(), list(given.model.parameters())))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


def near(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(p, q, rtol=1e-4, atol=1e-7) for p, q in zip(a, b, strict=True))


@pytest.mark.row("D03", "D05", "D13")
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(partial(mixture_loss, alpha=1.0), marks=pytest.mark.row("D05")),
        pytest.param(partial(trades_loss, beta=0.0), marks=pytest.mark.row("D13")),
        recipe_loss(softmax_regression),
    ],
    ids=["mixture-alpha-1", "trades-beta-0", "linear"],
)
def test_at_its_neutral_weight_a_loss_is_the_clean_one_to_the_bit(
    loss: Callable[[TrainingBatch], Tensor],
) -> None:
    assert torch.equal(loss(training_batch()), clean_loss(training_batch()))
    assert same(gradients(loss), gradients(clean_loss))


@pytest.mark.row("D01")
def test_the_clean_loss_is_minus_log_p() -> None:
    given = training_batch()
    log_p = given.model(given.x).log_softmax(1)
    expected = -log_p[torch.arange(32), given.y]
    assert torch.allclose(clean_loss(given), expected, atol=1e-6)


@pytest.mark.row("D07", "D08")
@pytest.mark.parametrize(
    "loss", [recipe_loss(pgd_training), recipe_loss(fgsm_training)], ids=["pgd", "fgsm"]
)
def test_adversarial_training_uses_the_adversarial_images_only(
    loss: Callable[[TrainingBatch], Tensor],
) -> None:
    given = training_batch()
    swapped = given._replace(x=given.adv)
    assert torch.equal(loss(given), clean_loss(swapped))
    assert torch.equal(loss(given), loss(given._replace(x=torch.zeros_like(given.x))))


@pytest.mark.row("D05")
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5])
def test_the_gradient_of_the_mixture_is_the_weighted_sum(alpha: float) -> None:
    clean, moved = gradients(clean_loss), gradients(adversarial_loss)
    expected = [alpha * a + (1 - alpha) * b for a, b in zip(clean, moved, strict=True)]
    assert near(gradients(partial(mixture_loss, alpha=alpha)), expected)


@pytest.mark.row("D03")
def test_weight_decay_adds_the_weights_to_the_gradient() -> None:
    weights = [weight.detach() for weight in network().parameters()]
    expected = [g + 0.3 * w for g, w in zip(gradients(clean_loss), weights, strict=True)]
    assert near(gradients(partial(weight_decay_loss, strength=0.3)), expected)
    assert near(gradients(partial(weight_decay_loss, strength=0.0)), gradients(clean_loss))


@pytest.mark.row("D13")
def test_the_divergence_is_nonnegative_and_zero_for_equal_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    p = 10 * torch.randn(500, 10, generator=generator)
    q = 10 * torch.randn(500, 10, generator=generator)
    assert (kl_divergence(p, q) >= 0).all()
    assert (kl_divergence(p, p) == 0).all()
    assert kl_divergence(p, p + 1e-3 * q).min() >= -1e-6
    assert torch.allclose(kl_divergence(p, p + 5), torch.zeros(500), atol=1e-5), "logits may shift"


@pytest.mark.row("D13")
def test_the_divergence_is_taken_from_clean_to_adversarial() -> None:
    p, q = torch.tensor([[0.0, 1.0, -2.0]]), torch.tensor([[1.0, 0.0, 0.5]])
    a, b = p.softmax(1), q.softmax(1)
    assert torch.allclose(kl_divergence(p, q), (a * (a / b).log()).sum(1))
    assert not torch.allclose(kl_divergence(p, q), kl_divergence(q, p), rtol=1e-2)


@pytest.mark.row("D13")
def test_trades_is_the_paper_s_sum_with_gradients_through_both_terms() -> None:
    def paper(given: TrainingBatch) -> Tensor:
        clean, moved = given.model(given.x), given.model(given.adv)
        apart = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
        return F.cross_entropy(clean, given.y) + 3 * apart

    loss = partial(trades_loss, beta=3.0)
    assert torch.allclose(loss(training_batch()).mean(), paper(training_batch()), rtol=1e-6)
    assert near(gradients(loss), gradients(paper))


def crafted(attack: KLPGD, eps: Fraction) -> tuple[Tensor, Tensor, nn.Module]:
    x, y, _ = batch()
    model = network().eval()
    adv = attack_once(attack, model, x, y, Linf(eps), seed=0, example=torch.arange(32))
    return x, adv, model


@pytest.mark.row("D13")
def test_the_inner_attack_increases_the_divergence() -> None:
    def reached(steps: int) -> Tensor:
        eps = Fraction(51, 255)
        x, adv, model = crafted(KLPGD(steps=steps, rate=0.2), eps)
        assert Linf(eps).contains(adv, x).all()
        return kl_divergence(model(x), model(adv)).detach()

    x, _, noise = batch()
    model = network()
    by_chance = kl_divergence(model(x), model(noise))
    few, some, many = reached(1), reached(4), reached(16)
    assert (some > few).all()
    assert (many >= 0.99 * some).all()
    assert (many > 3 * by_chance).all()


def test_the_inner_attack_starts_near_the_clean_image_and_uses_no_label() -> None:
    x, y, _ = batch()
    model, keys = network(), torch.arange(32)
    ball = Linf(Fraction(51, 255))
    attack = KLPGD(steps=3)
    adv = attack_once(attack, model, x, y, ball, seed=0, example=keys)
    assert torch.equal(adv, attack_once(attack, model, x, 9 - y, ball, seed=0, example=keys))
    still = attack_once(KLPGD(steps=1, rate=0.0), model, x, y, ball, seed=0, example=keys)
    moved = (still - x)[(x > 0.01) & (x < 0.99)]
    assert 0.0009 < float(moved.std()) < 0.0011


def test_in_a_ball_of_radius_zero_the_inner_attack_returns_the_clean_image() -> None:
    x, adv, _ = crafted(KLPGD(steps=3), Fraction(0))
    assert torch.equal(adv, x)


@pytest.mark.row("F04")
@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_is_idempotent_with_two_to_the_bits_levels(bits: int) -> None:
    images = torch.cat([torch.arange(256) / 255, torch.linspace(0, 1, 4001)])
    once = quantize(images, bits)
    assert torch.equal(quantize(once, bits), once)
    assert sorted(set(once.tolist())) == (torch.arange(2**bits) / (2**bits - 1)).tolist()
    assert (once - images).abs().max() <= 0.5 / (2**bits - 1) + 1e-6


@pytest.mark.row("F04")
def test_eight_bits_are_the_identity_on_the_grid_of_stored_images() -> None:
    grid = torch.arange(256, dtype=torch.uint8).float() / 255
    assert torch.equal(quantize(grid, 8), grid)
    assert not torch.equal(quantize(grid, 7), grid)


@pytest.mark.row("F04")
def test_the_bpda_approximation_has_the_same_logits_and_the_gradient_at_the_rounded_image() -> None:
    _, y, adv = batch()
    classifier = network().eval().requires_grad_(False)
    plain = PreprocessedModel(classifier, three_bits)
    slope = PreprocessedModel(classifier, straight_through(three_bits))
    assert torch.equal(slope(adv), plain(adv))
    assert torch.equal(plain(adv), classifier(quantize(adv, BITS)))

    def gradient(model: nn.Module, images: Tensor) -> Tensor:
        return ModelAccess(model).gradient(images, lambda z: cross_entropy(z, y)).gradient

    assert torch.equal(gradient(slope, adv), gradient(classifier, quantize(adv, BITS)))
    assert not torch.equal(gradient(slope, adv), gradient(classifier, adv))
    assert (gradient(plain, adv) == 0).all()


class OneModelLoader:
    """A loader on which every defense is the same network."""

    shape = SHAPE
    classes = 10

    def defense(self, name: str) -> nn.Module:
        assert name == "undefended"
        return network().eval().requires_grad_(False)

    def trained(self, module: nn.Module) -> nn.Module:
        raise AssertionError("nothing to train")

    def weights(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        raise AssertionError("nothing to fill")


@pytest.mark.row("F04")
def test_the_declared_bpda_approximation_has_a_gradient(registry: Registry) -> None:
    x, y, _ = batch()
    defense = registry.find("defense", "bit-depth").value
    built, slope = defense.build(OneModelLoader()), defense.bpda(OneModelLoader())
    assert torch.equal(built(x), slope(x))

    def steep(model: nn.Module) -> Tensor:
        found = ModelAccess(model).gradient(x, lambda logits: cross_entropy(logits, y))
        return (found.gradient.flatten(1) != 0).any(1)

    assert steep(slope).all()
    assert not steep(built).any()


@pytest.mark.row("D33")
def test_argmax_only_returns_the_same_labels_one_hot() -> None:
    x = batch()[0]
    classifier = network().eval()
    hidden = ArgmaxOnly(classifier)
    answer = hidden(x)
    assert torch.equal(answer.argmax(1), classifier(x).argmax(1))
    assert torch.equal(answer.sort(1).values, torch.eye(10)[9].expand(32, 10))


@pytest.mark.row("D33")
def test_argmax_only_has_no_graph() -> None:
    x, y, _ = batch()
    hidden = ArgmaxOnly(network().eval())
    assert not hidden(x.clone().requires_grad_()).requires_grad
    found = ModelAccess(hidden).gradient(x, lambda logits: cross_entropy(logits, y))
    assert (found.gradient == 0).all()


def test_the_network_is_two_convolutions_and_a_hidden_layer() -> None:
    layers = [part for part in network() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert [tuple(layer.weight.shape[:2]) for layer in layers] == [
        (32, 1), (64, 32), (128, 1024), (10, 128),
    ]  # fmt: skip
    assert cnn((3, 5, 7), 4)(torch.rand(2, 3, 5, 7)).shape == (2, 4)


@pytest.mark.row("M03")
def test_the_regression_is_affine() -> None:
    model = regression(SHAPE, 10)
    x, _, other = batch()
    middle = 0.25 * model(x) + 0.75 * model(other)
    assert torch.allclose(model(0.25 * x + 0.75 * other), middle, atol=1e-5)


def test_every_defense_is_registered_under_its_name(registry: Registry) -> None:
    assert registry.problems == []
    ours = {
        name: registration.value
        for name, registration in registry.defenses.items()
        if name in DIGITS + PUBLISHED
    }
    assert sorted(ours) == sorted(DIGITS + PUBLISHED)
    assert all(ours[name].quick and ours[name].datasets == ("digits",) for name in DIGITS)
    assert not any(ours[name].quick for name in PUBLISHED)
    assert {name for name, defense in ours.items() if defense.bpda} == {"bit-depth"}


def test_every_claim_names_a_threat_model_on_the_defense_s_data(registry: Registry) -> None:
    for name in DIGITS + PUBLISHED:
        defense = registry.find("defense", name).value
        for claim in defense.claims:
            assert registry.find("threat", claim.threat).value.dataset in defense.datasets


def recipes(registry: Registry) -> dict[str, Recipe]:
    found = {name: registry.find("defense", name).value.recipe for name in DIGITS}
    return {name: recipe for name, recipe in found.items() if recipe is not None}


def test_inner_attacks_can_cross_the_ball_of_digits_linf(registry: Registry) -> None:
    eps = registry.find("threat", "digits-linf").value.ball.eps
    inner = {n: r.inner for n, r in recipes(registry).items() if isinstance(r.inner, InnerAttack)}
    assert sorted(inner) == ["fgsm-mixture", "fgsm-training", "pgd-training", "trades"]
    for attack_used in inner.values():
        assert attack_used.ball == Linf(eps)
        attack = resolve_inner_attack(registry, attack_used).value
        assert attack_used.attack == "fgsm" or attack.steps * getattr(attack, "rate", 0) >= 2


def trained_digest(registry: Registry, folder: Path, name: str, recipe: Recipe) -> str:
    """The digest of the weights after one epoch, with this recipe's loss and inner attack only."""
    base = recipes(registry)["undefended"]
    short = dataclasses.replace(base, loss=recipe.loss, inner=recipe.inner, epochs=1)
    registration: Registration[Defense] = registry.find("defense", "undefended")
    value = dataclasses.replace(registration.value, name=name, recipe=short)
    registry.defenses[name] = dataclasses.replace(registration, value=value)
    return train_weights(registry, name, few_digits(registry), folder=folder)


def few_digits(registry: Registry) -> Dataset:
    """The digits with 256 training images."""
    whole: Dataset = registry.datasets["digits"].value
    images = whole.load(None)
    assert images.train is not None
    few = Split(images.train.images[:256].copy(), images.train.labels[:256].copy())
    return dataclasses.replace(
        whole, load=lambda folder: dataclasses.replace(images, train=few), train_digest=""
    )


@pytest.mark.row("D03", "D05", "D07", "D08", "D13")
def test_training_at_neutral_weights_gives_the_weights_of_clean_training(
    registry: Registry, tmp_path: Path
) -> None:
    known = recipes(registry)
    point = Linf(Fraction(0))
    pgd = InnerAttack("pgd", point, {"steps": 2, "rate": 1.0})
    neutral = {
        "at-0": dataclasses.replace(known["pgd-training"], inner=pgd),
        "fgsm-0": dataclasses.replace(known["fgsm-training"], inner=InnerAttack("fgsm", point)),
        "mixture-1": dataclasses.replace(
            known["fgsm-mixture"], loss=partial(mixture_loss, alpha=1.0)
        ),
        "trades-0": dataclasses.replace(known["trades"], loss=partial(trades_loss, beta=0.0)),
        "decay-0": dataclasses.replace(
            known["weight-decay"], loss=partial(weight_decay_loss, strength=0.0)
        ),
    }
    expected = trained_digest(registry, tmp_path, "plain", known["undefended"])
    for name, recipe in neutral.items():
        assert trained_digest(registry, tmp_path, name, recipe) == expected, name
    for name in ("pgd-training", "fgsm-mixture", "trades", "weight-decay"):
        assert trained_digest(registry, tmp_path, f"real {name}", known[name]) != expected, name
