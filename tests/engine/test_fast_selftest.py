"""Tests of bench.engine.fast_selftest: a form that changes answers or gradients is refused."""

from __future__ import annotations

import copy
import functools
from fractions import Fraction
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from bench.core.cells import Numeric
from bench.core.errors import UnavailableError
from bench.engine import fast_forms
from bench.engine.fast_forms import BlockedGradientConv, ReorderedFlatten
from bench.engine.fast_selftest import CLOSE, NEAR, FastModel, ProbeAnswers, fastest_form
from bench.engine.model_access import ModelAccess, freeze
from bench.threats.norms import Linf
from tests.fixtures.known_models import digits, small_cnn
from tests.fixtures.writing_plugins import WRITES, WritingModel

BALL = Linf(Fraction(51, 255))


@pytest.fixture(autouse=True)
def bfloat16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows bfloat16 on any processor; emulation is slow but gives the same results."""
    monkeypatch.setattr(fast_forms, "has_bfloat16", lambda device: True)


def probes() -> Tensor:
    return digits(32)[0]


@functools.cache
def batchnorm_cnn() -> nn.Module:
    """A small CNN with BatchNorm and running statistics from data."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        model.train()
        for _ in range(20):
            model(digits(200)[0])
    return freeze(model)


class WithBatchNormCNN(nn.Module):
    """Base class: holds a CNN that passes every self-test."""

    def __init__(self) -> None:
        super().__init__()
        self.body = copy.deepcopy(batchnorm_cnn())


class DataDependentBranch(WithBatchNormCNN):
    """Branches on its input, so that it cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits if images.sum() > 0 else -logits


class DiffersWhileTraced(WithBatchNormCNN):
    """Returns other logits while it is being traced."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits if isinstance(images, Tensor) else -logits


class ReadsMemoryOrder(WithBatchNormCNN):
    """Reads activations in memory order, whatever the memory format."""

    def forward(self, images: Tensor) -> Tensor:
        wide: Tensor = next(self.body.children())(images)
        inner = [wide[:1].as_strided((1, wide[0].numel()), (0, 1)), wide.flatten(1)[:1]]
        logits: Tensor = self.body(images)
        return logits + (inner[0] - inner[1]).abs().sum() * torch.eye(10)[0]


class ReusesReluInput(WithBatchNormCNN):
    """Uses the input of its first ReLU again."""

    def forward(self, images: Tensor) -> Tensor:
        layers = list(self.body.children())
        wide: Tensor = layers[1](layers[0](images))
        logits: Tensor = nn.Sequential(*layers[3:])(layers[2](wide) + wide)
        return logits


class ExponentialReluGradient(nn.Module):
    """Its gradient needs the input of its ReLU, which is never negative."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.last = nn.ReLU(), nn.Linear(64, 3)
        with torch.no_grad():
            self.last.weight.copy_(torch.arange(3)[:, None] * torch.linspace(0, 1, 64))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.relu(images.flatten(1).exp()))
        return logits


class PatchedConvForward(nn.Module):
    """Its first convolution has a patched forward, which negates the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*copy.deepcopy(small_cnn()).children())
        first = cast(nn.Conv2d, self.body[0])
        with torch.no_grad():
            first.weight.neg_()
        first.forward = functools.partial(negative_convolution, first)  # type: ignore[method-assign]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits


def negative_convolution(layer: nn.Conv2d, images: Tensor) -> Tensor:
    return nn.functional.conv2d(-images, layer.weight, layer.bias, padding=1)


class ReadsLinearWeight(nn.Module):
    """Reads the weight of the Linear after its Flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*copy.deepcopy(small_cnn()).children())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images) + cast(nn.Linear, self.body[5]).weight.mean()
        return logits


class Cancellation(WithBatchNormCNN):
    """Its logits are small differences of large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(10, 10)
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(10))
            self.last.bias.fill_(1e4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.body(images)) - 1e4
        return logits


class SteepRipple(WithBatchNormCNN):
    """Adds a ripple that hardly changes the logits, but whose gradient is large."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        ripple = 1e-3 * torch.sin(1e5 * nn.functional.linear(images.flatten(1), torch.ones(1, 64)))
        return logits + ripple * torch.eye(10)[logits.detach().argmax(1)]


class TiedClasses(nn.Module):
    """Two classes, one for each half of an image, nearly tied on symmetric images."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 3)
        left = (torch.arange(64) % 8 < 4).float()
        with torch.no_grad():
            self.last.weight.copy_(torch.stack([0 * left, left, 1 - left]))
            self.last.bias.copy_(torch.tensor([100, 0, 1e-3]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(images.flatten(1))
        return logits


class RandomLogits(WithBatchNormCNN):
    """Returns other logits at each call."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits + 0.1 * torch.rand_like(logits)


class BatchCoupled(WithBatchNormCNN):
    """Subtracts the mean of the batch."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images - images.mean(0, keepdim=True))
        return logits


def test_all_forms_are_applied_to_a_plain_cnn() -> None:
    fast = fastest_form(batchnorm_cnn(), probes(), Numeric.FAST)
    assert fast.applied == (
        "folded BatchNorm",
        "blocked gradient",
        "ReLU in place",
        "channels last",
    )
    assert fast.notes == ()
    parts = list(fast.module.modules())
    assert any(isinstance(part, BlockedGradientConv) for part in parts)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in parts)
    x = digits(100)[0]
    assert torch.allclose(fast.module(x), batchnorm_cnn()(x), atol=1e-4)


@pytest.mark.parametrize("numeric", [Numeric.FAST, Numeric.BFLOAT16])
def test_a_linear_after_a_flatten_reads_channels_last_without_reordering(numeric: Numeric) -> None:
    fast = fastest_form(small_cnn(), probes(), numeric)
    assert "channels last" in fast.applied
    parts = list(fast.module.modules())
    assert any(isinstance(part, ReorderedFlatten) for part in parts)
    assert not any(isinstance(part, nn.Flatten) for part in parts)
    x = digits(100)[0]
    near = 1e-4 if numeric is Numeric.FAST else 0.5
    assert torch.allclose(fast.module(x), small_cnn()(x), atol=near)
    one, two = (input_gradient_of_first_logit(model, x) for model in (fast.module, small_cnn()))
    assert (one.sign() * two).sum() > 0.98 * two.abs().sum()


@pytest.mark.parametrize("numeric", list(Numeric))
@pytest.mark.parametrize("rows", [32, 96, 160])
def test_answers_to_an_image_do_not_depend_on_its_batch(numeric: Numeric, rows: int) -> None:
    access, x = ModelAccess(fastest_form(batchnorm_cnn(), probes(), numeric).module), digits(256)[0]
    for few, all_of_them in zip(
        access.observable_answers(x[:rows]), access.observable_answers(x), strict=True
    ):
        assert torch.equal(few, all_of_them[:rows])


def test_float32_is_the_defense_as_it_was_built() -> None:
    assert fastest_form(batchnorm_cnn(), probes(), Numeric.FLOAT32) == FastModel(
        batchnorm_cnn(), (), ()
    )


def test_bfloat16_is_applied_after_the_other_forms() -> None:
    fast = fastest_form(batchnorm_cnn(), probes(), Numeric.BFLOAT16)
    assert fast.applied == (
        "folded BatchNorm",
        "blocked gradient",
        "ReLU in place",
        "channels last",
        "bfloat16",
    )
    assert fast.low_precision
    moved = (fast.module(probes()) - batchnorm_cnn()(probes())).abs().max()
    assert 0 < moved < 0.2
    assert fast.module(probes()).dtype is torch.float32


def test_bfloat16_is_not_applied_without_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_forms, "has_bfloat16", lambda device: False)
    fast = fastest_form(batchnorm_cnn(), probes(), Numeric.BFLOAT16)
    assert not fast.low_precision
    assert fast.notes == ("without bfloat16: this device has no bfloat16 instructions.",)


def test_the_defense_itself_is_unchanged() -> None:
    model = copy.deepcopy(batchnorm_cnn())
    fastest_form(model, probes(), Numeric.BFLOAT16)
    for (name, one), two in zip(
        batchnorm_cnn().state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
        assert one.stride() == two.stride(), name
    x = digits(64)[0]
    assert torch.equal(model(x), batchnorm_cnn()(x))


@pytest.mark.parametrize(
    ("model", "option", "message"),
    [
        (DataDependentBranch, "folded BatchNorm", "TraceError"),
        (DiffersWhileTraced, "folded BatchNorm", "a logit moves"),
        (PatchedConvForward, "blocked gradient", "steps keep -1.000"),
        (ReusesReluInput, "ReLU in place", "a logit moves"),
        (ExponentialReluGradient, "ReLU in place", "RuntimeError"),
        (ReadsMemoryOrder, "channels last", "a logit moves"),
        (ReadsLinearWeight, "channels last", "AttributeError"),
        (Cancellation, "bfloat16", "a logit moves"),
        (SteepRipple, "bfloat16", "steps keep"),
    ],
)
def test_a_failed_self_test_is_noted_and_its_form_not_applied(
    model: type[nn.Module], option: str, message: str
) -> None:
    fast = fastest_form(freeze(model()), probes(), Numeric.BFLOAT16)
    assert option not in fast.applied
    (note,) = [note for note in fast.notes if option in note]
    assert message in note


def test_tied_classes_do_not_fail_the_self_test() -> None:
    model, images = freeze(TiedClasses()), (probes() + probes().flip(-1)) / 2
    classes = model(images).topk(2).indices
    assert bool((classes == torch.tensor([0, 2])).all())
    fast = fastest_form(model, images, Numeric.BFLOAT16)
    assert fast.applied == ("bfloat16",)
    assert bool((fast.module(images).topk(2).indices != classes).any())


def answer_pair(gain: Tensor, sign: Tensor) -> tuple[ProbeAnswers, ProbeAnswers]:
    """Answers of two models: gradients of these gains [n], and gradients of these signs [n]."""
    logits, pair = torch.tensor([1.0, 0.0]), torch.tensor([0, 1])
    gradient = (gain / 64)[:, None, None, None].expand(-1, 1, 8, 8)
    rows = logits.expand(len(gain), 2), pair.expand(len(gain), 2)
    other = sign[:, None, None, None].expand_as(gradient)
    return ProbeAnswers(rows[0], gradient, rows[1]), ProbeAnswers(rows[0], other, rows[1])


def test_a_form_with_reversed_gradients_on_most_images_is_refused_however_small_they_are() -> None:
    gain, sign = torch.full((64,), 1e-3), torch.full((64,), -1.0)
    gain[:4], sign[:4] = 10, 1
    own, other = answer_pair(gain, sign)
    with pytest.raises(UnavailableError, match=r"steps keep -0\.875 of the first-order gain"):
        own.check_close(other, CLOSE)


def test_no_gradient_is_reversed_unless_it_is_below_the_tolerance() -> None:
    gain, sign = torch.ones(500), torch.ones(500)
    sign[7] = -1
    own, other = answer_pair(gain, sign)
    with pytest.raises(UnavailableError, match="1 of 500 images have a reversed gradient"):
        own.check_close(other, NEAR)
    gain[7] = NEAR / 2
    own, other = answer_pair(gain, sign)
    own.check_close(other, NEAR)
    with pytest.raises(UnavailableError, match="1 of 500 images have a reversed gradient"):
        own.check_close(other, CLOSE)
    gain[7], sign[7] = 1, 0
    own, other = answer_pair(gain, sign)
    own.check_close(other, NEAR)


def test_images_with_zero_gradient_are_ignored() -> None:
    gain, sign = torch.zeros(64), torch.full((64,), -1.0)
    gain[:4], sign[:4] = 1, 1
    own, other = answer_pair(gain, sign)
    own.check_close(other, CLOSE)
    own, other = answer_pair(gain * 0, sign)
    with pytest.raises(UnavailableError, match="steps keep nan"):
        own.check_close(other, CLOSE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (RandomLogits, "answers to the same images differ"),
        (BatchCoupled, "depend on other images in the batch"),
    ],
)
def test_random_and_batch_coupled_defenses_are_left_as_built(
    model: type[nn.Module], message: str
) -> None:
    module = freeze(model())
    fast = fastest_form(module, probes(), Numeric.BFLOAT16)
    assert fast.module is module
    assert message in fast.notes[0]


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_a_defense_whose_logits_are_not_finite_is_left_as_built(value: float) -> None:
    class OneColumn(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :10].index_fill(1, torch.tensor([9]), value)

    module = freeze(OneColumn())
    fast = fastest_form(module, probes(), Numeric.FAST)
    assert fast.module is module
    assert fast.notes == ("plain float32: its answers are not finite.",)


@pytest.mark.parametrize("write", WRITES)
def test_the_images_of_the_self_test_stay_as_they_are(write: str) -> None:
    images = probes()[:, :1, :8, :8].contiguous()
    given = images.clone()
    module = freeze(WritingModel(small_cnn(), write, honest=False))
    fastest_form(module, images, Numeric.FAST)
    assert torch.equal(images, given)


def test_a_defense_with_hooks_is_left_as_built() -> None:
    module = copy.deepcopy(batchnorm_cnn())
    next(module.children()).register_forward_hook(lambda *_: None)
    fast = fastest_form(module, probes(), Numeric.FAST)
    assert fast.module is module
    assert "hooks" in fast.notes[0]


def input_gradient_of_first_logit(model: nn.Module, x: Tensor) -> Tensor:
    """The gradient [n, C, H, W] of the first logit at images [n, C, H, W]."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0]
