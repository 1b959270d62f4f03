"""Defensive distillation: soft labels, and the gradient that returns at a lower scale of the
logits.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bench.plugin import TrainingBatch, cross_entropy
from plugins.defenses.distillation import soft_labels, student_loss, teacher_loss
from tests.fixtures.protocol_dg import DigitsTestbed, fgsm, pgd, recipe, testbed

__all__ = ["testbed"]

ROW = pytest.mark.row("D10")


def batch(seed: int = 0) -> TrainingBatch:
    """Sixteen images, with a student and a teacher of one matrix each."""
    torch.manual_seed(seed)
    x, y = torch.rand(16, 1, 2, 2), torch.randint(3, (16,))
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2))
    return TrainingBatch(student, x, y, x, teacher=teacher)


@ROW
@pytest.mark.parametrize("temperature", [1.0, 20.0, 100.0])
def test_soft_labels_are_probabilities_that_temperature_flattens(temperature: float) -> None:
    logits = 30 * torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
    soft = soft_labels(logits, temperature)
    assert torch.allclose(soft.sum(1), torch.ones(64))
    assert (soft.argmax(1) == logits.argmax(1)).all()
    hotter = soft_labels(logits, 2 * temperature)
    assert (hotter.amax(1) <= soft.amax(1) + 1e-6).all()


@ROW
def test_at_temperature_one_a_certain_teacher_gives_clean_training() -> None:
    one = batch()
    certain = nn.Module()
    certain.forward = lambda x: 1e4 * torch.nn.functional.one_hot(one.y, 3).float()
    found = student_loss(one._replace(teacher=certain), temperature=1.0)
    assert torch.allclose(found, cross_entropy(one.model(one.x), one.y), atol=1e-6)
    assert torch.allclose(teacher_loss(one, 1.0), found, atol=1e-6)


@ROW
def test_the_loss_is_the_cross_entropy_with_soft_labels_at_the_temperature() -> None:
    one = batch()
    assert one.teacher is not None
    q = (one.teacher(one.x) / 7).softmax(1)
    p = (one.model(one.x) / 7).softmax(1)
    assert torch.allclose(student_loss(one, 7.0), -(q * p.log()).sum(1), atol=1e-6)
    alike = student_loss(one._replace(model=one.teacher), 7.0)
    entropy = -(q * q.log()).sum(1)
    assert torch.allclose(alike, entropy, atol=1e-6), "a perfect student has the teacher's entropy"
    assert (student_loss(one, 7.0) >= entropy - 1e-6).all()


@ROW
def test_large_logits_have_no_gradient_until_they_are_divided() -> None:
    """exp(-200) is zero in float32; divided by 40 the logits are those of an ordinary network."""
    logits = torch.tensor([[200.0, 0.0, -10.0]], requires_grad=True)
    label = torch.tensor([0])
    (plain,) = torch.autograd.grad(cross_entropy(logits, label).sum(), logits)
    (cool,) = torch.autograd.grad(cross_entropy(logits / 40, label).sum(), logits)
    assert not plain.any()
    assert cool.abs().amax() > 1e-6


class Cooled(nn.Module):
    """The logits divided by the temperature: the same predictions with a gradient."""

    def __init__(self, classifier: nn.Module, temperature: float) -> None:
        super().__init__()
        self.classifier, self.temperature = classifier, temperature

    def forward(self, images: Tensor) -> Tensor:
        """To logits [n, K]."""
        logits: Tensor = self.classifier(images)
        return logits / self.temperature


@ROW
@pytest.mark.slow
def test_distillation_resists_pgd_and_is_broken_with_rescaled_logits(
    testbed: DigitsTestbed,
) -> None:
    """With T = 40: clean .956, PGD on the cross-entropy .822, on logits / T .040."""
    testbed.train("teacher", recipe(partial(teacher_loss, temperature=40.0)))
    student = testbed.train(
        "pupil", recipe(partial(student_loss, temperature=40.0), teacher="teacher")
    )
    assert testbed.clean(student) > 0.93
    x = testbed.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(student(x), testbed.y).sum(), x)
    assert (slope.flatten(1) == 0).all(1).float().mean() > 0.5, "most slopes underflow to zero"
    assert testbed.robust(student, fgsm()) > 0.6
    assert testbed.robust(student, pgd(40)) >= 0.6
    assert testbed.robust(student, pgd(40), through=Cooled(student, 40.0)) < 0.1
    plain = testbed.train("standard", recipe())
    assert testbed.robust(student, pgd(40), through=plain) < 0.35, "images against another network"
