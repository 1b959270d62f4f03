"""Architectures by name: how a module is built here, and the code that builds it in a plugin."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, UnavailableError, error_text
from bench.registry.submission import did_you_mean

CLASS_ARGUMENTS = ("num_classes", "classes", "n_classes")
"""Arguments that receive the number of classes, where a class or function of a file has one."""

SMALL_IMAGES = '''

def small_images(net):
    """A 3x3 first convolution with stride 1 and no max-pooling, as ResNets for 32x32 images."""
    net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net
'''


@dataclass(frozen=True)
class Architecture:
    """How a module is built: Python code, and the names that it needs."""

    source: str
    """Code before the expression: imports, or the file of the user."""
    expression: str
    """An expression for the module, in which `classes` is the number of classes."""
    names: Callable[[], dict[str, Any]]
    """Imports what the expression needs; runs the user's file."""

    def build(self, classes: int) -> nn.Module:
        """A new module with random weights. Raises BenchError where it cannot be built."""
        try:
            built = eval(self.expression, {**self.names(), "classes": classes})
        except PLUGIN_EXCEPTIONS as error:
            raise BenchError(
                f"the architecture {self.expression} cannot be built: {error_text(error)}."
            ) from error
        if not isinstance(built, nn.Module):
            raise BenchError(
                f"the architecture {self.expression} is {type(built).__name__}; a torch.nn.Module "
                "was expected."
            )
        return built


def find_architecture(spec: str, *, small_images: bool = False) -> Architecture:
    """The architecture of `torchvision:NAME`, `timm:NAME` or `FILE.py:NAME`.

    Args:
        spec: where it comes from, and its name there.
        small_images: replace the first convolution and pooling of a torchvision ResNet by those
            for 32x32 images.

    Returns:
        How it is built.

    Raises:
        BenchError: there is none of that name.
        UnavailableError: its library is not installed, or there is no such file.
    """
    home, _, name = spec.rpartition(":")
    if not home or not name:
        raise BenchError(
            f"--arch is {spec!r}; use torchvision:resnet18, timm:NAME or model.py:NAME."
        )
    if home != "torchvision" and small_images:
        raise BenchError("--small-images changes the ResNets of torchvision alone.")
    if home == "torchvision":
        return _torchvision(name, small_images=small_images)
    if home == "timm":
        return _timm(name)
    return _from_file(Path(home), name)


def _torchvision(name: str, *, small_images: bool) -> Architecture:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise BenchError(f"torchvision has no model {name!r}{did_you_mean(name, known)}.")
    expression = f"models.{name}(weights=None, num_classes=classes)"
    source = "from torch import nn\nfrom torchvision import models\n"
    if not small_images:
        return Architecture(source, expression, lambda: {"models": models})
    if not name.startswith("res"):
        raise BenchError(f"--small-images changes the ResNets of torchvision alone, not {name}.")

    def names() -> dict[str, Any]:
        found: dict[str, Any] = {"nn": nn, "models": models}
        exec(SMALL_IMAGES, found)
        return found

    return Architecture(source + SMALL_IMAGES, f"small_images({expression})", names)


def _timm(name: str) -> Architecture:
    if importlib.util.find_spec("timm") is None:
        raise UnavailableError("timm is not installed; `uv sync --extra timm` brings it.")
    import timm

    if not timm.is_model(name):
        raise BenchError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}.")
    expression = f"timm.create_model({name!r}, num_classes=classes)"
    return Architecture("import timm\nfrom torch import nn\n", expression, lambda: {"timm": timm})


def _from_file(path: Path, name: str) -> Architecture:
    if not path.is_file():
        raise UnavailableError(
            f"there is no file {path}; use torchvision:NAME, timm:NAME or FILE.py:NAME."
        )
    source = path.read_text(encoding="utf-8")
    try:
        defined = _defined(ast.parse(source))
    except SyntaxError as error:
        raise BenchError(f"{path} is no Python: {error}.") from error
    if name not in defined:
        raise BenchError(f"{path} defines no {name!r}{did_you_mean(name, defined)}.")
    names = _names_of(path)
    found = names()[name]
    given = _class_argument(found)
    argument = f"{given}=classes" if given else ""
    return Architecture(source, f"{name}({argument})", names)


def _defined(tree: ast.Module) -> list[str]:
    return [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]


def _names_of(path: Path) -> Callable[[], dict[str, Any]]:
    """A function that runs a file of the user once and returns its names."""
    found: dict[str, Any] = {}

    def names() -> dict[str, Any]:
        if not found:
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise BenchError(f"{path} cannot be imported; name a .py file.")
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module  # dataclasses look their module up
            try:
                spec.loader.exec_module(module)
            except PLUGIN_EXCEPTIONS as error:
                raise BenchError(f"{path} cannot be imported: {error_text(error)}.") from error
            found.update(vars(module))
        return found

    return names


def _class_argument(build: Callable[..., Any]) -> str:
    """The argument that receives the number of classes; empty where there is none."""
    parameters = inspect.signature(build).parameters
    return next((name for name in CLASS_ARGUMENTS if name in parameters), "")


def normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """An expression for the normalisation layer; empty without any.

    Raises BenchError where only one is given, their lengths differ or a deviation is not positive.
    """
    if not mean and not std:
        return ""
    if len(mean) != len(std) or min(std) <= 0:
        raise BenchError(
            f"--mean is {list(mean)} and --std is {list(std)}; one value for each channel was "
            "expected of both, the deviations above 0."
        )
    return f"Normalize({list(mean)}, {list(std)})"
