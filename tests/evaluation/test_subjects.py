"""What diagnostics get: copied images, training images, and the approximation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench.data import datasets
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.diagnostics import DIAGNOSTIC_IMAGES
from bench.evaluation.fresh_process import fresh_process
from bench.evaluation.subjects import TRAINING_IMAGES, subject_of
from bench.plugin import AnswerWork
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from bench.training.tasks import build_trained


@pytest.fixture(scope="module")
def linear() -> Iterator[BuiltDefense]:
    registry = Registry.without_submissions()
    dataset = registry.datasets["digits"].value
    build_trained(registry, "linear", dataset)
    examples = datasets.first_examples(dataset, 300)
    builder = DefenseBuilder(registry, "linear", dataset)
    yield BuiltDefense(builder, examples, RunSettings(torch.device("cpu")), 0)
    fresh_process().close()


def test_the_first_images_are_copied(linear: BuiltDefense) -> None:
    assert DIAGNOSTIC_IMAGES == 256
    subject = subject_of(linear, DIAGNOSTIC_IMAGES)
    assert torch.equal(subject.x, linear.x[:256]) and torch.equal(subject.y, linear.y[:256])
    subject.x.zero_()
    subject.y.zero_()
    assert linear.x[:256].any() and linear.y[:256].any()


def test_fewer_images_are_all_handed_over(linear: BuiltDefense) -> None:
    assert len(subject_of(linear, 999).x) == 300


def test_training_images_are_of_the_training_half(linear: BuiltDefense) -> None:
    training = subject_of(linear, 8).training
    assert training is not None
    images, labels = training
    assert len(images) == len(labels) == TRAINING_IMAGES
    half = datasets.load_dataset(linear.dataset).train
    assert half is not None
    assert torch.equal((255 * images).round().byte(), torch.tensor(half.images[:TRAINING_IMAGES]))
    assert labels.tolist() == half.labels[:TRAINING_IMAGES].tolist()


def test_the_work_of_an_answer_is_that_of_the_attacked_copy(linear: BuiltDefense) -> None:
    subject = subject_of(linear, 8)
    assert subject.answer_work is not None
    assert subject.answer_work(subject.x) == AnswerWork(passes=1, gradients=0)


def test_another_process_answers_alike(linear: BuiltDefense) -> None:
    subject = subject_of(linear, 8)
    assert subject.fresh_process is not None
    there = subject.fresh_process(subject.x)
    assert not isinstance(there, str), there
    with torch.no_grad():
        assert torch.equal(there, linear.classifier(subject.x))
