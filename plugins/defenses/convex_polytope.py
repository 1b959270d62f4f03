"""Networks trained with certificates of the convex outer polytope; published weights.

Wong and Kolter 2018, arXiv:1711.00851.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from bench.plugin import Claim, Defense, Loader, hookimpl

REPOSITORY = "https://github.com/locuslab/convex_adversarial"
MNIST = "a3f730ab1291a5d583ad486043932cca221e8fbfaf727335b3e597f61c05e3ea"
FASHION = "7665f7a1ae64f9696cd2ddda31b0110524b26a879ab1d097d7e21d9197b015d2"


def network() -> nn.Sequential:
    """Two strided convolutions and one hidden layer: [n, 1, 28, 28] in [0, 1] to logits [n, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def published(loader: Loader, file: str, sha256: str) -> nn.Module:
    """The network with the authors' weights."""
    return loader.weights(network(), file, sha256=sha256)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the authors' MNIST and Fashion-MNIST networks for L-infinity 0.1."""
    yield Defense(
        name="convex-mnist",
        datasets=("mnist",),
        cite="arXiv:1711.00851",
        summary="Published weights with certificates: at most 5.8 % of the test set can be broken.",
        claims=(Claim("mnist-linf", 0.942, REPOSITORY),),
        build=partial(published, file="convex-mnist-linf-0.1.safetensors", sha256=MNIST),
        surrogate="undefended-images",
        quick=False,
    )
    yield Defense(
        name="convex-fashion",
        datasets=("fashion-mnist",),
        cite="arXiv:1711.00851",
        summary="The same network for Fashion-MNIST, published weights.",
        build=partial(published, file="convex-fashion-mnist-linf-0.1.safetensors", sha256=FASHION),
        surrogate="undefended-images",
        quick=False,
    )
