"""Exact robustness of linear models: the worst image of ball and box in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Certifier, PerturbationSet, hookimpl
from plugins.certifiers._network_graph import UnsupportedModelError, read_network
from plugins.certifiers.interval import matches_model

LINEAR_LAYERS = (nn.Sequential, nn.Flatten, nn.Identity, nn.Linear)


class LinearExact:
    """Certifies x where no other class reaches the label's logit anywhere in ball and box.

    The margin z_k - z_y is linear in the image, so its maximum is at `ball.farthest`, and the
    largest over the other classes decides. Where the box is inactive that is |margin| / ||w||_dual
    > eps (arXiv:1511.04599). Examples nearer to the edge than float32 resolves are not certified,
    and neither are those whose logits in the module differ from W x + b.
    """

    name = "linear-exact"
    exact = True
    cite = "arXiv:1511.04599"
    summary = "Worst case of a linear model over ball and box, for every other class."

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why the model is not one linear layer; empty where it is."""
        parts = [part for _, part in module.named_modules(remove_duplicate=False)]
        unknown = sorted({type(part).__name__ for part in parts if type(part) not in LINEAR_LAYERS})
        if unknown:
            return f"the model has {', '.join(unknown)}; linear-exact reads one linear layer."
        layers = sum(isinstance(part, nn.Linear) for part in parts)
        if layers != 1:
            return f"the model has {layers} linear layers; linear-exact reads exactly one."
        try:
            read_network(module)
        except UnsupportedModelError as error:
            return f"{error}; linear-exact reads one linear layer."
        return ""

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """Whether the label of x [n, C, H, W] holds on every image of ball and box, [n] bool."""
        weight, bias = weight_and_bias(module)
        slack = rounding_bound(weight, bias) + ball.tolerance(x[0].numel()) * 2 * largest_row_norm(
            weight
        )
        return (worst_margin(module, x, y, ball) < -slack) & matches_model(
            module, read_network(module), x
        )


def worst_margin(module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
    """The largest z_k(x') - z_y(x') over k != y and allowed x', [n] float64; x is [n, C, H, W]."""
    weight, bias = weight_and_bias(module)
    x = x.double()
    gaps = []
    for rival in range(len(bias)):
        slope = (weight[rival] - weight[y]).view_as(x)
        gap = (slope * ball.farthest(slope, x)).flatten(1).sum(1) + bias[rival] - bias[y]
        gaps.append(gap.masked_fill(y == rival, -torch.inf))
    return torch.stack(gaps).amax(0)


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight W [K, d] and bias b [K] of the model's one linear layer, in float64."""
    (layer,) = (part for part in module.modules() if isinstance(part, nn.Linear))
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return weight, bias


def largest_row_norm(weight: Tensor) -> float:
    """The largest ||w_k||_1 of W [K, d].

    A change of norm tol, in any norm, moves no logit by more than tol times it.
    """
    return float(weight.abs().sum(1).amax())


def rounding_bound(weight: Tensor, bias: Tensor) -> float:
    """Higham's bound on the float32 error of a difference of logits, for W [K, d] and b [K]."""
    terms = weight.shape[1] + 1
    return 2 * terms * 2.0**-24 * (largest_row_norm(weight) + float(bias.abs().amax()))


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Register the exact certifier for linear models."""
    yield LinearExact()
