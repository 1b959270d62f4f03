"""`bench import`: a checkpoint as a submission's folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.core.errors import BenchError, UnavailableError

if TYPE_CHECKING:
    from torch import nn

CHECKED_IMAGES = 200
"""Test images whose clean accuracy is printed, so that a wrong normalisation is noticed."""


def add_import_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command("import")(import_checkpoint)


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth, .pt or .safetensors file.")],
    arch: Annotated[
        str, typer.Option(help="torchvision:resnet18, timm:NAME, or model.py:NAME for your code.")
    ],
    dataset: Annotated[str, typer.Option(help="The data set that it was trained on.")],
    name: Annotated[str, typer.Option(help="Name of the submission; default: of the file.")] = "",
    mean: Annotated[str, typer.Option(help="Means of the normalisation: 0.49,0.48,0.45.")] = "",
    std: Annotated[str, typer.Option(help="Its standard deviations.")] = "",
    key: Annotated[str, typer.Option(help="Where the state dict lies in the file.")] = "",
    ignore: Annotated[
        list[str] | None, typer.Option(help="Tensors that may stay unused, as 'normalize.*'.")
    ] = None,
    small_images: Annotated[
        bool, typer.Option("--small-images", help="ResNet with a 3x3 first convolution, no pool.")
    ] = False,
    author: Annotated[str, typer.Option(help="For the card.")] = "",
    folder: Annotated[Path, typer.Option(help="Where the submission's folder is made.")] = Path(),
) -> None:
    """Write a submission with the weights of a checkpoint, whose code is not run."""
    from bench.registry.registry import Registry
    from bench.submissions.import_checkpoint import ImportRequest, write_imported
    from bench.submissions.templates import AUTHOR

    data = Registry.without_submissions().find("dataset", dataset).value
    request = ImportRequest(
        checkpoint, arch, len(data.classes), _numbers("--mean", mean), _numbers("--std", std), key,
        tuple(ignore or ()), small_images,
    )  # fmt: skip
    chosen = name or checkpoint.stem.lower().replace(" ", "-")
    place, net, fit = write_imported(request, chosen, dataset, folder, author or AUTHOR)
    where = f"from {fit.key!r}" if fit.key else "of the file"
    prefix = f", without the prefix {fit.prefix!r}" if fit.prefix else ""
    print(place)
    print(f"{len(fit.found)} tensors {where}{prefix}.", file=sys.stderr)
    print(_clean_accuracy(net, dataset), file=sys.stderr)
    if not author:
        print(f"next: write the authors into {place / 'card.toml'}", file=sys.stderr)
    print(f"next: bench submit {place}", file=sys.stderr)
    if threats := _ranked_threats(dataset):
        also = f" (or {', '.join(threats[1:])})" if threats[1:] else ""
        run = f"bench run --threat {threats[0]} --defense {chosen} --suite standard"
        print(f"then: {run}{also}", file=sys.stderr)


def _ranked_threats(dataset: str) -> list[str]:
    """The names of the threat models of a data set that rank defenses, in their order."""
    from bench.registry.registry import Registry

    known = [found.value for found in Registry.without_submissions().threats.values()]
    ranked = [one for one in known if one.dataset == dataset and one.protocol.ranked]
    return [one.name for one in sorted(ranked, key=lambda one: (one.order, one.name))]


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers from text with commas; empty for an empty text."""
    try:
        return tuple(float(part) for part in text.split(",") if text)
    except ValueError as error:
        raise BenchError(f"{option} is {text!r}; numbers with commas were expected.") from error


def _clean_accuracy(net: nn.Module, dataset: str) -> str:
    """A sentence with the accuracy on the first test images."""
    import torch

    from bench.data.datasets import first_examples
    from bench.registry.registry import Registry

    data = Registry.without_submissions().find("dataset", dataset).value
    try:
        examples = first_examples(data, min(CHECKED_IMAGES, data.test_size))
    except UnavailableError as error:
        return f"its accuracy was not checked: {error}"
    try:
        with torch.no_grad():
            labels = net(examples.tensor()).argmax(1)
    except RuntimeError as error:
        raise BenchError(f"the network does not answer images of {dataset}: {error}") from error
    right = int((labels.numpy() == examples.labels).sum())
    return f"it classifies {right} of the first {len(labels)} test images of {dataset} correctly."
