"""Defensive distillation: learn soft answers at a high temperature. Papernot et al. 2016.

Broken: deployed at temperature 1, its logits are so large that the cross-entropy has no slope in
float32. The margin has, and so have the logits divided by the temperature (arXiv:1608.04644).
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
    """softmax(z / T) [n, K]."""
    return logits.div(temperature).softmax(1)


def teacher_loss(batch: TrainingBatch, temperature: float) -> Tensor:
    """-log softmax(z / T)_y: how the teacher learns."""
    return cross_entropy(batch.model(batch.x) / temperature, batch.y)


def student_loss(batch: TrainingBatch, temperature: float) -> Tensor:
    """-sum_k q_k log softmax(z / T)_k with the teacher's q = softmax(z' / T)."""
    teacher = require_type(batch.teacher, nn.Module, "the teacher")
    told = soft_labels(teacher(batch.x), temperature)
    return F.cross_entropy(batch.model(batch.x) / temperature, told, reduction="none")


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the student, and the teacher that it learns from."""
    numbers = {"temperature": TEMPERATURE}
    yield Defense(
        name="distillation-teacher",
        cite="arXiv:1511.04508",
        summary=f"Clean images at temperature {TEMPERATURE:g}; the teacher of distillation.",
        recipe=Recipe(
            cnn,
            partial(teacher_loss, temperature=TEMPERATURE),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options=numbers,
        ),
        build=trained,
        quick=False,
    )
    yield Defense(
        name="distillation",
        cite="arXiv:1511.04508",
        summary=f"Taught the soft answers of a teacher at temperature {TEMPERATURE:g}; broken.",
        recipe=Recipe(
            cnn,
            partial(student_loss, temperature=TEMPERATURE),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            teacher="distillation-teacher",
            options=numbers,
        ),
        build=trained,
        quick=False,
    )
