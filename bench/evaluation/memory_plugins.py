"""Registers a model and arrays that a Python program passes, as a defense and a data set."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, error_text
from bench.core.hashing import digest
from bench.core.protocols import LeaderboardProtocol
from bench.data.datasets import content_digest
from bench.plugin import (
    Dataset,
    Defense,
    Goal,
    Images,
    PerturbationSet,
    Randomness,
    Split,
    ThreatModel,
)
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.registry.submission import NAME_PATTERN

MEMORY = "python"
"""The origin of a model that a Python program passes: no other process can build it."""
LEVEL_SLACK = 1e-3
"""Of a grey level: by how much a pixel may differ from k / 255 and still count as level k."""


def memory_registry() -> Registry:
    """A registry of the built-in and installed plugins, to which more may be added."""
    loaded = _loaded_plugins()
    tables = ("datasets", "threats", "attacks", "defenses", "certifiers", "diagnostics")
    copies: dict[str, Any] = {name: dict(getattr(loaded, name)) for name in tables}
    return replace(loaded, **copies)


@cache
def _loaded_plugins() -> Registry:
    return Registry.without_submissions()


def add_model(
    registry: Registry,
    model: nn.Module,
    dataset: Dataset,
    *,
    name: str,
    bpda: nn.Module | None = None,
    random_draws: int = 0,
) -> Defense:
    """Register a model as a defense for one data set.

    Args:
        registry: receives the defense.
        model: images [n, C, H, W] in [0, 1] to logits [n, K]; copies of it are evaluated.
        dataset: the data set.
        name: the name of the defense.
        bpda: the BPDA approximation (arXiv:1802.00420), whose gradients attacks use as well.
        random_draws: for a random model, the number of draws that each gradient averages (EOT,
            arXiv:1707.07397); 0: the model is deterministic.

    Returns:
        The registered record.

    Raises:
        BenchError: it is no module or cannot be copied, or the name is taken or not allowed.
    """
    if not NAME_PATTERN.fullmatch(name) or name in registry.defenses:
        raise BenchError(
            f"the model's name came as {name!r}; use 1 to 64 of a-z, 0-9, '.', '_', '-' that name "
            "no registered defense."
        )
    parts = {"model": _copied(model, "model")}
    if bpda is not None:
        parts["bpda"] = _copied(bpda, "BPDA approximation")
    defense = Defense(
        name,
        build=_copies_of(parts["model"]),
        datasets=(dataset.name,),
        summary=f"{type(model).__name__}, evaluated from Python.",
        bpda=_copies_of(parts["bpda"]) if bpda is not None else None,
        randomness=Randomness(random_draws) if random_draws else None,
    )
    source = digest({role: module_digest(part) for role, part in parts.items()})
    registry.defenses[name] = Registration(defense, MEMORY, f"Python model {name}", source)
    return defense


def require_module(model: object, what: str) -> None:
    """Raises BenchError where the model is no torch module."""
    if not isinstance(model, nn.Module):
        raise BenchError(
            f"the {what} is {type(model).__name__}; a torch.nn.Module was expected: wrap a "
            "function in a module whose forward calls it."
        )


def _copied(model: nn.Module, what: str) -> nn.Module:
    require_module(model, what)
    try:
        return copy.deepcopy(model).cpu()
    except PLUGIN_EXCEPTIONS as error:
        raise BenchError(
            f"the {what} cannot be copied, which evaluation needs ({error_text(error)}); keep in "
            "the module only what copy.deepcopy accepts."
        ) from error


def _copies_of(model: nn.Module) -> Callable[[object], nn.Module]:
    """The function that builds a defense: a new copy of the model each time."""
    return lambda _: copy.deepcopy(model)


def module_digest(model: nn.Module) -> str:
    """SHA-256 of a module's class, layers, parameters and buffers.

    Attributes that are no parameters or buffers and that its `repr` does not show are no part.
    """
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            # bfloat16 has no counterpart in numpy; the bytes are the same.
            content = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(content.tobytes())
        else:
            sha.update(f"{name} {value!r}".encode())
    kind = type(model)
    return digest([f"{kind.__module__}.{kind.__qualname__}", repr(model), sha.hexdigest()])


def class_count(model: nn.Module, x: Tensor) -> int:
    """K, the number of classes, from the answer [1, K] to the first of the images [n, C, H, W].

    Raises BenchError where the model does not answer the image, or not with logits [1, K].
    """
    try:
        own = copy.deepcopy(model).eval()
        device = next(iter(own.parameters()), x).device
        with torch.no_grad():
            answer = own(x[:1].clone().to(device))
    except PLUGIN_EXCEPTIONS as error:
        raise BenchError(
            f"the model does not answer images {list(x.shape)}: {error_text(error)}."
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 1:
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise BenchError(f"the model answers one image with {found}; logits [1, K] were expected.")
    return int(answer.shape[1])


def images_and_labels(
    x: Tensor | npt.NDArray[Any], y: Tensor | npt.NDArray[Any]
) -> tuple[Tensor, Tensor]:
    """Images as float32 [n, C, H, W] in [0, 1] and labels as int64 [n], on the CPU.

    Raises BenchError for another shape or type, pixels outside [0, 1] or labels that do not fit.
    """
    images, labels = torch.as_tensor(x).detach().cpu(), torch.as_tensor(y).detach().cpu()
    if images.dtype == torch.uint8:
        images = images.float() / 255
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise BenchError(
            f"the images are {images.dtype} {list(images.shape)}; uint8 or floats [n, C, H, W] "
            "were expected."
        )
    if not (images.isfinite().all() and images.min() >= 0 and images.max() <= 1):
        raise BenchError(
            f"the images have pixels from {images.min():.4g} to {images.max():.4g}; [0, 1] was "
            "expected: move the normalisation into the model."
        )
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != (len(images),) or labels.min() < 0:
        raise BenchError(
            f"the labels are {labels.dtype} {list(labels.shape)}; class numbers [{len(images)}] "
            "from 0 were expected."
        )
    return images.float().contiguous(), labels.long()


def add_arrays(registry: Registry, x: Tensor, y: Tensor, classes: int) -> Dataset:
    """Register images [n, C, H, W] and labels [n] as the test half of a data set.

    Raises BenchError where a pixel is no multiple of 1/255, or a label is no class.
    """
    levels = x.double() * 255
    if (levels - levels.round()).abs().max() > LEVEL_SLACK:
        raise BenchError(
            "the images have pixels that are no multiple of 1/255; pass the 8-bit images, or use "
            "bench.attack, which takes any floats."
        )
    if y.max() >= classes:
        raise BenchError(
            f"the labels go up to {int(y.max())}, and the model has {classes} classes; number "
            "them from 0."
        )
    test = Split(levels.round().to(torch.uint8).numpy(), y.numpy().astype(np.int64))
    name = f"arrays-{content_digest(*test)[:8]}"
    images = Images(None, test, np.arange(len(test.labels)))
    shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
    names = tuple(map(str, range(classes)))
    dataset = Dataset(name, names, shape, lambda _: images, len(test.labels), local=True)
    registry.datasets[name] = Registration(dataset, MEMORY, f"Python arrays {name}", "")
    return dataset


def add_threat_model(
    registry: Registry, dataset: Dataset, ball: PerturbationSet, required: tuple[str, ...], n: int
) -> ThreatModel:
    """The registered threat model with these rules, else a new one that ranks nothing.

    Args:
        registry: receives a new one.
        dataset: the data set.
        ball: the perturbation set.
        required: the attacks that a new one names.
        n: the number of examples of a new one.

    Returns:
        An untargeted threat model with gradient access.
    """
    name = f"{dataset.name}-{ball.name.lower()}-{str(ball.eps).replace('/', '_')}"
    made = ThreatModel(
        name, dataset.name, ball, goal=Goal(), examples=n,
        protocol=LeaderboardProtocol(required=required, ranked=False),
        summary=f"{ball.name} changes up to {ball.eps} on {dataset.name}; white-box.",
    )  # fmt: skip
    for known in registry.threats.values():
        if known.value.id == made.id:
            return known.value
    registry.threats[name] = Registration(made, MEMORY, f"Python threat model {name}", "")
    return made
