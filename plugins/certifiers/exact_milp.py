"""Exact verification of tiny ReLU networks by mixed-integer programs (arXiv:1711.07356)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from bench.plugin import Certifier, PerturbationSet, hookimpl, margin
from plugins.certifiers._network_graph import (
    Affine,
    Box,
    MaxPool,
    Network,
    ReLU,
    Sum,
    UnsupportedModelError,
    inputs_of,
    read_network,
)
from plugins.certifiers.dual_bound import Region, dual_margins, refined_boxes
from plugins.certifiers.interval import matches_model, other_classes, why_unsupported

Array = npt.NDArray[np.float64]
MOST_UNITS = 512  # outputs of all linear layers
MOST_UNSTABLE = 60  # ReLUs of one example whose sign is open
SECONDS = 60.0  # for one program
TOLERANCE = 1e-7  # HiGHS's dual feasibility tolerance, per unit of a variable's range
SEARCH_STEPS = 5  # of the search for a counterexample in front of the programs


class ExactMILP:
    """Certifies x exactly where no image of ball and box has another class.

    min z_y - z_k over the set is one mixed-integer program for each class k that the dual bound
    leaves open. A ReLU h = max(v, 0) with v in [l, u], l < 0 < u, becomes h >= v, h >= 0,
    h <= v - l (1 - a), h <= u a with a in {0, 1}; others are linear (Tjeng et al. 2019,
    arXiv:1711.07356).

    An example is certified where the solver's lower bound exceeds the float32 rounding of the
    logits and TOLERANCE times the ranges of all variables. HiGHS computes in float64 and gives no
    proof that could be checked apart from it. Every other example has a counterexample, which the
    module itself classifies otherwise, but for margins within that tolerance of 0.
    """

    name = "exact-milp"
    exact = True
    quick = False
    cite = "arXiv:1711.07356"
    summary = "Mixed-integer programs over the ReLUs' signs: exact for tiny networks."

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why the network or the set has no such program, or is too large; empty where it has."""
        if ball.name not in ("Linf", "L1"):
            return f"the norm is {ball.name}, no polyhedron; {self.name} takes Linf and L1."
        sentence = why_unsupported(self.name, module)
        if sentence:
            return sentence
        if read_network(module).count(MaxPool):
            return f"the model has max pooling; {self.name} reads linear layers and ReLUs."
        layers = [part for part in module.modules() if not list(part.children())]
        if any(isinstance(part, nn.Conv2d) for part in layers):
            return f"the model has convolutions; {self.name} reads linear layers and ReLUs."
        units = sum(part.out_features for part in layers if isinstance(part, nn.Linear))
        if units > MOST_UNITS:
            return f"the linear layers have {units} units; {self.name} supports {MOST_UNITS}."
        return ""

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """Whether the label of x [n, C, H, W] holds on every image of ball and box, [n] bool."""
        return verify(module, x, y, ball).certified


class Verification(NamedTuple):
    """The result of `verify`."""

    certified: Tensor
    """[n] bool."""
    counterexample: Tensor
    """[n, C, H, W] float32: an image of the set with another class; x where none was found."""
    found: Tensor
    """[n] bool: whether the module gives the counterexample another class."""


def verify(module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Verification:
    """Decide every image x [n, C, H, W] with label y [n].

    Raises UnsupportedModelError where too many ReLUs of an example have an open sign, or a program
    is not solved in time: then there is no exact answer.
    """
    network = read_network(module)
    candidates = search(module, x, y, ball)
    certified = torch.zeros_like(y, dtype=torch.bool)
    open_rows = (~is_broken(module, candidates, y) & matches_model(module, network, x)).nonzero()
    rows = open_rows[:, 0].tolist()
    programs = [make_program(network, x[i : i + 1], y[i : i + 1], ball) for i in rows]
    for i, program in zip(rows, programs, strict=True):
        adv = program.counterexample(int(y[i]))
        certified[i] = adv is None
        if adv is not None:
            image = torch.from_numpy(adv).view_as(x[i : i + 1]).to(x.device)
            candidates[i : i + 1] = ball.project(image.to(x.dtype), x[i : i + 1]).to(x.dtype)
    return Verification(certified, candidates, is_broken(module, candidates, y))


def is_broken(module: nn.Module, adv: Tensor, y: Tensor) -> Tensor:
    """Whether the module gives images [n, C, H, W] another class than y [n], [n] bool."""
    with torch.no_grad():
        label: Tensor = module(adv).argmax(1)
    return label != y


def search(module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
    """Images [n, C, H, W] of the set around x with a large margin of a class other than y [n].

    Every step moves to the point of the set that is farthest along the gradient; x itself comes
    first, and the first image with another class is kept.
    """
    adv = x.clone()
    for _ in range(SEARCH_STEPS):
        leaf = adv.detach().requires_grad_()
        with torch.enable_grad():
            rise = margin(module(leaf), y)
            (gradient,) = torch.autograd.grad(rise.sum(), leaf)
        kept = (rise.detach() > 0)[:, None, None, None]
        adv = torch.where(kept, adv, ball.farthest(gradient, x).to(x.dtype))
    return adv


class Expression(NamedTuple):
    """Values as matrix @ variables + constant, and how far float32 may be from them."""

    matrix: Array
    """[values, variables]."""
    constant: Array
    """[values]."""
    stray: Tensor
    """[1, ...]: the largest rounding error of the float32 network at one image."""


class Program:
    """The network over the allowed images as linear constraints on variables, some in {0, 1}.

    Args:
        pixels: number of pixels, which are the first variables.
        units: number of ReLUs with an open sign.
        distances: whether |x' - x| of each pixel is a variable.
    """

    def __init__(self, pixels: int, units: int, *, distances: bool) -> None:
        self.count = pixels * (1 + distances) + 2 * units
        self.low, self.high = np.zeros(self.count), np.ones(self.count)
        self.integral = np.zeros(self.count)
        self.rows: list[Array] = []
        self.limits: list[Array] = []
        self.pixels = pixels
        self.used = pixels
        self.output: Expression
        """The logits."""
        self.rivals: list[int] = []
        """The classes that the dual bound leaves open, the smallest bound first."""

    def variables(self, low: Array, high: Array, *, integral: bool = False) -> Array:
        """New variables with these bounds [m]; returns the rows [m, variables] that select them."""
        place = np.arange(self.used, self.used + len(low))
        self.used += len(low)
        self.low[place], self.high[place] = low, high
        self.integral[place] = integral
        return np.eye(self.count)[place]

    def require(self, rows: Array, limits: Array) -> None:
        """Add rows [m, variables] @ variables <= limits [m]."""
        self.rows.append(rows)
        self.limits.append(limits)

    def counterexample(self, label: int) -> Array | None:
        """Pixels [d] at which a margin of the label is not proved positive; None where all are.

        Raises UnsupportedModelError where a program is not solved in time.
        """
        for rival in self.rivals:
            cost = self.output.matrix[label] - self.output.matrix[rival]
            constant = self.output.constant[label] - self.output.constant[rival]
            bound, point = self.minimum(cost)
            stray = self.output.stray.flatten()
            spare = float(stray[label] + stray[rival]) + TOLERANCE * (
                1 + float((self.high - self.low).sum())
            )
            if bound + constant <= spare:
                return point[: self.pixels]
        return None

    def minimum(self, cost: Array) -> tuple[float, Array]:
        """A lower bound of min <cost, variables>, and the variables [m] of the best point found.

        Raises UnsupportedModelError where the program is not solved in time.
        """
        constraints = (
            [LinearConstraint(np.concatenate(self.rows), -np.inf, np.concatenate(self.limits))]
            if self.rows
            else []
        )
        answer: Any = milp(
            cost,
            constraints=constraints,
            bounds=Bounds(self.low, self.high),
            integrality=self.integral,
            options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
        )
        if answer.status != 0 or answer.x is None:
            raise UnsupportedModelError(
                f"a program with {int(self.integral.sum())} open ReLUs was not solved in "
                f"{SECONDS:.0f} seconds ({answer.message})"
            )
        bound = answer.mip_dual_bound if self.integral.any() else answer.fun
        return min(float(bound), float(answer.fun)), np.asarray(answer.x, dtype=np.float64)


def make_program(network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Program:
    """The program of one image x [1, C, H, W] with label y [1].

    Raises UnsupportedModelError where too many ReLUs have an open sign.
    """
    region = Region(x.double(), ball)
    boxes = refined_boxes(network, region, 1.0)
    units = open_units(network, boxes)
    if units > MOST_UNSTABLE:
        raise UnsupportedModelError(
            f"{units} ReLUs of an example have an open sign; up to {MOST_UNSTABLE} are decided"
        )
    program = Program(x[0].numel(), units, distances=not region.is_box)
    images = image_expression(program, region, boxes[0])
    values = [images]
    for step, box in zip(network.steps, boxes[1:], strict=True):
        before = [values[place + 1] for place in step.inputs]
        if isinstance(step.op, Affine):
            values.append(affine_expression(step.op, before[0], box))
        elif isinstance(step.op, ReLU):
            values.append(relu_expression(program, before[0], inputs_of(step, boxes)[0]))
        elif isinstance(step.op, Sum):
            values.append(sum_expression(before[0], before[1], box))
    program.output = values[-1]
    bounds = dual_margins(network, boxes, region, y)[0]
    order = bounds.argsort(stable=True)
    rivals = other_classes(y, boxes[-1].lower.shape[1])[0]
    program.rivals = rivals[order][bounds[order] <= 0].tolist()
    return program


def open_units(network: Network, boxes: list[Box]) -> int:
    """How many ReLUs have an open sign."""
    before = [inputs_of(step, boxes)[0] for step in network.steps if isinstance(step.op, ReLU)]
    return sum(int(((box.lower < 0) & (box.upper > 0)).sum()) for box in before)


def image_expression(program: Program, region: Region, box: Box) -> Expression:
    """The pixels as variables; outside a box with sum |x' - x| <= radius as constraints."""
    size = program.pixels
    low, high = box.lower.flatten().numpy(), box.upper.flatten().numpy()
    program.low[:size], program.high[:size] = low, high
    pixels = np.eye(program.count)[:size]
    if not region.is_box:
        x = region.x.flatten().numpy()
        reach = region.ball.radius + region.ball.tolerance(size)
        distance = program.variables(np.zeros(size), np.full(size, reach))
        program.require(pixels - distance, x)
        program.require(-pixels - distance, -x)
        program.require(distance.sum(0, keepdims=True), np.array([reach]))
    return Expression(pixels, np.zeros(size), torch.zeros_like(region.x))


def affine_expression(op: Affine, before: Expression, box: Box) -> Expression:
    """The values A v + b of an affine step, its matrix read column by column."""
    shape = before.stray.shape[1:]
    offset = op.offset(before.stray)
    basis = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    matrix = (op.apply(basis) - offset).flatten(1).numpy().T
    stray = op.apply_absolute(before.stray)
    return Expression(
        matrix @ before.matrix,
        matrix @ before.constant + offset.flatten().numpy(),
        stray if box.rounding is None else stray + box.rounding,
    )


def sum_expression(first: Expression, second: Expression, box: Box) -> Expression:
    """The sum of two values of the same shape."""
    stray = first.stray + second.stray
    return Expression(
        first.matrix + second.matrix,
        first.constant + second.constant,
        stray if box.rounding is None else stray + box.rounding,
    )


def relu_expression(program: Program, before: Expression, box: Box) -> Expression:
    """The values max(v, 0): v or 0 where the sign is known, else variables h and a."""
    low, high = box.lower.flatten().numpy(), box.upper.flatten().numpy()
    active, is_open = low >= 0, (low < 0) & (high > 0)
    matrix = np.where(active[:, None], before.matrix, 0.0)
    constant = np.where(active, before.constant, 0.0)
    v, b = before.matrix[is_open], before.constant[is_open]
    low, high = low[is_open], high[is_open]
    h = program.variables(np.zeros(len(low)), high)
    sign = program.variables(np.zeros(len(low)), np.ones(len(low)), integral=True)
    program.require(v - h, -b)
    program.require(h - v - low[:, None] * sign, b - low)
    program.require(h - high[:, None] * sign, np.zeros(len(low)))
    matrix[is_open] = h
    return Expression(matrix, constant, before.stray)


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Register the exact verifier."""
    yield ExactMILP()
