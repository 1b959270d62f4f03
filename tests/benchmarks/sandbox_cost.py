"""What the walls cost: the same questions asked of a module here and of one in a worker.

    uv run python -m tests.benchmarks.sandbox_cost

Both answer in turn, five pairs, one thread; the figure is the median ratio of wall time, for a
worker's time is not this process's. The last column is how long a worker takes until it answers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.evaluation.launcher import set_deterministic
from bench.plugin import cross_entropy
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from tests.engine.single_run import SingleRun
from tests.sandbox.isolated import PLAIN, entry, locked, opened
from tests.sandbox.test_attack_proxy import BUILT_IN

PAIRS = 5
NETWORKS = {
    "the linear layer of a 1 x 8 x 8 image": (PLAIN, (1, 8, 8)),
    "ResNet-18 of torchvision, 3 x 32 x 32": (
        PLAIN.replace("return Net(loader)", "return resnet18(num_classes=10)").replace(
            "import torch\n", "import torch\nfrom torchvision.models import resnet18\n"
        ),
        (3, 32, 32),
    ),
}
ATTACKS = {
    "pgd": "plugins.attacks.pgd", "apgd-ce": "plugins.attacks.apgd",
    "square": "plugins.attacks.square",
}  # fmt: skip


def main() -> None:
    """Print a table."""
    set_deterministic()
    with TemporaryDirectory() as folder:
        for name, (source, shape) in NETWORKS.items():
            place = Path(folder) / name
            entry(place, source)
            since = time.perf_counter()
            inside = built(locked(place))
            ready = time.perf_counter() - since
            ratio, seconds = against(climb(inside, shape), climb(built(opened(place)), shape))
            print(f"{name}: 10 gradients of 128 images {ratio:.2f} ({seconds:.3f} s here), "
                  f"a worker after {ready:.1f} s")  # fmt: skip
        for name, module in ATTACKS.items():
            place = Path(folder) / name
            text = BUILT_IN.replace("{module}", module).replace("{of}", name)
            entry(place, text, kind="attack")
            inside, here = (load(place).find("attack", "mine").value for load in (locked, opened))
            ratio, seconds = against(SingleRun(inside).run, SingleRun(here).run)
            print(f"{name} on 150 digits: {ratio:.2f} ({seconds:.3f} s here)")


def built(registry: Registry) -> nn.Module:
    """The entry's network."""
    return DefenseBuilder(registry, "mine", registry.find("dataset", "digits").value).build()


def climb(module: nn.Module, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """Ten gradients of 128 images, as PGD asks for them."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(128, *shape, generator=generator), torch.arange(128) % 10
    target = ModelAccess(module)

    def run() -> Tensor:
        adv = x
        for _ in range(10):
            found = target.gradient(adv, lambda logits: cross_entropy(logits, y))
            adv = (adv + 0.01 * found.gradient.sign()).clamp(0, 1)
        return adv

    return run


def against(one: Callable[[], object], two: Callable[[], object]) -> tuple[float, float]:
    """(median ratio of wall time, median seconds of the second), after one run of each."""
    seconds: dict[Callable[[], object], list[float]] = {one: [], two: []}
    for pair in range(PAIRS + 1):
        for run, told in seconds.items():
            since = time.perf_counter()
            run()
            if pair:
                told.append(time.perf_counter() - since)
    ratios = [a / b for a, b in zip(seconds[one], seconds[two], strict=True)]
    return statistics.median(ratios), statistics.median(seconds[two])


if __name__ == "__main__":
    main()
