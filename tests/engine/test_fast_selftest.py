"""A faster form may waste time; it may never move a verdict it cannot prove."""

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

BALL = Linf(Fraction(51, 255))


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is tried here on any processor: slow without the instructions, but the same."""
    monkeypatch.setattr(fast_forms, "has_bfloat16", lambda device: True)


def probes() -> Tensor:
    return digits(32)[0]


@functools.cache
def normalised() -> nn.Module:
    """A small network with BatchNorm whose statistics are no longer those of a new one."""
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


class Around(nn.Module):
    """A healthy network with something beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = copy.deepcopy(normalised())


class Branching(Around):
    """Its way depends on the data: it cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits if images.sum() > 0 else -logits


class TwoFaced(Around):
    """Answers otherwise while it is being traced."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits if isinstance(images, Tensor) else -logits


class LayoutBound(Around):
    """Reads the memory in its order, whatever that order means."""

    def forward(self, images: Tensor) -> Tensor:
        wide: Tensor = next(self.body.children())(images)
        inner = [wide[:1].as_strided((1, wide[0].numel()), (0, 1)), wide.flatten(1)[:1]]
        logits: Tensor = self.body(images)
        return logits + (inner[0] - inner[1]).abs().sum() * torch.eye(10)[0]


class Skipping(Around):
    """Goes on with what its first ReLU has read."""

    def forward(self, images: Tensor) -> Tensor:
        layers = list(self.body.children())
        wide: Tensor = layers[1](layers[0](images))
        logits: Tensor = nn.Sequential(*layers[3:])(layers[2](wide) + wide)
        return logits


class Squaring(nn.Module):
    """Its slope needs what its ReLU has read, which is never negative."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.last = nn.ReLU(), nn.Linear(64, 3)
        with torch.no_grad():
            self.last.weight.copy_(torch.arange(3)[:, None] * torch.linspace(0, 1, 64))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.relu(images.flatten(1).exp()))
        return logits


class Negative(nn.Module):
    """Its first layer is a convolution by name, and reads the negative."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*copy.deepcopy(small_cnn()).children())
        first = cast(nn.Conv2d, self.body[0])
        with torch.no_grad():
            first.weight.neg_()
        first.forward = functools.partial(negative, first)  # type: ignore[method-assign]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits


def negative(layer: nn.Conv2d, images: Tensor) -> Tensor:
    return nn.functional.conv2d(-images, layer.weight, layer.bias, padding=1)


class Peeking(nn.Module):
    """Reads the weights of the layer behind its Flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*copy.deepcopy(small_cnn()).children())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images) + cast(nn.Linear, self.body[5]).weight.mean()
        return logits


class Delicate(Around):
    """Its answer is the small difference of large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(10, 10)
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(10))
            self.last.bias.fill_(1e4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.body(images)) - 1e4
        return logits


class Rippled(Around):
    """Waves too low for the logits to show, and too steep to climb with rounded images."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        ripple = 1e-3 * torch.sin(1e5 * nn.functional.linear(images.flatten(1), torch.ones(1, 64)))
        return logits + ripple * torch.eye(10)[logits.detach().argmax(1)]


class Even(nn.Module):
    """Two rivals, each of half an image: on symmetric ones nearer than bfloat16 can tell."""

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


class Noisy(Around):
    """Another answer at each call."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits + 0.1 * torch.rand_like(logits)


class Coupled(Around):
    """Takes the mean of the batch away."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images - images.mean(0, keepdim=True))
        return logits


def test_what_a_healthy_network_allows_is_applied() -> None:
    quick = fastest_form(normalised(), probes(), Numeric.FAST)
    assert quick.applied == (
        "folded BatchNorm",
        "blocked gradient",
        "ReLU in place",
        "channels last",
    )
    assert quick.notes == ()
    parts = list(quick.module.modules())
    assert any(isinstance(part, BlockedGradientConv) for part in parts)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in parts)
    x = digits(100)[0]
    assert torch.allclose(quick.module(x), normalised()(x), atol=1e-4)


@pytest.mark.parametrize("numeric", [Numeric.FAST, Numeric.BFLOAT16])
def test_a_linear_behind_a_flatten_reads_channels_last_as_they_lie(numeric: Numeric) -> None:
    quick = fastest_form(small_cnn(), probes(), numeric)
    assert "channels last" in quick.applied
    parts = list(quick.module.modules())
    assert any(isinstance(part, ReorderedFlatten) for part in parts)
    assert not any(isinstance(part, nn.Flatten) for part in parts)
    x = digits(100)[0]
    near = 1e-4 if numeric is Numeric.FAST else 0.5
    assert torch.allclose(quick.module(x), small_cnn()(x), atol=near)
    one, two = (slope_at(model, x) for model in (quick.module, small_cnn()))
    assert (one.sign() * two).sum() > 0.98 * two.abs().sum()


@pytest.mark.parametrize("numeric", list(Numeric))
@pytest.mark.parametrize("rows", [32, 96, 160])
def test_what_is_said_of_an_image_does_not_depend_on_its_batch(numeric: Numeric, rows: int) -> None:
    door, x = ModelAccess(fastest_form(normalised(), probes(), numeric).module), digits(256)[0]
    for few, all_of_them in zip(
        door.observable_answers(x[:rows]), door.observable_answers(x), strict=True
    ):
        assert torch.equal(few, all_of_them[:rows])


def test_float32_is_the_defense_as_it_was_built() -> None:
    assert fastest_form(normalised(), probes(), Numeric.FLOAT32) == FastModel(normalised(), (), ())


def test_bfloat16_comes_on_top() -> None:
    quick = fastest_form(normalised(), probes(), Numeric.BFLOAT16)
    assert quick.applied == (
        "folded BatchNorm",
        "blocked gradient",
        "ReLU in place",
        "channels last",
        "bfloat16",
    )
    assert quick.low_precision
    moved = (quick.module(probes()) - normalised()(probes())).abs().max()
    assert 0 < moved < 0.2
    assert quick.module(probes()).dtype is torch.float32


def test_without_the_instructions_bfloat16_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_forms, "has_bfloat16", lambda device: False)
    quick = fastest_form(normalised(), probes(), Numeric.BFLOAT16)
    assert not quick.low_precision
    assert quick.notes == ("without bfloat16: this device has no bfloat16 instructions.",)


def test_the_defense_itself_is_left_as_it_was() -> None:
    model = copy.deepcopy(normalised())
    fastest_form(model, probes(), Numeric.BFLOAT16)
    for (name, one), two in zip(
        normalised().state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
        assert one.stride() == two.stride(), name
    x = digits(64)[0]
    assert torch.equal(model(x), normalised()(x))


@pytest.mark.parametrize(
    ("planted", "option", "sentence"),
    [
        (Branching, "folded BatchNorm", "TraceError"),
        (TwoFaced, "folded BatchNorm", "a logit moves"),
        (Negative, "blocked gradient", "steps keep -1.000"),
        (Skipping, "ReLU in place", "a logit moves"),
        (Squaring, "ReLU in place", "RuntimeError"),
        (LayoutBound, "channels last", "a logit moves"),
        (Peeking, "channels last", "AttributeError"),
        (Delicate, "bfloat16", "a logit moves"),
        (Rippled, "bfloat16", "steps keep"),
    ],
)
def test_a_failed_self_test_falls_back_and_says_so(
    planted: type[nn.Module], option: str, sentence: str
) -> None:
    quick = fastest_form(freeze(planted()), probes(), Numeric.BFLOAT16)
    assert option not in quick.applied
    (note,) = [note for note in quick.notes if option in note]
    assert sentence in note


def test_even_rivals_are_no_reason_to_fall_back() -> None:
    model, images = freeze(Even()), (probes() + probes().flip(-1)) / 2
    named = model(images).topk(2).indices
    assert bool((named == torch.tensor([0, 2])).all())
    quick = fastest_form(model, images, Numeric.BFLOAT16)
    assert quick.applied == ("bfloat16",)
    assert bool((quick.module(images).topk(2).indices != named).any())


def climbed(gain: Tensor, way: Tensor) -> tuple[ProbeAnswers, ProbeAnswers]:
    """What two models say of images whose slopes have these gains; the other goes this way."""
    logits, pair = torch.tensor([1.0, 0.0]), torch.tensor([0, 1])
    gradient = (gain / 64)[:, None, None, None].expand(-1, 1, 8, 8)
    rows = logits.expand(len(gain), 2), pair.expand(len(gain), 2)
    other = way[:, None, None, None].expand_as(gradient)
    return ProbeAnswers(rows[0], gradient, rows[1]), ProbeAnswers(rows[0], other, rows[1])


def test_a_form_that_climbs_backwards_on_most_images_is_refused_however_flat_they_are() -> None:
    gain, way = torch.full((64,), 1e-3), torch.full((64,), -1.0)
    gain[:4], way[:4] = 10, 1
    own, other = climbed(gain, way)
    with pytest.raises(UnavailableError, match=r"steps keep -0\.875 of the first-order gain"):
        own.check_close(other, CLOSE)


def test_no_image_is_climbed_backwards_unless_its_slope_is_lost_in_what_a_logit_may_move() -> None:
    gain, way = torch.ones(500), torch.ones(500)
    way[7] = -1
    own, other = climbed(gain, way)
    with pytest.raises(UnavailableError, match="1 of 500 images would be climbed backwards"):
        own.check_close(other, NEAR)
    gain[7] = NEAR / 2
    own, other = climbed(gain, way)
    own.check_close(other, NEAR)
    with pytest.raises(UnavailableError, match="1 of 500 images would be climbed backwards"):
        own.check_close(other, CLOSE)
    gain[7], way[7] = 1, 0
    own, other = climbed(gain, way)
    own.check_close(other, NEAR)


def test_images_without_a_slope_say_nothing_of_a_form() -> None:
    gain, way = torch.zeros(64), torch.full((64,), -1.0)
    gain[:4], way[:4] = 1, 1
    own, other = climbed(gain, way)
    own.check_close(other, CLOSE)
    own, other = climbed(gain * 0, way)
    with pytest.raises(UnavailableError, match="steps keep nan"):
        own.check_close(other, CLOSE)


@pytest.mark.parametrize(
    ("planted", "sentence"),
    [(Noisy, "does not answer alike twice"), (Coupled, "depend on the images beside")],
)
def test_random_and_coupled_defenses_get_the_plain_path(
    planted: type[nn.Module], sentence: str
) -> None:
    module = freeze(planted())
    quick = fastest_form(module, probes(), Numeric.BFLOAT16)
    assert quick.module is module
    assert sentence in quick.notes[0]


def test_a_defense_with_hooks_gets_the_plain_path() -> None:
    module = copy.deepcopy(normalised())
    next(module.children()).register_forward_hook(lambda *_: None)
    quick = fastest_form(module, probes(), Numeric.FAST)
    assert quick.module is module
    assert "hooks" in quick.notes[0]


def slope_at(model: nn.Module, x: Tensor) -> Tensor:
    """Of the first logit."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0]
