"""The networks of a device run: trained on the device, or with random weights and own labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction

import safetensors.torch
import torch
from torch import nn

from bench.plugin import Linf
from plugins.defenses._residual_blocks import wide_resnet
from tests.benchmarks import cases
from tests.benchmarks.cases import NETWORKS, RADIUS, RECIPES, TRAINING_IMAGES, Case, frozen_case
from tests.benchmarks.device_steps.sizes import Size
from tests.fixtures.known_models import small_cnn

UNBREAKABLE = Linf(Fraction(1, 25500))
"""A hundredth of a grey level: hardly an example breaks, so every row makes every step."""
COLOUR = (3, 32, 32)


def case_on(name: str, count: int, size: Size, device: torch.device) -> Case:
    """The first `count` examples of a case on a device; they repeat where there are fewer."""
    whole = trained_case(name, str(device)) if size.trained else untrained_case(name)
    rows = torch.arange(count) % len(whole.x)
    return whole.at(rows).on(str(device))


@functools.cache
def trained_case(name: str, device: str) -> Case:
    """A case on the CPU whose weights are cached, or else trained now on this device."""
    recipe, network = RECIPES[name], RECIPES[name].network
    file = recipe.file
    if not file.is_file():
        file = file.with_suffix(f".{torch.device(device).type}.safetensors")
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        weights = cases.train(recipe, device).state_dict()
        safetensors.torch.save_file({key: value.cpu() for key, value in weights.items()}, file)
    model = NETWORKS[network]()
    model.load_state_dict(safetensors.torch.load_file(file))
    x, y = (part[TRAINING_IMAGES:] for part in cases.images(network))
    return frozen_case(name, model, x, y, Linf(RADIUS[network]))


@functools.cache
def untrained_case(name: str) -> Case:
    """A case without the cost of a training: a small CNN, or random weights with own labels."""
    network = RECIPES[name].network
    x, y = (part[TRAINING_IMAGES:][:64] for part in cases.images(network))
    if network == "digits":
        return frozen_case(name, small_cnn(), x, y, Linf(RADIUS[network]))
    return labelled_by_itself(name, NETWORKS[network], x, Linf(RADIUS[network]))


def labelled_by_itself(
    name: str, make: Callable[[], nn.Module], x: torch.Tensor, ball: Linf
) -> Case:
    """A case of images x [n, C, H, W] whose labels are the answers of the untrained network."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = make().eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    return frozen_case(name, model, x, y, ball)


def wide_case(size: Size, device: torch.device) -> Case:
    """A WideResNet with random weights on random colour images, in a ball that breaks nothing."""
    depth, widen = size.wide
    x = torch.rand(size.wide_examples, *COLOUR, generator=torch.Generator().manual_seed(0))
    make = functools.partial(wide_resnet, COLOUR, 10, depth=depth, widen=widen)
    case = labelled_by_itself(f"WideResNet-{depth}-{widen}", make, x, UNBREAKABLE)
    return case.on(str(device))
