"""Reads a model's output: column checks, predicted labels, rejection, and goals reached."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.core.outcomes import NO_ANSWER, REJECTED
from bench.engine.values import description


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


def vote_counts(answers: Tensor, *, rejects: bool) -> Tensor:
    """The number of draws [n, K] with each label, from answers [draws, n, K].

    With `rejects` column K is positive where more than half of the draws reject the image. Answers
    are NaN where more than half of the draws are not finite.
    """
    draws, _, columns = answers.shape
    classes = columns - rejects
    label = predicted_labels(answers, rejects=rejects)
    one_hot = nn.functional.one_hot(label.clamp_min(0), classes) * (label >= 0)[..., None]
    counts = one_hot.sum(0).to(answers.dtype)
    if rejects:
        rejected = (label == REJECTED).sum(0) - draws / 2
        counts = torch.cat([counts, rejected[:, None].to(answers.dtype)], 1)
    missing = (label == NO_ANSWER).sum(0) > draws / 2
    return counts.masked_fill(missing[:, None], torch.nan)


def checked_logits(answer: object, rows: int, title: str = "the defense") -> Tensor:
    """Returns the answer, checked to be logits [rows, K] of float32 or float64.

    Raises:
        PluginError: it is something else; `title` is the subject of the message.
    """
    if not isinstance(answer, Tensor):
        raise PluginError(
            f"{title} returned {description(answer)}; a tensor of logits [{rows}, classes] was "
            f"expected: {_unpacking(answer)}."
        )
    if answer.dim() != 2 or answer.shape[0] != rows or not answer.is_floating_point():
        raise PluginError(
            f"{title} returned {description(answer)} for {rows} images; floating-point logits "
            f"[{rows}, classes] were expected: return one row for each image."
        )
    if answer.dtype not in (torch.float32, torch.float64):
        raise PluginError(
            f"{title} returned {answer.dtype} logits; torch.float32 was expected, because attacks "
            "cannot follow differences that are rounded away: compute in float32."
        )
    return answer


def _unpacking(answer: object) -> str:
    """How the logits are taken out of an answer that is no tensor."""
    if isinstance(answer, Mapping):
        return f"return one entry of it ({', '.join(map(str, list(answer)[:3]))})"
    if isinstance(answer, tuple | list):
        return "return the logits alone"
    return "return the logits"
