"""Reparameterisation: a search among the outputs of a decoder (arXiv:1802.00420).

A defense that replaces each image by the nearest output h(z) of a generator keeps h(z) itself, so
that its optimisation need not be differentiated: the gradient is that of f(h(z)) on z.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.plugin import margin


def search_latent(
    classifier: nn.Module, decoder: nn.Module, z: Tensor, y: Tensor,
    *, steps: int = 100, rate: float = 0.05, penalty: float = 0.0, radius: float | None = None,
) -> Tensor:  # fmt: skip
    """Latent vectors [n, d] near z [n, d] whose decoded images get another class than y [n].

    Normalised gradient ascent on the margin of the best other class, less `penalty` times
    ||h(z') - h(z)||^2, in steps of length `rate`. Of the misclassified vectors that are visited the
    one nearest to z is returned, without any the last. `radius` bounds ||z' - z||_2.
    """
    with torch.no_grad():
        origin = decoder(z)
    current, nearest = z.clone(), z.clone()
    distance = torch.full((len(z),), torch.inf, device=z.device)
    for step in range(steps + 1):
        leaf = current.detach().requires_grad_()
        with torch.enable_grad():
            image = decoder(leaf)
            gain = margin(classifier(image), y)
            cost = (image - origin).flatten(1).square().sum(1)
            (gradient,) = torch.autograd.grad((gain - penalty * cost).sum(), leaf)
        away = (leaf.detach() - z).norm(dim=1)
        better = (gain.detach() > 0) & (away < distance)
        nearest = torch.where(better[:, None], leaf.detach(), nearest)
        distance = torch.where(better, away, distance)
        if step < steps:
            length = gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
            change = current + rate * gradient / length - z
            if radius is not None:
                size = change.norm(dim=1, keepdim=True)
                change = change * (radius / size.clamp_min(radius))
            current = (z + change).detach()
    return torch.where(distance.isfinite()[:, None], nearest, current)
