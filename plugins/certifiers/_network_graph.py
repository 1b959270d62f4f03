"""Reads a module as a graph of affine maps, ReLUs, max pools and sums, for the certifiers.

All arithmetic is in float64. A box encloses the values of the exact network and those of its
float32 evaluation, so that a certificate covers the deployed model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_input

from plugins.certifiers._in_place_writes import Tracer, reads_overwritten_values
from plugins.certifiers._spectral_norm import convolution_norm, matrix_norm

Map: TypeAlias = Callable[[Tensor], Tensor]
ROUNDING = 2.0**-24  # the unit roundoff of float32
TRACE_ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)
"""Raised by a forward that inspects its numbers, when it is traced with symbols instead."""


class UnsupportedModelError(Exception):
    """A part of the model that no certifier here can bound; its message is one sentence."""


@dataclass(frozen=True)
class Affine:
    """An affine map h [n, ...] -> A h + b."""

    apply: Map
    apply_absolute: Map
    """h -> |A| h, with |A| taken entry by entry."""
    terms: int
    """The length of the longest sum: an upper bound on the number of float32 roundings."""
    transpose: Callable[[Tensor, torch.Size], Tensor] | None = None
    """(v [m, ...], shape of one h) -> A^T v; None: computed by autograd."""
    spectral: Callable[[torch.Size], float] | None = None
    """Shape of one h -> an upper bound of ||A||_2, where the entries alone give a larger one."""

    def offset(self, like: Tensor) -> Tensor:
        """The constant b [1, ...], for one h of that shape."""
        return self.apply(torch.zeros_like(like))

    def apply_transpose(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """The product A^T v for each v [m, ...]."""
        if self.transpose is not None:
            return self.transpose(weight, shape)
        leaf = weight.new_zeros((len(weight), *shape)).requires_grad_()
        with torch.enable_grad():
            output = self.apply(leaf)
        (product,) = torch.autograd.grad(output, leaf, weight)
        return product


@dataclass(frozen=True)
class ReLU:
    """The map max(h, 0)."""


@dataclass(frozen=True)
class MaxPool:
    """Maxima over windows: increasing in every input, and free of rounding."""

    apply: Map


@dataclass(frozen=True)
class Sum:
    """The sum of the values of two steps."""


Op: TypeAlias = Affine | ReLU | MaxPool | Sum


class Step(NamedTuple):
    """One operation and the indices of the steps whose values it takes; -1 is the images."""

    op: Op
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Steps in an order of evaluation; the last one gives the logits."""

    steps: tuple[Step, ...]

    def count(self, kind: type[Op]) -> int:
        """How many steps are of that kind."""
        return sum(isinstance(step.op, kind) for step in self.steps)


class Box(NamedTuple):
    """Bounds of a step's values, lower <= h <= upper entry by entry, each [n, ...]."""

    lower: Tensor
    upper: Tensor
    rounding: Tensor | None = None
    """[n, ...]: how far float32 may move h from the result of its step; None: it does not round."""

    def magnitude(self) -> Tensor:
        """The largest |h| [n, ...]."""
        return torch.maximum(self.lower.abs(), self.upper.abs())


def propagate(op: Op, boxes: list[Box]) -> Box:
    """A box around all values of one step, in float32 too, from boxes around its inputs.

    By Higham a sum of m products has an error of at most m u / (1 - m u) times the sum of the
    absolute values, in any order of summation.
    """
    first, size = boxes[0], boxes[0].magnitude()
    if isinstance(op, Affine):
        share = op.terms * ROUNDING / (1 - op.terms * ROUNDING)
        stray = share * (op.apply_absolute(size) + op.offset(size[:1]).abs())
        centre = op.apply((first.upper + first.lower) / 2)
        reach = op.apply_absolute((first.upper - first.lower) / 2) + stray
        return Box(centre - reach, centre + reach, stray)
    if isinstance(op, Sum):
        second = boxes[1]
        stray = ROUNDING * (size + second.magnitude())
        return Box(first.lower + second.lower - stray, first.upper + second.upper + stray, stray)
    rising = torch.relu if isinstance(op, ReLU) else op.apply
    return Box(rising(first.lower), rising(first.upper))


Refine: TypeAlias = Callable[[list[Box], Step], Box]


def propagate_boxes(network: Network, images: Box, refine: Refine | None = None) -> list[Box]:
    """Interval bound propagation: a box around the images, then one around each step's values.

    An affine step maps centre and radius to c' = A c + b and r' = |A| r. `refine` returns a smaller
    box in front of a ReLU. Box i + 1 belongs to step i.
    """
    boxes = [images]
    for step in network.steps:
        if refine is not None and isinstance(step.op, ReLU):
            boxes[step.inputs[0] + 1] = refine(boxes, step)
        boxes.append(propagate(step.op, inputs_of(step, boxes)))
    return boxes


def inputs_of(step: Step, boxes: list[Box]) -> list[Box]:
    """The boxes of the values that a step takes."""
    return [boxes[place + 1] for place in step.inputs]


def read_network(module: nn.Module) -> Network:
    """The graph of a module in eval mode.

    Raises UnsupportedModelError where part of it cannot be bounded.
    """
    if any(map(has_hooks, module.modules())):
        raise UnsupportedModelError("the model has hooks, which no certifier reads")
    try:
        graph = Tracer().trace(module)
    except TRACE_ERRORS as error:
        raise UnsupportedModelError(
            f"the model cannot be traced ({type(error).__name__})"
        ) from error
    network = GraphReader(module).read(graph)
    if reads_overwritten_values(module, graph):
        raise UnsupportedModelError("the model reads a value after overwriting it in place")
    return network


def has_hooks(part: nn.Module) -> bool:
    """Whether a module has hooks, or a forward other than that of its type."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


class GraphReader:
    """Converts the nodes of a traced graph into steps."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.steps: list[Step] = []
        self.step_of: dict[fx.Node, int] = {}
        """Which step gives a node's value; -1 for the images."""

    def read(self, graph: fx.Graph) -> Network:
        """The network of all nodes, in order.

        Raises UnsupportedModelError where one of them cannot be bounded.
        """
        for node in graph.nodes:
            if node.op == "placeholder":
                self.step_of[node] = -1
            elif node.op == "output":
                return self._finish(node.args[0])
            elif node.op != "get_attr":
                self._add(node)
        raise UnsupportedModelError("the model has no output")

    def _finish(self, output: Any) -> Network:
        if not isinstance(output, fx.Node) or self.step_of.get(output, -1) != len(self.steps) - 1:
            raise UnsupportedModelError("the model's output is not that of its last layer")
        return Network(tuple(self.steps))

    def _add(self, node: fx.Node) -> None:
        ops = self._layer(node) if node.op == "call_module" else self._function(node)
        inputs = tuple(
            self.step_of[a] for a in node.args if isinstance(a, fx.Node) and a in self.step_of
        )
        if len(inputs) != (2 if isinstance(ops[0], Sum) else 1):
            raise UnsupportedModelError(
                f"{node.target} takes {len(inputs)} computed values, which no certifier bounds"
            )
        for op in ops:
            self.steps.append(Step(op, inputs))
            inputs = (len(self.steps) - 1,)
        self.step_of[node] = inputs[0]

    def _layer(self, node: fx.Node) -> list[Op]:
        layer = self.module.get_submodule(str(node.target))
        make = LAYERS.get(type(layer))
        if make is None:
            raise UnsupportedModelError(f"the model has a layer {type(layer).__name__}")
        return make(layer)

    def _function(self, node: fx.Node) -> list[Op]:
        make = FUNCTIONS.get(node.target)
        if make is None or set(node.kwargs) - {"inplace"}:
            name = getattr(node.target, "__name__", node.target)
            raise UnsupportedModelError(
                f"the model calls {name} with {len(node.kwargs)} named arguments"
            )
        return [make(*(self._value(arg) for arg in node.args))]

    def _value(self, arg: Any) -> Any:
        """None for a computed value, else the constant itself."""
        if not isinstance(arg, fx.Node):
            return arg
        if arg.op != "get_attr":
            return None
        found = operator.attrgetter(str(arg.target))(self.module)
        return found.detach().double()


def averaging(apply: Map) -> Affine:
    """A map that reorders or averages its input, for which |A| = A."""
    return Affine(apply, apply, 0)


def linear(layer: nn.Linear) -> list[Op]:
    """The map W h + b."""
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    return [
        Affine(
            apply=lambda h: F.linear(h, weight, bias),
            apply_absolute=lambda h: F.linear(h, weight.abs()),
            terms=weight.shape[1] + 1,
            transpose=lambda v, shape: v @ weight,
            spectral=lambda shape: matrix_norm(weight),
        )
    ]


def convolution(layer: nn.Conv2d) -> list[Op]:
    """A convolution with zero padding. Raises UnsupportedModelError for other padding."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UnsupportedModelError(f"the model pads by {layer.padding_mode} {layer.padding}")
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    shape = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def transpose(v: Tensor, one: torch.Size) -> Tensor:
        """The product A^T v for v [m, ...]; `one` is the shape of one input."""
        found: Tensor = conv2d_input((len(v), *one), weight, v, *shape)  # type: ignore[no-untyped-call]
        return found

    return [
        Affine(
            apply=lambda h: F.conv2d(h, weight, bias, *shape),
            apply_absolute=lambda h: F.conv2d(h, weight.abs(), None, *shape),
            terms=weight[0].numel() + 1,
            transpose=transpose,
            spectral=partial(convolution_norm, weight, layer.dilation, layer.groups),
        )
    ]


def batch_norm(layer: nn.BatchNorm2d) -> list[Op]:
    """Batch normalisation with running statistics: (h - mean) / sqrt(variance + eps) * gain + bias.

    Raises UnsupportedModelError where the layer has none.
    """
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedModelError("the model normalises by batch statistics")
    mean, variance = layer.running_mean.double(), layer.running_var.double()
    scale = (variance + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight.detach().double()
    scale = scale[:, None, None]
    bias = layer.bias.detach().double()[:, None, None] if layer.affine else torch.zeros_like(scale)
    return [shift(-mean[:, None, None]), scale_by(scale, bias)]


def shift(constant: Tensor | float) -> Affine:
    """The map h [n, ...] -> h + c."""
    return Affine(lambda h: h + constant, lambda h: h, 2)


def scale_by(factor: Tensor, shift: Tensor | float = 0.0) -> Affine:
    """The map h [n, ...] -> s h + c; the factor may itself be the result of a few roundings."""
    return Affine(lambda h: h * factor + shift, lambda h: h * factor.abs(), 6)


def average_pool(layer: nn.AvgPool2d) -> list[Op]:
    """Means over windows."""
    size = layer.kernel_size
    area = size * size if isinstance(size, int) else size[0] * size[1]
    return [Affine(layer, layer, area + 1)]


def identity(layer: nn.Module) -> list[Op]:
    """A layer that only reorders its input, or does nothing in eval mode."""
    return [averaging(layer)]


def flatten(_: None, start: int = 0, end: int = -1) -> Affine:
    """The map from [n, ...] to [n, d]. Raises UnsupportedModelError for other axes."""
    if (start, end) != (1, -1):
        raise UnsupportedModelError(f"the model flattens from axis {start} to {end}")
    return averaging(lambda h: h.flatten(1))


def add(first: Any, second: Any) -> Op:
    """The sum of two steps, or of one and a constant."""
    if first is None and second is None:
        return Sum()
    return shift(second if first is None else first)


def subtract(first: Any, second: Any) -> Op:
    """A step less a constant. Raises UnsupportedModelError for any other difference."""
    if first is not None or second is None:
        raise UnsupportedModelError("the model subtracts a computed value from a constant")
    return shift(-second)


def multiply(first: Any, second: Any) -> Op:
    """A step times a constant. Raises UnsupportedModelError for a product of two steps."""
    factor = second if first is None else first
    if factor is None:
        raise UnsupportedModelError("the model multiplies two computed values")
    return scale_by(torch.as_tensor(factor, dtype=torch.float64))


def divide(first: Any, second: Any) -> Op:
    """A step over a constant. Raises UnsupportedModelError for any other quotient."""
    if first is not None or second is None:
        raise UnsupportedModelError("the model divides by a computed value")
    return scale_by(1 / torch.as_tensor(second, dtype=torch.float64))


def relu(_: None) -> Op:
    """ReLU."""
    return ReLU()


LAYERS: dict[type[nn.Module], Callable[[Any], list[Op]]] = {
    nn.Linear: linear,
    nn.Conv2d: convolution,
    nn.BatchNorm2d: batch_norm,
    nn.ReLU: lambda layer: [ReLU()],
    nn.MaxPool2d: lambda layer: [MaxPool(layer)],
    nn.AvgPool2d: average_pool,
    nn.Flatten: lambda layer: [flatten(None, layer.start_dim, layer.end_dim)],
    nn.Identity: identity,
    nn.Dropout: identity,
    nn.Dropout2d: identity,
}

FUNCTIONS: dict[Any, Callable[..., Op]] = {
    operator.add: add,
    operator.iadd: add,
    torch.add: add,
    operator.sub: subtract,
    operator.isub: subtract,
    operator.mul: multiply,
    operator.imul: multiply,
    operator.truediv: divide,
    operator.itruediv: divide,
    torch.relu: relu,
    F.relu: relu,
    torch.flatten: flatten,
    "relu": relu,
    "flatten": flatten,
}
"""By function, or by the name of a tensor method."""
