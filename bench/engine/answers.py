"""Reads a model's output: column checks, predicted labels, rejection, and goals reached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.core.outcomes import NO_ANSWER, REJECTED


class ClassifierOnly(nn.Module):
    """A rejecting defense whose detector is not asked: images to logits [n, K]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] to [n, K]."""
        logits: Tensor = self.module(images)[:, :-1]
        return logits


def column_mismatch(columns: int, classes: int, *, rejects: bool) -> str:
    """Why answers of so many columns are none about these classes; empty when they are."""
    if columns == classes + rejects:
        return ""
    score = ", then the rejection score less its threshold" if rejects else ""
    return (
        f"answers came with {columns} columns; {classes + rejects} were expected: "
        f"one logit for each of {classes} classes{score}."
    )


def predicted_labels(answer: Tensor, *, rejects: bool) -> Tensor:
    """[..., n] int64: the class that answers [..., n, K] name; NO_ANSWER where one is not finite.

    With `rejects` they are [..., n, K + 1], and REJECTED where the last column is positive.
    """
    label = (answer[..., :-1] if rejects else answer).argmax(-1)
    if rejects:
        label = torch.where(answer[..., -1] > 0, REJECTED, label)
    return torch.where(answer.isfinite().all(-1), label, NO_ANSWER)


def reaches_goal(label: Tensor, known: Tensor, *, targeted: bool, rejects: bool) -> Tensor:
    """[..., n] bool: the label is the known one (targeted), or an accepted other one.

    With `rejects` labels may be REJECTED; what is rejected reaches no goal. No answer at all is a
    defense that has failed: it reaches every goal.
    """
    if targeted:
        return (label == known) | (label == NO_ANSWER)
    other = label != known
    return other & (label != REJECTED) if rejects else other


def checked_logits(answer: object, rows: int) -> Tensor:
    """The answer, if it is a matrix of logits."""
    if not isinstance(answer, Tensor):
        raise PluginError(
            f"the defense answered with {type(answer).__name__}; a tensor of logits "
            f"[{rows}, classes] was expected."
        )
    if answer.dim() != 2 or answer.shape[0] != rows or not answer.is_floating_point():
        raise PluginError(
            f"the defense answered {answer.dtype} {tuple(answer.shape)} for {rows} images; "
            f"floating point logits [{rows}, classes] were expected."
        )
    return answer
