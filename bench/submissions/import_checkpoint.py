"""Imports a checkpoint: as a module for Python, or as a submission's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn
from torchvision.transforms import Normalize

from bench.core.errors import BenchError, UnavailableError
from bench.registry.submission import NAME_PATTERN
from bench.submissions.architectures import Architecture, find_architecture, normalisation
from bench.submissions.state_dicts import COUNTER, Fit, fitting_tensors, read_checkpoint
from bench.submissions.templates import AUTHOR, CARD_TEMPLATE, README_TEMPLATE

PLUGIN_END = '''

# --- What follows was added by `bench import`.

from torch import nn as _nn  # noqa: E402
{normalize}
from bench.plugin import Defense as _Defense  # noqa: E402
from bench.plugin import hookimpl as _hookimpl  # noqa: E402


def build_imported(loader):
    """The network with the weights of the checkpoint{after}."""
    classes = loader.classes
    net = loader.weights({expression}, "weights.safetensors")
    return {module}


@_hookimpl
def bench_defenses():
    """Register the imported network."""
    yield _Defense(
        name={name},
        build=build_imported,
        datasets=({dataset},),
        summary={summary},
    )
'''


@dataclass(frozen=True)
class ImportRequest:
    """A checkpoint, and what is known about the network that it belongs to."""

    checkpoint: Path
    architecture: str
    """`torchvision:NAME`, `timm:NAME` or `FILE.py:NAME`."""
    classes: int
    mean: tuple[float, ...] = ()
    """Per channel, of the normalisation before the network; empty: none."""
    std: tuple[float, ...] = ()
    key: str = ""
    """Place of the state dict in the checkpoint; empty: the one that fits."""
    ignore: tuple[str, ...] = ()
    """Patterns of tensors that may stay unused."""
    small_images: bool = False


def load_model(
    path: str | Path,
    arch: str | nn.Module,
    *,
    classes: int = 10,
    mean: Sequence[float] = (), std: Sequence[float] = (),
    key: str = "", ignore: Sequence[str] = (), small_images: bool = False,
) -> nn.Module:  # fmt: skip
    """A network with the weights of a checkpoint, for images [n, C, H, W] in [0, 1].

    Args:
        path: a file of `torch.save`, read without running its code, or of safetensors.
        arch: the network, or `torchvision:NAME`, `timm:NAME` or `FILE.py:NAME`.
        classes: the number of classes.
        mean: per channel, subtracted before the network; `std`: divides after that.
        key: the place of the state dict in the checkpoint; empty: the one that fits.
        ignore: patterns of tensors that may stay unused, as `normalize.*`.
        small_images: a torchvision ResNet with a 3x3 first convolution and no max-pooling.

    Returns:
        The network in eval mode, after the normalisation where one is given.

    Raises:
        BenchError: the checkpoint does not fit, or the architecture cannot be built.
        UnavailableError: a file or library is missing.
    """
    request = ImportRequest(
        Path(path), arch if isinstance(arch, str) else "", classes, tuple(mean), tuple(std), key,
        tuple(ignore), small_images,
    )  # fmt: skip
    if isinstance(arch, str):
        net = find_architecture(arch, small_images=small_images).build(classes)
    else:
        net = arch
    fitted_network(net, request)
    before = normalisation(request.mean, request.std)
    return (nn.Sequential(Normalize(mean, std), net) if before else net).eval()


def fitted_network(net: nn.Module, request: ImportRequest) -> Fit:
    """Load the fitting tensors of a checkpoint into a network; returns how they fit.

    Raises BenchError where they do not.
    """
    content = read_checkpoint(request.checkpoint)
    fit = fitting_tensors(content, net.state_dict(), key=request.key, ignore=request.ignore)
    missing, _ = net.load_state_dict(fit.found, strict=False)
    if any(not name.endswith(COUNTER) for name in missing):
        raise BenchError(f"the network does not take the tensors {', '.join(missing)}.")
    return fit


def write_imported(
    request: ImportRequest, name: str, dataset: str, folder: Path = Path(), author: str = AUTHOR
) -> tuple[Path, nn.Module, Fit]:
    """Write a submission's folder with the weights of a checkpoint.

    Args:
        request: the checkpoint and its architecture.
        name: the name of the submission and its folder.
        dataset: the data set.
        folder: where the folder is made.
        author: for the card.

    Returns:
        The folder, the network with its normalisation, and how the checkpoint fits.

    Raises:
        BenchError: the name is not allowed or taken, or the checkpoint does not fit.
        UnavailableError: a file cannot be read or written.
    """
    place = folder / name
    if not NAME_PATTERN.fullmatch(name) or place.exists():
        raise BenchError(
            f"--name is {name!r}; use 1 to 64 of a-z, 0-9, '.', '_', '-' that name no folder of "
            f"{folder.resolve()} yet."
        )
    before = normalisation(request.mean, request.std)
    architecture = find_architecture(request.architecture, small_images=request.small_images)
    net = architecture.build(request.classes)
    fit = fitted_network(net, request)
    state = {n: tensor.contiguous() for n, tensor in net.state_dict().items()}
    weights = safetensors.torch.save(state)
    texts = _texts(request, architecture, before, name, dataset, author)
    texts["card.toml"] += f'weights = "{hashlib.sha256(weights).hexdigest()}"\n'
    try:
        place.mkdir(parents=True)
        (place / "weights.safetensors").write_bytes(weights)
        for file, text in texts.items():
            (place / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnavailableError(f"{place} cannot be written: {error.strerror}.") from error
    whole = nn.Sequential(Normalize(request.mean, request.std), net) if before else net
    return place, whole.eval(), fit


def _texts(
    request: ImportRequest,
    architecture: Architecture,
    before: str,
    name: str,
    dataset: str,
    author: str,
) -> dict[str, str]:
    """The text files of the folder: name -> content."""
    title = f"{request.architecture} from {request.checkpoint.name}"[:200]
    end = PLUGIN_END.format(
        normalize="from torchvision.transforms import Normalize as _Normalize  # noqa: E402\n"
        if before
        else "",
        after=", after the normalisation" if before else "",
        expression=architecture.expression,
        module=f"_nn.Sequential(_{before}, net)" if before else "net",
        name=json.dumps(name),
        dataset=json.dumps(dataset),
        summary=json.dumps(f"{title}."),
    )
    filled: dict[str, Any] = {"kind": "defense", "name": name, "title": "", "author": ""}
    card = CARD_TEMPLATE.format(**filled)
    card = card.replace('title = ""', f"title = {json.dumps(title)}")
    card = card.replace('authors = [""]', f"authors = [{json.dumps(author)}]")
    source = architecture.source
    if not source.lstrip().startswith(('"""', "'''", "from __future__")):
        source = f'"""{title}."""\n\n{source}'
    return {
        "plugin.py": source.rstrip() + "\n" + end,
        "card.toml": card,
        "README.md": README_TEMPLATE.format(**{**filled, "title": title}),
    }
