"""In-place writes: a module that reads overwritten values is not certified."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Certifier, Linf
from plugins.certifiers.dual_bound import DualBound
from plugins.certifiers.interval import Intervals
from plugins.certifiers.lipschitz_margin import LipschitzMargin

Forward = Callable[["Shortcut", Tensor], Any]
CERTIFIERS: list[Certifier] = [Intervals(), DualBound(), LipschitzMargin()]
every_certifier = pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda tool: tool.name)


class Shortcut(nn.Module):
    """A block of zeros in h = (x - 0.4, 0.6 - x), of one pixel x, and a shortcut around it.

    The shortcut is (1.1 - 5 (h1 + h2), 0) = (0.1, 0) on every image; where a ReLU overwrites h
    before it is read there, the prediction changes.
    """

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.way = forward
        self.flat, self.pass_on, self.drop = nn.Flatten(), nn.Identity(), nn.Dropout()
        self.relu, self.relu_in_place = nn.ReLU(), nn.ReLU(inplace=True)
        self.first, self.block, self.shortcut = nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.last = nn.Linear(2, 2)
        numbers = {
            self.first: ([[1.0], [-1.0]], [-0.4, 0.6]),
            self.block: ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
            self.shortcut: ([[-5.0, -5.0], [0.0, 0.0]], [1.1, 0.0]),
            self.last: ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]),
        }
        with torch.no_grad():
            for layer, (weight, bias) in numbers.items():
                layer.weight.copy_(torch.tensor(weight))
                layer.bias.copy_(torch.tensor(bias))

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.way(self, images)
        return answer


def layer(net: Shortcut, images: Tensor) -> Any:
    h = net.first(net.flat(images))
    return net.last(net.block(net.relu_in_place(h)) + net.shortcut(h))


def function(net: Shortcut, images: Tensor) -> Any:
    h = net.first(net.flat(images))
    return net.last(net.block(F.relu(h, inplace=True)) + net.shortcut(h))


def through_views(net: Shortcut, images: Tensor) -> Any:
    h = net.first(net.flat(images))
    seen = net.drop(net.pass_on(net.flat(h)))
    return net.last(net.block(net.relu_in_place(seen)) + net.shortcut(h))


def view_of_it(net: Shortcut, images: Tensor) -> Any:
    h = net.first(net.flat(images))
    seen = torch.flatten(h, 1)
    return net.last(net.block(net.relu_in_place(h)) + net.shortcut(seen))


def sum_in_place(net: Shortcut, images: Tensor) -> Any:
    """Adds relu(-h), which is zero where h is positive."""
    h = net.first(net.flat(images))
    seen = h
    seen += net.relu(h * -1.0)
    return net.last(net.block(seen) + net.shortcut(h))


WRITTEN_OVER: list[Forward] = [layer, function, through_views, view_of_it, sum_in_place]


def example(forward: Forward) -> tuple[nn.Module, Tensor, Tensor]:
    module = Shortcut(forward).eval().requires_grad_(False)
    return module, torch.full((1, 1, 1, 1), 0.5), torch.zeros(1).long()


@every_certifier
@pytest.mark.parametrize("forward", WRITTEN_OVER)
def test_a_value_that_is_read_after_being_overwritten_is_refused(
    certifier: Certifier, forward: Forward
) -> None:
    module, x, y = example(forward)
    assert (module(x).argmax(1) == y).all() and (module(x + 0.3).argmax(1) != y).all()
    sentence = certifier.refuses(module, Linf(Fraction(3, 10)))
    assert "in place" in sentence and sentence.endswith(".")


@every_certifier
@pytest.mark.parametrize("write", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_a_module_that_overwrites_its_input_is_refused(
    certifier: Certifier, write: Callable[[Tensor, float], Tensor]
) -> None:
    def written(net: Shortcut, images: Tensor) -> Any:
        return net.last(net.first(net.flat(write(images, 0.1))))

    assert "in place" in certifier.refuses(example(written)[0], Linf(Fraction(1, 10)))


def read_before(net: Shortcut, images: Tensor) -> Any:
    h = net.first(net.flat(images))
    shortcut = net.shortcut(h)
    return net.last(shortcut + net.block(net.relu_in_place(h)))


def not_read_again(net: Shortcut, images: Tensor) -> Any:
    h = net.relu_in_place(net.first(net.flat(images)))
    h += net.block(h)
    return net.last(F.relu(net.shortcut(net.flat(h)), inplace=True))


HARMLESS: list[Forward] = [read_before, not_read_again]


@pytest.mark.parametrize("forward", HARMLESS)
def test_a_value_that_is_not_read_again_may_be_overwritten(forward: Forward) -> None:
    module, x, y = example(forward)
    for tool in CERTIFIERS:
        assert tool.refuses(module, Linf(Fraction(0))) == ""
        assert tool.certify(module, x, y, Linf(Fraction(0))).all()
