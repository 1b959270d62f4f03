"""Keyed random numbers, losses, `straight_through` and `require_type`."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare, kstest, kurtosis
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.plugin import (
    KeyedRandomNumbers,
    cross_entropy,
    example_key,
    margin,
    margin_to,
    name_to_int64,
    require_type,
    select_column,
    straight_through,
)
from bench.threats.random_numbers import mix


def draws(
    rows: int = 64, *, seed: int = 0, name: str = "a", run: int = 0, t: int = 0
) -> KeyedRandomNumbers:
    example = torch.arange(rows)
    runs = torch.full_like(example, run)
    return KeyedRandomNumbers(example_key(seed, name, example, runs), torch.full_like(example, t))


def uniform(**changes: int | str) -> Tensor:
    return draws(**changes).uniform("noise", (1, 6, 5))  # type: ignore[arg-type]


# Keyed numbers.


def test_splitmix64_gives_the_published_sequence() -> None:
    """The first outputs for seed 1234567, as in the algorithm's reference program."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + (i + 1) * golden) % 2**64 for i in range(5)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    assert [int(z) % 2**64 for z in mix(signed)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "b"}, {"run": 1}, {"t": 1}, {"t": -1}])
def test_each_part_of_the_key_changes_every_row(change: dict[str, int | str]) -> None:
    first, second = uniform(), uniform(**change)
    assert ((first - second).abs().flatten(1) > 1e-6).float().mean(1).min() > 0.9


def test_numbers_depend_on_the_name_and_not_on_the_order_of_calls() -> None:
    one = draws()
    first, second = one.uniform("a", (4,)), one.uniform("b", (4,))
    assert not torch.equal(first, second)
    other = draws()
    assert torch.equal(other.uniform("b", (4,)), second)
    assert torch.equal(other.uniform("a", (4,)), first)


KINDS: list[Callable[[KeyedRandomNumbers], Tensor]] = [
    lambda d: d.uniform("noise", (3, 7, 5)),
    lambda d: d.normal("noise", (3, 7, 5)),
    lambda d: d.integers("noise", 10, (3, 7, 5)),
]


@pytest.mark.parametrize("kind", KINDS, ids=["uniform", "normal", "integers"])
def test_the_numbers_of_an_example_are_the_same_in_any_batch_and_order(
    kind: Callable[[KeyedRandomNumbers], Tensor],
) -> None:
    example = torch.arange(96)
    whole = kind(draws(96))
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:64], order[:32], example[40:72], order[:7], order[:1]):
        key = example_key(0, "a", rows, torch.zeros_like(rows))
        assert torch.equal(kind(KeyedRandomNumbers(key, torch.zeros_like(rows))), whole[rows])


@pytest.mark.parametrize("kind", KINDS, ids=["uniform", "normal", "integers"])
def test_global_random_state_is_not_touched(kind: Callable[[KeyedRandomNumbers], Tensor]) -> None:
    before = torch.random.get_rng_state()
    kind(draws())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_uniform_numbers_are_uniform_within_a_row_and_across_rows() -> None:
    """24 bits each, at both ends of the range, in [0, 1)."""
    sample = draws(2000).uniform("noise", (256,))
    assert sample.min() >= 0
    assert sample.max() < 1
    for block in (sample, sample[:, :1], sample[:1].expand(1, -1), sample[:, 1::2]):
        counts = torch.histc(block.flatten(), 16, 0, 1)
        assert chisquare(counts.numpy()).pvalue > 1e-3
    low_bits = (sample * 2**24).long() % 16
    assert chisquare(low_bits.flatten().bincount().numpy()).pvalue > 1e-3


def test_neighbours_in_any_direction_are_uncorrelated() -> None:
    """Neighbouring pixels, examples, steps, runs and seeds: |r| under 4 standard deviations."""
    sample = draws(500).uniform("noise", (200,))
    pairs = [
        (sample[:, 1:], sample[:, :-1]),
        (sample[:, 2:], sample[:, :-2]),
        (sample[1:], sample[:-1]),
        *(
            (sample, draws(500, **change).uniform("noise", (200,)))  # type: ignore[arg-type]
            for change in ({"t": 1}, {"run": 1}, {"seed": 1})
        ),
        (sample, draws(500).uniform("other", (200,))),
    ]
    for first, second in pairs:
        both = torch.stack([first.flatten(), second.flatten()]).double()
        assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / math.sqrt(both.shape[1])


def test_one_flipped_bit_of_the_key_flips_half_of_the_word() -> None:
    key = mix(torch.arange(500))
    for bit in (0, 17, 40, 62):
        flipped = mix(key) ^ mix(key ^ (1 << bit))
        ones = sum(int(((flipped >> i) & 1).sum()) for i in range(64))
        assert ones / (64 * 500) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(64 * 500))


def test_normal_numbers_are_normal() -> None:
    sample = draws(400).normal("noise", (101,)).flatten().double().numpy()
    assert kstest(sample, "norm").pvalue > 1e-3
    assert kurtosis(sample, fisher=False) == pytest.approx(3, abs=0.1)
    odd = draws(400).normal("noise", (1,)).double().flatten().numpy()
    assert kstest(odd, "norm").pvalue > 1e-3


def test_the_two_halves_of_a_normal_row_are_independent() -> None:
    sample = draws(2000).normal("noise", (2,)).double()
    assert abs(float(torch.corrcoef(sample.T)[0, 1])) < 4 / math.sqrt(2000)
    assert abs(float(torch.corrcoef(sample.square().T)[0, 1])) < 4 / math.sqrt(2000)


def test_integers_cover_their_range_evenly() -> None:
    sample = draws(1000).integers("class", 7, (9,))
    counts = sample.flatten().bincount(minlength=7)
    assert len(counts) == 7
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_words_are_the_same_in_every_process() -> None:
    assert name_to_int64("pgd") == 5469190902827571692


# Losses.

LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 3.5], [1.0, 1.0, 0.0]])
LABEL = torch.tensor([0, 1, 1])


def test_the_margin_is_positive_exactly_where_the_prediction_is_wrong() -> None:
    assert margin(LOGITS, LABEL).tolist() == [-1.0, 0.5, 0.0]
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    label = torch.arange(200) % 5
    assert torch.equal(margin(logits, label) > 0, logits.argmax(1) != label)


def test_the_margin_is_the_largest_margin_to_another_class() -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    label = torch.arange(50) % 4
    each = torch.stack([margin_to((label + k) % 4)(logits, label) for k in (1, 2, 3)])
    assert torch.equal(each.amax(0), margin(logits, label))


def test_cross_entropy_is_per_example() -> None:
    loss = cross_entropy(LOGITS, LABEL)
    assert loss.shape == (3,)
    assert torch.allclose(loss, -LOGITS.log_softmax(1)[torch.arange(3), LABEL])


@pytest.mark.parametrize("loss", [cross_entropy, margin, margin_to(torch.tensor([2] * 32))])
def test_the_gradient_of_a_row_does_not_depend_on_the_other_rows(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    logits = torch.randn(32, 10, generator=torch.Generator().manual_seed(2))
    label = torch.arange(32) % 2

    def slope(answers: Tensor) -> Tensor:
        leaf = answers.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(leaf, label).sum(), leaf)
        return found

    beside = logits.clone()
    beside[1:] = 100 * beside[1:].flip(0)
    assert torch.equal(slope(logits)[0], slope(beside)[0])


def test_select_column_takes_one_column_per_row() -> None:
    assert select_column(LOGITS, torch.tensor([1, 2, 0])).tolist() == [1.0, 3.5, 1.0]


# Straight-through.


def rounded(images: Tensor) -> Tensor:
    return (images * 7).round() / 7


def test_straight_through_is_the_function_in_the_forward_pass() -> None:
    x = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(straight_through(rounded)(x), rounded(x))


def test_straight_through_is_the_identity_in_the_backward_pass() -> None:
    """d/dx f(g(x)) becomes f'(g(x)): the gradient of g is replaced by the identity."""
    x = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(4)).requires_grad_()
    (slope,) = torch.autograd.grad(straight_through(rounded)(x).square().sum(), x)
    assert torch.equal(slope, 2 * rounded(x.detach()))


def test_straight_through_gives_a_gradient_where_the_true_one_is_zero() -> None:
    layer = torch.nn.Linear(36, 3)
    x = torch.rand(4, 36, generator=torch.Generator().manual_seed(5)).requires_grad_()
    label = torch.tensor([0, 1, 2, 0])
    (plain,) = torch.autograd.grad(F.cross_entropy(layer(rounded(x)), label), x)
    through = straight_through(rounded)
    (helped,) = torch.autograd.grad(F.cross_entropy(layer(through(x)), label), x)
    assert torch.equal(plain, torch.zeros_like(plain))
    assert (helped != 0).any(1).all()


def test_require_type_returns_the_value_or_names_its_type() -> None:
    network = nn.Sequential()
    assert require_type(network, nn.Sequential, "the teacher") is network
    with pytest.raises(PluginError, match=r"^the teacher is NoneType; Sequential was expected\.$"):
        require_type(None, nn.Sequential, "the teacher")
