"""Target classes: every rule gives a class that is not the label, the same one on every run."""

from __future__ import annotations

import torch

from bench.evaluation.targets import TARGET_FUNCTIONS

CLEAN_LOGITS = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(200) % 10


def test_the_next_class_wraps_around() -> None:
    assert TARGET_FUNCTIONS["next"](LABEL, CLEAN_LOGITS, 10, 0)[[0, 9]].tolist() == [1, 0]


def test_the_least_likely_class_is_never_the_label() -> None:
    target = TARGET_FUNCTIONS["least-likely"](LABEL, CLEAN_LOGITS, 10, 0)
    for row in range(200):
        others = CLEAN_LOGITS[row].clone()
        others[LABEL[row]] = torch.inf
        assert target[row] == others.argmin() != LABEL[row]


def test_random_targets_are_keyed_uniform_and_never_the_label() -> None:
    target = TARGET_FUNCTIONS["random"](LABEL, CLEAN_LOGITS, 10, 0)
    assert torch.equal(
        target[:50], TARGET_FUNCTIONS["random"](LABEL[:50], CLEAN_LOGITS[:50], 10, 0)
    )
    assert not torch.equal(target, TARGET_FUNCTIONS["random"](LABEL, CLEAN_LOGITS, 10, 1))
    assert not (target == LABEL).any()
    zeros = torch.zeros(9000, dtype=torch.int64)
    many = TARGET_FUNCTIONS["random"](zeros, torch.zeros(9000, 10), 10, 0)
    counts = torch.bincount(many, minlength=10)
    assert counts[0] == 0 and (counts[1:] - 1000).abs().max() < 150


def test_the_rule_all_gives_every_other_class_once() -> None:
    target = TARGET_FUNCTIONS["all"](LABEL, CLEAN_LOGITS, 10, 0).view(200, 9)
    for row in range(200):
        assert sorted([*target[row].tolist(), int(LABEL[row])]) == list(range(10))
