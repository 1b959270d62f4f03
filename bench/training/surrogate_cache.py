"""Learned surrogates in the weights cache, and the label queries to a built defense."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.core.errors import BenchError, UnavailableError
from bench.core.hashing import digest
from bench.data import datasets, image_rows
from bench.engine.answers import checked_logits
from bench.engine.machine import this_machine
from bench.engine.model_access import SeededNoise, freeze
from bench.plugin import Dataset
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import example_key
from bench.threats.threat_model import describe_set
from bench.training.label_surrogate import (
    SURROGATE_VERSION,
    AverageOfMembers,
    Labels,
    LabelSurrogateRecipe,
    LearnedSurrogate,
    initial_members,
    learn_from_labels,
)
from bench.training.state import cpu_state_dict, write_weights
from bench.training.trained_weights import WeightsSource
from bench.training.weights_cache import WeightsFiles, load_weights

MOST_IMAGES = 2000  # training images that a surrogate learns from


def label_function(module: nn.Module, noise: SeededNoise | None = None, votes: int = 1) -> Labels:
    """The predicted labels of a built model: the class that most of `votes` answers name.

    `module` should be a copy that no attack queries; `noise` seeds a random defense. Ties go to the
    class with the smaller number. Raises BenchError where `votes` is below 1.
    """
    if votes < 1:
        raise BenchError(f"{votes} votes were asked for; at least 1 is needed.")

    def labels(images: Tensor) -> Tensor:
        answers = torch.stack([seeded_answer(images.clone()).argmax(1) for _ in range(votes)])
        return answers[0] if votes == 1 else most_frequent(answers)

    def seeded_answer(images: Tensor) -> Tensor:
        with torch.no_grad(), nullcontext() if noise is None else noise.scope():
            return checked_logits(module(images), len(images))

    return labels


def most_frequent(labels: Tensor) -> Tensor:
    """The most frequent of labels [votes, n], [n]; the smaller class of equally frequent ones.

    >>> most_frequent(torch.tensor([[2, 1], [2, 0], [0, 3]]))
    tensor([2, 0])
    """
    return F.one_hot(labels).sum(0).argmax(1)


def surrogate_digest(
    defense_digest: str,
    recipe: LabelSurrogateRecipe,
    training_digest: str,
    ball: PerturbationSet,
) -> str:
    """Digest of all that decides the weights; the set enters where the recipe uses it."""
    return digest(
        {
            "surrogate": SURROGATE_VERSION,
            "defense": defense_digest,
            "recipe": asdict(recipe),
            "training images": training_digest,
            "set": describe_set(ball) if recipe.uses_set else None,
        }
    )


def load_or_learn(
    defense_digest: str,
    labels: Labels,
    dataset: Dataset,
    ball: PerturbationSet,
    recipe: LabelSurrogateRecipe,
    *,
    source: WeightsSource | None = None,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] | None = None,
    heartbeat: Callable[[], None] | None = None,
) -> LearnedSurrogate:
    """The surrogate of a defense; learned and stored first if it is missing.

    `source` is where weights are found and stored; None: the cache folder. Machines may learn
    different weights, of which a database keeps the first. The other arguments are those of
    `learn_from_labels`; its images are `training_images`. Raises UnavailableError where the data
    set has no training half.
    """
    source = source or WeightsSource()
    images = training_images(dataset).to(device)
    classes = len(dataset.classes)
    key = surrogate_digest(defense_digest, recipe, datasets.training_digest(dataset), ball)
    found = source.find(key)
    if found is None:
        learned = learn_from_labels(
            labels, images, classes, ball, recipe, report=report, heartbeat=heartbeat
        )
        store_surrogate(source.files(key), recipe, learned, torch.device(device))
        found = source.find(key)
    if found is None:
        raise BenchError(
            f"the surrogate {key[:12]} is gone from {source.files(key).weights}; run it again."
        )
    module = AverageOfMembers(initial_members(recipe, dataset.shape, classes, torch.device("cpu")))
    load_weights(module, found.content, found.path)
    return LearnedSurrogate(
        freeze(module.to(device)),
        queries=int(found.record["queries"]),
        agreement=float(found.record["agreement"]),
        digest=digest({"surrogate": key, "weights": hashlib.sha256(found.content).hexdigest()}),
    )


def store_surrogate(
    files: WeightsFiles,
    recipe: LabelSurrogateRecipe,
    learned: LearnedSurrogate,
    device: torch.device,
) -> None:
    """Write the weights and their record."""
    record = {
        "surrogate": recipe.name,
        "queries": learned.queries,
        "agreement": learned.agreement,
        "machine": asdict(this_machine(device)),
        "finished": time.time(),
    }
    write_weights(files, cpu_state_dict(learned.module), record)


def training_images(dataset: Dataset) -> Tensor:
    """At most MOST_IMAGES training images [n, C, H, W] of a data set, by a keyed choice.

    Raises UnavailableError where the data set has no training half.
    """
    half = datasets.load_dataset(dataset).train
    if half is None:
        raise UnavailableError(
            f"a surrogate model is learned from training images, and only the test half of "
            f"{dataset.name} is in {datasets.data_folder()}; add the training half's files there."
        )
    rows = torch.arange(len(half.labels))
    order = example_key(0, "surrogate images", rows, torch.zeros_like(rows)).argsort(stable=True)
    chosen = order[:MOST_IMAGES].sort().values
    return image_rows.to_float(torch.tensor(half.images[chosen.numpy()]))
