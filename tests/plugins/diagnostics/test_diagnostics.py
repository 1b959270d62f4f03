"""Each planted fake is found by its diagnostic, and ordinary models pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.plugin import (
    Defense,
    Diagnostic,
    Evidence,
    Finding,
    Randomness,
    Subject,
    straight_through,
)
from plugins.defenses._cnn import cnn
from plugins.defenses._preprocessing import PreprocessedModel
from plugins.defenses.argmax_only import ArgmaxOnly
from plugins.defenses.bit_depth import three_bits
from plugins.defenses.softmax_regression import regression
from plugins.diagnostics import determinism
from plugins.diagnostics.determinism import BatchIndependent, Deterministic, batch_sizes
from plugins.diagnostics.gradient_agrees import GradientAgrees, correlation, scaled_per_image
from plugins.diagnostics.probabilities import Probabilities
from plugins.diagnostics.zero_gradients import ZeroGradients
from tests.plugins.diagnostics.networks import Changed, network, subject

SHAPE = (1, 8, 8)
ALL: list[Diagnostic] = [
    ZeroGradients(),
    GradientAgrees(),
    Probabilities(),
    Deterministic(),
    BatchIndependent(),
]
NAMES = [diagnostic.name for diagnostic in ALL]


def ordinary(build: Callable[[tuple[int, int, int], int], nn.Module] = cnn) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return build(SHAPE, 10).eval().requires_grad_(False)


def examine(diagnostic: Diagnostic, module: nn.Module, defense: Defense | None = None) -> Evidence:
    generator = torch.Generator().manual_seed(1)
    # 8-bit images: no pixel is within a difference step of a rounding threshold.
    grey = torch.randint(0, 17, (32, *SHAPE), generator=generator)
    x = (255 * grey / 16).round() / 255
    y = torch.randint(0, 10, (32,), generator=generator)
    return diagnostic.examine(module, x, y, defense or Defense("mine", lambda loader: module))


def random_defense(module: nn.Module) -> Defense:
    return Defense("mine", lambda loader: module, randomness=Randomness())


class Then(nn.Module):
    """The ordinary network followed by a function of its logits."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = ordinary(), change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.network(images), images)


class _Misleading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return torch.randn(grads[0].shape, generator=generator)


class Counter(nn.Module):
    """Changes its logits from the third call on."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.calls = ordinary(), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.network(images)
        return logits if self.calls < 4 else -logits


class AfterGradient(nn.Module):
    """Changes its logits after a gradient was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = ordinary(), False

    def forward(self, images: Tensor) -> Tensor:
        self.seen |= images.requires_grad
        logits: Tensor = self.network(images)
        return 2 * logits if self.seen else logits


class OffTheGrid(nn.Module):
    """Deterministic on 8-bit images and random on others."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ordinary()

    def forward(self, images: Tensor) -> Tensor:
        moved = (255 * images - (255 * images).round()).flatten(1).abs().amax(1) > 0.01
        logits: Tensor = self.network(images)
        return torch.where((moved & (torch.rand(len(images)) < 0.3))[:, None], -logits, logits)


def with_batch_mean() -> nn.Module:
    return Then(lambda logits, images: logits + images.mean() * torch.arange(10))


def place_dependent() -> nn.Module:
    return Then(lambda logits, images: logits + torch.arange(len(images))[:, None] / 10)


def order_dependent() -> nn.Module:
    """Correct for single images and for the given order, whose first image is the darker one."""

    def change(logits: Tensor, images: Tensor) -> Tensor:
        return -logits if images[0].mean() > images[-1].mean() else logits

    return Then(change)


def misleading() -> nn.Module:
    return PreprocessedModel(ordinary(), lambda images: _Misleading.apply(images))


def downhill() -> nn.Module:
    """A function with an unchanged value and a reversed gradient."""
    return PreprocessedModel(ordinary(), lambda images: 2 * images.detach() - images)


def mostly_downhill() -> nn.Module:
    """Dark images keep their gradient, times 1000; for all others it is reversed."""

    def change(logits: Tensor, images: Tensor) -> Tensor:
        dark = images.flatten(1).mean(1, keepdim=True) < 0.48
        return torch.where(dark, 1000 * logits, 2 * logits.detach() - logits)

    return Then(change)


def noisy() -> nn.Module:
    return Then(lambda logits, images: logits + 0.1 * torch.randn_like(logits))


@pytest.mark.parametrize("diagnostic", ALL, ids=NAMES)
@pytest.mark.parametrize("build", [cnn, regression])
def test_an_ordinary_model_passes(
    diagnostic: Diagnostic, build: Callable[[tuple[int, int, int], int], nn.Module]
) -> None:
    evidence = examine(diagnostic, ordinary(build))
    assert evidence.finding is Finding.PASSED, evidence.sentence
    assert evidence.sentence.endswith(".")


FAKES: list[tuple[Diagnostic, Callable[[], nn.Module]]] = [
    (ZeroGradients(), lambda: ArgmaxOnly(ordinary())),
    (ZeroGradients(), lambda: PreprocessedModel(ordinary(), three_bits)),
    (ZeroGradients(), lambda: Then(lambda logits, images: logits.detach())),
    (ZeroGradients(), lambda: Then(lambda logits, images: 1e6 * logits)),
    (GradientAgrees(), misleading),
    (GradientAgrees(), downhill),
    (GradientAgrees(), mostly_downhill),
    (GradientAgrees(), lambda: Then(lambda logits, images: logits.detach())),
    (Probabilities(), lambda: ArgmaxOnly(ordinary())),
    (Probabilities(), lambda: Then(lambda logits, images: logits.softmax(1))),
    (Deterministic(), noisy),
    (Deterministic(), Counter),
    (Deterministic(), AfterGradient),
    (Deterministic(), OffTheGrid),
    (BatchIndependent(), with_batch_mean),
    (BatchIndependent(), place_dependent),
    (BatchIndependent(), order_dependent),
]
FAKE_NAMES = [
    "one-hot", "rounding", "detached", "saturated", "noise-for-gradient", "downhill",
    "mostly-downhill", "detached-differs", "one-hot-output", "softmax", "noise", "call-counter",
    "gradient-watcher", "noise-off-the-grid", "batch-mean", "place", "order",
]  # fmt: skip


@pytest.mark.parametrize(("diagnostic", "fake"), FAKES, ids=FAKE_NAMES)
def test_a_planted_fake_is_raised(diagnostic: Diagnostic, fake: Callable[[], nn.Module]) -> None:
    evidence = examine(diagnostic, fake())
    assert evidence.finding is Finding.WARNING, evidence.sentence
    assert evidence.sentence.endswith(".")


@pytest.mark.parametrize(("factor", "finding"), [(1, Finding.PASSED), (0, Finding.WARNING)])
def test_a_bpda_approximation_counts_where_the_true_gradient_is_zero(
    factor: int, finding: Finding
) -> None:
    module = PreprocessedModel(ordinary(), three_bits)
    slope = PreprocessedModel(ordinary(), straight_through(three_bits))
    declared = Defense("mine", lambda loader: module, bpda=lambda loader: slope)
    x, y = torch.rand(32, *SHAPE), torch.zeros(32).long()
    bpda = slope if factor else Then(lambda logits, images: 0 * logits)
    evidence = ZeroGradients().examine_subject(Subject(module, x, y, declared, bpda))
    assert evidence.finding is finding
    assert "zero or not finite on 32 of 32" in evidence.sentence
    assert "declared BPDA approximation" in evidence.sentence


def test_five_percent_of_zero_gradients_is_the_limit() -> None:
    def some(share: int) -> Evidence:
        # Images whose first pixel is zero have constant logits.
        x = torch.rand(200, *SHAPE) / 2 + 0.25
        x[:share, 0, 0, 0] = 0
        model = Then(lambda logits, images: torch.where(images[:, :1, 0, 0] > 0, logits, 0))
        return ZeroGradients().examine(
            model, x, torch.zeros(200).long(), Defense("mine", lambda loader: model)
        )

    assert some(10).finding is Finding.PASSED
    assert some(11).finding is Finding.WARNING


def test_a_gradient_on_one_pixel_is_not_zero() -> None:
    model = Then(lambda logits, images: images[:, 0, 0, :1] * torch.arange(1.0, 11.0))
    assert examine(ZeroGradients(), model).finding is Finding.PASSED


@pytest.mark.parametrize("diagnostic", ALL, ids=NAMES)
def test_all_queries_are_valid_images(diagnostic: Diagnostic) -> None:
    outside = []

    def watch(logits: Tensor, images: Tensor) -> Tensor:
        outside.append(bool(((images < 0) | (images > 1)).any()))
        return logits

    examine(diagnostic, Then(watch))
    assert outside
    assert not any(outside)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, images: logits.sigmoid(),
        lambda logits, images: 5 * (logits - logits.mean(1, keepdim=True)) + 0.1,
        lambda logits, images: 2 * logits.softmax(1),
    ],
    ids=["sum-is-not-one", "negative", "twice"],
)
def test_logits_with_one_property_of_probabilities_pass(
    change: Callable[[Tensor, Tensor], Tensor],
) -> None:
    assert examine(Probabilities(), Then(change)).finding is Finding.PASSED


def test_constant_logits_are_not_tested() -> None:
    constant = Then(lambda logits, images: logits.detach() * 0 + torch.arange(10))
    evidence = examine(GradientAgrees(), constant)
    assert evidence.finding is Finding.NOT_TESTED
    assert "flat within rounding errors on 32 of 32" in evidence.sentence


@pytest.mark.parametrize("flat", [0, 16, 28])
def test_flat_margins_do_not_count(flat: int) -> None:
    """Findings of exact gradients at .823 and .000 came from images whose margin is constant."""
    x = torch.rand(32, *SHAPE) / 2 + 0.25
    x[:flat, 0, 0, 0] = 0
    model = Then(lambda logits, images: torch.where(images[:, :1, 0, 0] > 0.01, logits, 1e3))
    evidence = GradientAgrees().examine(
        model, x, torch.zeros(32).long(), Defense("mine", lambda loader: model)
    )
    assert evidence.finding is Finding.PASSED, evidence.sentence
    assert f"on {32 - flat} of 32 images" in evidence.sentence


@pytest.mark.parametrize("constant", [1e3, 1e5, -1e5])
def test_large_constants_are_compared_with_a_larger_step(constant: float) -> None:
    built = subject(Changed(lambda logits, images: logits + constant))
    evidence = GradientAgrees().examine_subject(built)
    assert evidence.finding is Finding.PASSED, evidence.sentence


def test_a_constant_beyond_the_resolution_is_not_tested() -> None:
    evidence = examine(GradientAgrees(), Then(lambda logits, images: logits + 1e9))
    assert evidence.finding is Finding.NOT_TESTED, evidence.sentence


def test_declared_randomness_switches_no_comparison_off() -> None:
    module, still = noisy(), ordinary()
    assert examine(Deterministic(), module, random_defense(module)).finding is Finding.PASSED
    assert examine(Deterministic(), still, random_defense(still)).finding is Finding.WARNING
    for diagnostic in (GradientAgrees(), BatchIndependent()):
        assert examine(diagnostic, module, random_defense(module)).finding is Finding.PASSED


@pytest.mark.parametrize("diagnostic", ALL, ids=NAMES)
def test_diagnostics_leave_module_and_random_state_unchanged(diagnostic: Diagnostic) -> None:
    module = noisy()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    first = examine(diagnostic, module)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert examine(diagnostic, module) == first, "the caller's random state must not matter"
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_every_image_has_equal_weight_in_the_correlation() -> None:
    """Images with larger and smaller gradients: only the agreement of each matters."""
    generator = torch.Generator().manual_seed(2)
    analytic = torch.randn(4, 50, generator=generator).double()
    numeric = analytic.clone()
    numeric[:, :20] *= -1
    scale = torch.logspace(-6, 6, 50).double()
    plain, stretched = (
        scaled_per_image(analytic, numeric),
        scaled_per_image(scale * analytic, scale * numeric),
    )
    assert correlation(*stretched) == pytest.approx(correlation(*plain))
    assert 0 < correlation(*plain) < 0.5
    for pair in (
        plain,
        stretched,
        scaled_per_image(1e-9 * analytic, numeric),
        scaled_per_image(analytic, 1e-9 * numeric),
    ):
        assert torch.maximum(pair[0].abs(), pair[1].abs()).amax(0).tolist() == [1.0] * 50


def test_zero_and_nan_derivatives_are_unchanged() -> None:
    analytic, numeric = scaled_per_image(
        torch.zeros(4, 2), torch.tensor([[0.0, torch.nan]]).expand(4, 2)
    )
    assert not analytic.any() and not numeric[:, 0].any() and numeric[:, 1].isnan().all()


def test_correlation_is_pearsons() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 5.0]).double()
    assert correlation(a, 3 * a + 1) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, torch.ones(4).double()) == 0
    b = torch.tensor([2.0, -1.0, 0.0, 1.0]).double()
    expected = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    assert correlation(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "side", "forwards", "largest"),
    [(256, 8, 1, 2048), (256, 32, 1, 512), (256, 224, 1, 256), (1, 512, 1, 2), (1, 1600, 1, 0),
     (64, 8, 21, 512), (64, 224, 21, 128), (64, 8, 20, 2048)],
)  # fmt: skip
def test_batches_are_as_large_as_those_of_a_run_and_stay_cheap(
    n: int, side: int, forwards: int, largest: int
) -> None:
    """Right: 2,048 small images, a full batch of a costly defense, all images of large ones."""
    made = Defense("mine", lambda loader: nn.Flatten(), forwards=forwards)
    x = torch.zeros(1, 1, 1, 1).expand(n, 3 if side > 8 else 1, side, side)
    found = batch_sizes(Subject(nn.Flatten(), x, torch.zeros(n), made))
    assert max([0, *found]) == largest


def test_one_large_image_is_compared_with_itself() -> None:
    """Right: passed, without a batch that is larger than there are images."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 10))
    x = torch.linspace(0, 1, 1600 * 1600).reshape(1, 1, 1600, 1600)
    found = BatchIndependent().examine(
        model, x, torch.zeros(1).long(), Defense("mine", lambda _: model)
    )
    assert found.finding is Finding.PASSED and "batches of 1 to 1 logits" in found.sentence


def test_gradients_are_compared_at_sizes_that_follow_from_the_weights() -> None:
    """Right: the largest batch of an attack, and two sizes of each octave below it."""
    one, two = subject(network()), subject(Changed(lambda logits, images: 1.01 * logits))
    sizes = determinism.gradient_sizes(one)
    assert sizes == determinism.gradient_sizes(one) != determinism.gradient_sizes(two)
    assert max(sizes) == 512 and all(size % 8 == 0 for size in sizes if size > 16)
    octaves = [math.ceil(math.log2(size)) for size in sizes]
    assert [octaves.count(k) for k in range(1, 9)] == [1, 2, 2, 2, 2, 2, 2, 2]
    assert octaves.count(9) in (2, 3)
    large = one._replace(x=torch.rand(8, 3, 32, 32), module=nn.Flatten())
    assert max(determinism.gradient_sizes(large)) == 128
    huge = one._replace(x=torch.rand(2, 3, 224, 224), module=nn.Flatten())
    assert determinism.gradient_sizes(huge) == [1, 2]
