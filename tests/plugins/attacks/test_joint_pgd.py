"""Tests of plugins.attacks.joint_pgd: success needs a wrong label and an accepted image."""

from __future__ import annotations

import torch

from bench.plugin import margin
from plugins.attacks.joint_pgd import JointPGD, joint_loss
from tests.fixtures.rejecting_defenses import (
    SMALL_STEPS,
    rejects_by_second_pixel,
    run_on_grey_images,
)


def test_the_joint_attack_succeeds_where_an_attack_on_the_label_alone_fails() -> None:
    """Pixel 0 decides the label and must rise; pixel 1 decides the score and must fall to 0.3."""
    label_only, joint = (
        run_on_grey_images(SMALL_STEPS, rejects_by_second_pixel(0.3)),
        run_on_grey_images(JointPGD(), rejects_by_second_pixel(0.3)),
    )
    assert not label_only.broken.any()
    assert joint.broken.all()
    assert (joint.image[:, 0, 0, 0] > 0.5).all() and (joint.image[:, 0, 0, 1] <= 0.3).all()


def test_the_joint_loss_is_the_smaller_of_both_margins() -> None:
    answer = torch.tensor([[2.0, 1.0, 3.0], [1.0, 2.0, 3.0]])
    label = torch.tensor([0, 0])
    assert joint_loss(2)(answer, label).tolist() == [-1.0, -3.0]
    assert joint_loss(3)(answer, label).tolist() == margin(answer, label).tolist()
