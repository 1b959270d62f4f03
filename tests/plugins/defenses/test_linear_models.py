"""Linear models against scikit-learn: the same optimum, the same counts, an exact certificate."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.naive_bayes import MultinomialNB
from sklearn.svm import LinearSVC
from torch import nn

from bench.data import datasets
from bench.plugin import Linf, TrainingBatch
from bench.registry.registry import Registry
from bench.training.tasks import build_trained
from plugins.certifiers.linear_exact import LinearExact
from plugins.defenses.naive_bayes import fit_counts
from plugins.defenses.softmax_regression import regression
from plugins.defenses.support_vector import STRENGTH, hinge_loss
from tests.fixtures.images import accuracy, attacked, held_out
from tests.fixtures.small_defenses import DIGITS

Array = npt.NDArray[np.float64]


def training_half() -> tuple[Array, npt.NDArray[np.int64]]:
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    return half.images.reshape(len(half.labels), -1) / 255, half.labels


def named(name: str, folder: Path) -> nn.Module:
    return build_trained(Registry.load(folder / "none"), name, DIGITS, folder).build()


def parts(module: nn.Module) -> tuple[Array, Array]:
    weight, bias = module.parameters()
    return weight.detach().double().numpy(), bias.detach().double().numpy()


@pytest.mark.row("M03")
def test_the_support_vector_machine_is_near_the_optimum_of_scikit_learn(
    tmp_path: Path,
) -> None:
    module = named("linear-svm", tmp_path)
    x, y = training_half()
    reference = LinearSVC(
        C=1 / (STRENGTH * len(y)), multi_class="crammer_singer", intercept_scaling=10, tol=1e-3,
        max_iter=20_000, random_state=0,
    ).fit(x, y)  # fmt: skip
    best = objective(reference.coef_, reference.intercept_, x, y)
    ours = objective(*parts(module), x, y)
    assert 0.995 * best < ours < 1.06 * best


def objective(weight: Array, bias: Array, x: Array, y: npt.NDArray[np.int64]) -> float:
    """The loss of the paper, in numpy."""
    z = x @ weight.T + bias
    own = z[np.arange(len(y)), y]
    z[np.arange(len(y)), y] = -np.inf
    losses = np.maximum(0, 1 + z.max(1) - own)
    return float(losses.mean() + STRENGTH / 2 * (weight**2).sum())


@pytest.mark.row("M03")
def test_the_hinge_is_zero_beyond_the_margin_and_grows_by_the_shortfall() -> None:
    module = regression((1, 1, 2), 2)
    weight, bias = module.parameters()
    with torch.no_grad():
        weight.copy_(torch.eye(2))
        bias.zero_()
    x = torch.tensor([[3.0, 0.0], [1.0, 0.5], [0.0, 2.0]]).view(3, 1, 1, 2)
    for i, expected in enumerate((0.0, 0.5, 3.0)):
        batch = TrainingBatch(module, x[i : i + 1], torch.zeros(1).long(), x[i : i + 1])
        assert float(hinge_loss(batch, 0.0).detach()) == pytest.approx(expected)
    batch = TrainingBatch(module, x[:1], torch.zeros(1).long(), x[:1])
    assert float(hinge_loss(batch, 0.5).detach()) == pytest.approx(0.5 / 2 * 2)


@pytest.mark.row("M03")
def test_naive_bayes_has_the_probabilities_of_scikit_learn(tmp_path: Path) -> None:
    module = named("naive-bayes", tmp_path)
    x, y = training_half()
    reference = MultinomialNB(alpha=1.0).fit(x, y)
    test, labels = held_out()
    expected = reference.predict_log_proba(test.flatten(1).double().numpy())
    found = module(test).double().log_softmax(1).numpy()
    assert np.abs(found - expected).max() < 1e-4
    assert accuracy(module, test, labels) > 0.85


@pytest.mark.row("M03")
def test_the_counts_do_not_depend_on_the_order_of_the_images() -> None:
    x, y = held_out(100)
    one, other = regression((1, 8, 8), 10), regression((1, 8, 8), 10)
    fit_counts(TrainingBatch(one, x, y, x))
    fit_counts(TrainingBatch(other, x.flip(0), y.flip(0), x))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6)


@pytest.mark.row("M03", "V01")
@pytest.mark.parametrize("name", ["linear-svm", "naive-bayes"])
def test_no_attack_on_a_linear_model_goes_below_its_exact_certificate(
    name: str, tmp_path: Path
) -> None:
    module, (x, y) = named(name, tmp_path), held_out(200)
    ball, tool = Linf(Fraction(1, 20)), LinearExact()
    assert tool.refuses(module, ball) == ""
    certified = tool.certify(module, x, y, ball)
    robust = module(attacked(module, x, y, ball)).argmax(1) == y
    assert 20 < int(certified.sum()) < 180
    assert not (certified & ~robust).any() and int(robust.sum()) - int(certified.sum()) < 10
