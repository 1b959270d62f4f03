"""Reads a model's output: column checks, predicted labels, rejection, and goals reached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.core.outcomes import NO_ANSWER, REJECTED


class ClassifierOnly(nn.Module):
    """A rejecting defense without its detector: images to logits [n, K]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, K] of images [n, C, H, W], without the rejection score."""
        logits: Tensor = self.module(images)[:, :-1]
        return logits


def column_mismatch(columns: int, classes: int, *, rejects: bool) -> str:
    """Why answers with so many columns do not fit these classes; empty where they fit."""
    if columns == classes + rejects:
        return ""
    score = ", then the rejection score less its threshold" if rejects else ""
    return (
        f"answers have {columns} columns; {classes + rejects} were expected: "
        f"one logit for each of {classes} classes{score}."
    )


def predicted_labels(answer: Tensor, *, rejects: bool) -> Tensor:
    """The predicted labels [..., n] int64 of answers [..., n, K]; NO_ANSWER where not finite.

    With `rejects` the answers are [..., n, K + 1], and the label is REJECTED where the last column
    is positive.
    """
    label = (answer[..., :-1] if rejects else answer).argmax(-1)
    if rejects:
        label = torch.where(answer[..., -1] > 0, REJECTED, label)
    return torch.where(answer.isfinite().all(-1), label, NO_ANSWER)


def reaches_goal(label: Tensor, known: Tensor, *, targeted: bool, rejects: bool) -> Tensor:
    """Whether labels [..., n] reach the goal: `known` [n] itself (targeted), or any other class.

    With `rejects` labels may be REJECTED, which reaches no goal. NO_ANSWER means that the defense
    has failed, which reaches every goal.
    """
    if targeted:
        return (label == known) | (label == NO_ANSWER)
    other = label != known
    return other & (label != REJECTED) if rejects else other


def checked_logits(answer: object, rows: int) -> Tensor:
    """Returns the answer, checked to be logits [rows, K].

    Raises:
        PluginError: it is no floating-point tensor of two dimensions with so many rows.
    """
    if not isinstance(answer, Tensor):
        raise PluginError(
            f"the defense returned {type(answer).__name__}; a tensor of logits "
            f"[{rows}, classes] was expected."
        )
    if answer.dim() != 2 or answer.shape[0] != rows or not answer.is_floating_point():
        raise PluginError(
            f"the defense returned {answer.dtype} {tuple(answer.shape)} for {rows} images; "
            f"floating point logits [{rows}, classes] were expected."
        )
    return answer
