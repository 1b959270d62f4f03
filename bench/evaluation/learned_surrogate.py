"""A surrogate that is learned from the labels of a built defense, as a transfer attack's model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.data import datasets
from bench.data.image_rows import windows
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.surrogate_model import Heartbeat, PlannedSurrogate, SurrogateModel
from bench.plugin import ThreatModel
from bench.training.label_surrogate import LabelSurrogateRecipe
from bench.training.surrogate_cache import load_or_learn, surrogate_digest


def learned_surrogate(
    built: BuiltDefense,
    threat: ThreatModel,
    recipe: LabelSurrogateRecipe,
    report: Callable[[str], None],
) -> PlannedSurrogate:
    """The surrogate of a defense under a threat model, learned when a cell needs it.

    The labels are those of a fresh copy that no attack queries. Raises UnavailableError where the
    data set has no training half.
    """
    digest = surrogate_digest(
        built.digest, recipe, datasets.training_digest(built.dataset), threat.ball
    )

    def make(heartbeat: Heartbeat) -> SurrogateModel:
        learned = load_or_learn(
            built.digest, built.label_function(), built.dataset, threat.ball, recipe,
            source=built.builder.source, device=built.settings.device, heartbeat=heartbeat,
            report=lambda text: report(f"{built.defense.name}, {recipe.name} surrogate: {text}"),
        )  # fmt: skip
        with torch.no_grad():
            return SurrogateModel(
                learned.module, torch.cat([learned.module(part) for part in windows(built.x)])
            )

    return PlannedSurrogate(digest, make)
