"""Multinomial naive Bayes on pixel intensities, a linear classifier fitted from counts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bench.plugin import Defense, Recipe, TrainingBatch, hookimpl
from plugins.defenses.softmax_regression import regression, trained


def fit_counts(batch: TrainingBatch) -> None:
    """Fill the linear layer with the multinomial model, with one count added for each pixel.

    z_k = log p(k) + sum_i x_i log p(i | k), p(i | k) = (1 + ink_ki) / (d + sum_i ink_ki), where
    ink_ki sums pixel i over the images of class k. It is affine in the image and equals log p(k |
    x) up to a term that all classes share.
    """
    weight, bias = batch.model.parameters()
    member = F.one_hot(batch.y, len(bias)).double()
    ink = 1 + member.T @ batch.x.flatten(1).double()
    with torch.no_grad():
        weight.copy_((ink / ink.sum(1, keepdim=True)).log())
        bias.copy_((member.sum(0) / len(member)).log())


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the classifier; it is linear, so its certificate is exact."""
    yield Defense(
        name="naive-bayes",
        cite="https://nlp.stanford.edu/IR-book/html/htmledition/naive-bayes-text-classification-1.html",
        summary="Multinomial naive Bayes on pixels; its exact robust accuracy is certified.",
        recipe=Recipe(regression, epochs=0, fit=fit_counts),
        build=trained,
        quick=False,
    )
