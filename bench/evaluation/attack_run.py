"""`bench.attack`: one attack on a batch of images, verified by the referee."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.core.outcomes import Chunk, Outcomes, Verdict
from bench.data.datasets import Examples, content_digest
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.launcher import chosen_device, set_deterministic
from bench.evaluation.memory_plugins import (
    MEMORY,
    add_model,
    class_count,
    images_and_labels,
    memory_registry,
    require_module,
)
from bench.evaluation.plan import PlannedPair, why_not_applicable
from bench.plugin import Dataset, Goal, Nuisance, ThreatModel
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.registry.variants import variant
from bench.threats.threat_model import norm_ball
from bench.training.defense_builder import DefenseBuilder

Array: TypeAlias = Tensor | npt.NDArray[Any]
Radius: TypeAlias = float | Fraction | str
"""A radius: a number, or text such as `8/255`; a float stands for the simplest fraction with it."""


@dataclass(frozen=True)
class AttackRun:
    """The result of one attack on a batch of images, as the referee verified it."""

    images: Tensor
    """[n, C, H, W]: the adversarial example where there is one, else the last candidate."""
    success: Tensor
    """[n] bool: a verified adversarial example, or a clean image that is misclassified already."""
    distance: Tensor
    """[n] float64: from the clean image, in the norm of the set."""
    queries: Tensor
    """[n] int64: forward passes of the attack up to its first success."""
    gradients: Tensor
    """[n] int64: gradient evaluations up to its first success."""
    labels: Tensor
    """[n] int64: the class that the model predicts; -1 for logits that are not finite."""
    outcomes: Outcomes
    """The referee's outcomes, as the database stores them."""

    @property
    def robust_accuracy(self) -> float:
        """Share of the images on which the attack failed."""
        return float((~self.success).double().mean())


def attack(
    model: nn.Module,
    x: Array,
    y: Array,
    name: str = "pgd",
    *,
    norm: str = "Linf", eps: Radius, target_rule: str = "", nuisance: Nuisance | None = None,
    bpda: nn.Module | None = None, random_draws: int = 0,
    seed: int = 0, batch: int | None = None, device: str = "auto",
    **parameters: Any,
) -> AttackRun:  # fmt: skip
    """Run one attack on images and return the candidates that the referee has judged.

    `bench.attack(model, x, y, "pgd", eps=8/255, steps=40)`.

    Args:
        model: images [n, C, H, W] in [0, 1] to logits [n, K]; a copy is attacked, in eval mode.
        x: images [n, C, H, W], floats in [0, 1] or uint8.
        y: labels [n].
        name: the attack.
        norm: `Linf`, `L2` or `L1`; `eps` is the radius.
        target_rule: how targets are chosen, `next`, `least-likely` or `random`; empty: untargeted.
        nuisance: how images change on their way to the model; each counts by the share of draws.
        bpda: a BPDA approximation of the model, whose gradients the attack uses as well.
        random_draws: for a random model, the number of draws that each gradient averages.
        seed: seed of all random numbers.
        batch: images on the device at once; None: 512 of at most 256 values, else 128.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        parameters: parameters of the attack, such as `steps`.

    Returns:
        Images and counts, on the device and in the order of `x`.

    Raises:
        BenchError: an argument is wrong, the attack does not apply, or model or attack failed.
    """
    require_module(model, "model")
    images, labels = images_and_labels(x, y)
    registry = memory_registry()
    chosen = variant(registry.find("attack", name), parameters)
    registry.attacks[chosen.value.name] = chosen
    dataset = _array_dataset(registry, images, labels, class_count(model, images))
    defense = add_model(
        registry, model, dataset, name="model", bpda=bpda, random_draws=random_draws
    )
    goal = Goal("targeted", target_rule) if target_rule else Goal()
    threat = ThreatModel("python", dataset.name, norm_ball(norm, eps), goal=goal, nuisance=nuisance)
    pair = PlannedPair(threat, defense, chosen.value)
    _require_applicable(pair)
    settings = RunSettings(chosen_device(device), batch)
    builder = DefenseBuilder(registry, defense.name, dataset)
    chunks = _chunks(builder, pair, (images, labels), settings, seed)
    where = x.device if isinstance(x, Tensor) else torch.device("cpu")
    return _attack_run(chunks, where)


def _array_dataset(registry: Registry, x: Tensor, y: Tensor, classes: int) -> Dataset:
    """The record of images [n, C, H, W] with labels [n], which are never read from it."""
    if y.max() >= classes:
        raise BenchError(
            f"the labels go up to {int(y.max())}, and the model has {classes} classes; number "
            "them from 0."
        )
    names, shape = tuple(map(str, range(classes))), (x.shape[1], x.shape[2], x.shape[3])
    dataset = Dataset("arrays", names, shape, _no_images, len(y))
    registry.datasets[dataset.name] = Registration(dataset, MEMORY, "Python arrays", "")
    return dataset


def _chunks(
    builder: DefenseBuilder,
    pair: PlannedPair,
    examples: tuple[Tensor, Tensor],
    settings: RunSettings,
    seed: int,
) -> list[Chunk]:
    """The outcomes of a cell, with every image, for images [n, C, H, W] and labels [n]."""
    x, y = (part.numpy() for part in examples)
    known = FloatExamples(builder.dataset.name, x, y, content_digest(x, y))
    devices = [settings.device] if settings.device.type == "cuda" else []
    with deterministic_settings(), torch.random.fork_rng(devices):
        return list(CellPlayer("all").chunks(pair, BuiltDefense(builder, known, settings, seed)))


def _attack_run(chunks: Sequence[Chunk], device: torch.device) -> AttackRun:
    exact = [chunk.exact for chunk in chunks if chunk.exact is not None]
    order = np.argsort(np.concatenate([items for items, _ in exact]), kind="stable")
    images = np.concatenate([candidates for _, candidates in exact])[order]
    outcomes = Outcomes.concatenate([chunk.outcomes for chunk in chunks])

    def column(values: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return AttackRun(
        images=torch.tensor(images, device=device),
        success=column(outcomes.verdict == Verdict.BROKEN, torch.bool),
        distance=column(outcomes.distance, torch.float64),
        queries=column(outcomes.forwards, torch.int64),
        gradients=column(outcomes.gradients, torch.int64),
        labels=column(outcomes.label, torch.int64),
        outcomes=outcomes,
    )


class FloatExamples(Examples):
    """Images [n, C, H, W] with any float32 pixels in [0, 1], which no database stores."""

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """The images as float32 [n, C, H, W]."""
        return torch.tensor(self.images, device=device)

    def rows(self, device: torch.device | str) -> Tensor:
        """The images as float32 [n, C, H, W]."""
        return self.tensor(device)


def _no_images(folder: Path | None) -> Any:
    raise BenchError("these images are in memory and are not read.")


def _require_applicable(pair: PlannedPair) -> None:
    reason = why_not_applicable(pair.threat, pair.defense, pair.attack)
    if reason:
        raise BenchError(reason.replace("python reveals", "a Python call reveals"))


@contextmanager
def deterministic_settings() -> Iterator[None]:
    """The settings with which `bench run` computes; the former ones return at the end."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = (torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    set_deterministic()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
