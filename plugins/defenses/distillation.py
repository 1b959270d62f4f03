"""Defensive distillation: trains a student on a teacher's soft labels at a high temperature.

Papernot et al. 2016, arXiv:1511.04508. It is broken: at temperature 1 the logits are so large that
the cross-entropy has no gradient in float32. The margin has one, and so have logits divided by the
temperature (arXiv:1608.04644).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Defense, Recipe, TrainingBatch, cross_entropy, hookimpl, require_type
from plugins.defenses._cnn import cnn, trained

TEMPERATURE = 40.0


def soft_labels(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities softmax(z / T) [n, K] of logits z [n, K]."""
    return logits.div(temperature).softmax(1)


def teacher_loss(batch: TrainingBatch, temperature: float) -> Tensor:
    """The teacher's cross-entropy -log softmax(z / T)_y [n] at temperature T."""
    return cross_entropy(batch.model(batch.x) / temperature, batch.y)


def student_loss(batch: TrainingBatch, temperature: float) -> Tensor:
    """The student's cross-entropy with the teacher's soft labels at temperature T, [n].

    -sum_k q_k log softmax(z / T)_k, with q = softmax(z' / T) of the teacher's logits z'.
    """
    teacher = require_type(batch.teacher, nn.Module, "the teacher")
    target = soft_labels(teacher(batch.x), temperature)
    return F.cross_entropy(batch.model(batch.x) / temperature, target, reduction="none")


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the teacher and the student."""
    options = {"temperature": TEMPERATURE}
    yield Defense(
        name="distillation-teacher",
        cite="arXiv:1511.04508",
        summary=f"Trained at temperature {TEMPERATURE:g}; the teacher of `distillation`.",
        recipe=Recipe(
            cnn,
            partial(teacher_loss, temperature=TEMPERATURE),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options=options,
        ),
        build=trained,
        quick=False,
    )
    yield Defense(
        name="distillation",
        cite="arXiv:1511.04508",
        summary=f"Trained on a teacher's soft labels at temperature {TEMPERATURE:g}; broken.",
        recipe=Recipe(
            cnn,
            partial(student_loss, temperature=TEMPERATURE),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            teacher="distillation-teacher",
            options=options,
        ),
        build=trained,
        quick=False,
    )
