"""Diagnostic of jumps: logits must not jump where the predicted class changes.

A jump has no slope, so that no gradient leads across the decision boundary, however exact it is on
either side (shattered gradients, arXiv:1802.00420).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl
from plugins.diagnostics._model_probe import ModelDiagnostic, rounding, seeded_logits, warn_if

POINTS = 33
"""Points on each line."""
LARGEST_STEP = 0.5
"""Share of the way of the logits, along a line, that one step makes where there is a jump."""
LEAST_LINES = 10
JUMP_SHARE = 0.5
"""Share of the lines on which logits jump above which gradients do not lead across."""


class LogitJumps(ModelDiagnostic):
    """Whether logits jump at decision boundaries on lines between images of different classes."""

    name = "logit-jumps"
    cite = "arXiv:1802.00420"
    summary = "Raised when logits jump where the predicted class changes."
    images = 48

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the number of lines on which logits jump."""
        classes = seeded_logits(subject.module, subject.x).argmax(1)
        pairs = [_next_of_another_class(classes, i) for i in range(len(classes))]
        start = [i for i, j in enumerate(pairs) if j >= 0]
        if len(start) < LEAST_LINES:
            sentence = f"{len(start)} lines cross a boundary; at least {LEAST_LINES} are needed."
            return Evidence(Finding.NOT_TESTED, sentence)
        x = subject.x
        jumps = int(jumps_at_boundary(subject, x[start], x[[pairs[i] for i in start]]).sum())
        sentence = (
            f"logits jump where the predicted class changes on {jumps} of {len(start)} lines"
            " between images of two classes"
        )
        if subject.bpda is not None and jumps > JUMP_SHARE * len(start):
            note = "attacks use the declared BPDA approximation, which approximation-ascends tests"
            return Evidence(Finding.NOT_TESTED, f"{sentence}; {note}.")
        return warn_if(
            jumps > JUMP_SHARE * len(start),
            f"{sentence}; a warning needs more than {JUMP_SHARE:.0%}.",
        )


def _next_of_another_class(classes: Tensor, i: int) -> int:
    """The next index after i with another class [n]; -1 where all are alike."""
    rest = torch.roll(torch.arange(len(classes)), -i - 1)[:-1].tolist()
    return next((j for j in rest if classes[j] != classes[i]), -1)


def jumps_at_boundary(subject: Subject, start: Tensor, end: Tensor) -> Tensor:
    """[n]: lines from start to end [n, C, H, W] that are mostly steps across boundaries."""
    path = torch.stack(
        [
            seeded_logits(subject.module, (1 - t) * start + t * end).double()
            for t in torch.linspace(0, 1, POINTS).tolist()
        ]
    )
    steps = (path[1:] - path[:-1]).norm(dim=2)
    classes = path.argmax(2)
    changes = classes[1:] != classes[:-1]
    # With several boundaries on a line each jump is a part of the way.
    at_boundary = torch.where(changes, steps, 0).sum(0)
    noise = 100 * rounding(path[0].float()).double()
    jumps: Tensor = (at_boundary > LARGEST_STEP * steps.sum(0)) & (at_boundary > noise)
    return jumps


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the search for jumps."""
    yield LogitJumps()
