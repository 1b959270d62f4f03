"""Measures the cost of the sandbox: a model in this process and in a sandboxed worker.

    uv run python -m tests.benchmarks.sandbox_cost

Five pairs run alternately with one thread. PGD on ResNet-18 is compared by CPU time, that of the
workers included, and its images bit by bit: with the defense, the attack, or both in the sandbox.
The other figures are median ratios of wall time. For networks the time until the worker is ready is
printed too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.cpu_time import cpu_seconds
from bench.engine.model_access import ModelAccess
from bench.engine.problem import attack_once
from bench.evaluation.launcher import set_deterministic
from bench.plugin import Attack, Linf, cross_entropy
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from tests.engine.single_run import SingleRun
from tests.sandbox.isolated import PLAIN, sandboxed, unsandboxed, write_submission
from tests.sandbox.test_attack_proxy import BUILT_IN

COST_PAIRS = 5
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


class PgdCost(NamedTuple):
    """PGD with a sandboxed side against PGD in this process."""

    sandboxed: str
    ratios: list[float]
    """CPU time with the workers' over that without a sandbox, of each pair."""
    seconds: float
    """Median CPU seconds without a sandbox."""
    equal: bool
    """Whether all images are bitwise the same."""


def main() -> None:
    """Print the ratios for PGD on ResNet-18, two networks and three attacks."""
    set_deterministic()
    for cost in pgd_costs():
        ratios = ", ".join(f"{ratio:.3f}" for ratio in sorted(cost.ratios))
        print(f"PGD on ResNet-18 with a sandboxed {cost.sandboxed}: CPU time {ratios} of "
              f"{cost.seconds:.2f} s in process, images equal: {cost.equal}")  # fmt: skip
    loaders = (sandboxed, unsandboxed)
    with TemporaryDirectory() as folder:
        for name, (source, shape) in NETWORKS.items():
            submission = Path(folder) / name
            write_submission(submission, source)
            since = time.perf_counter()
            in_worker = built(sandboxed(submission))
            seconds_to_start = time.perf_counter() - since
            ratio, seconds = compare(
                ten_gradients(in_worker, shape),
                ten_gradients(built(unsandboxed(submission)), shape),
            )
            print(f"{name}: 10 gradients of 128 images {ratio:.2f} ({seconds:.3f} s in process), "
                  f"worker started in {seconds_to_start:.1f} s")  # fmt: skip
        for name, module in ATTACKS.items():
            submission = Path(folder) / name
            text = BUILT_IN.replace("{module}", module).replace("{of}", name)
            text = text.replace("{most}", "{}")
            write_submission(submission, text, kind="attack")
            attacks = [load(submission).find("attack", "mine").value for load in loaders]
            sandboxed_run, plain_run = (SingleRun(attack).run for attack in attacks)
            ratio, seconds = compare(sandboxed_run, plain_run)
            print(f"{name} on 150 digits: {ratio:.2f} ({seconds:.3f} s in process)")


def pgd_costs(pairs: int = COST_PAIRS, batch: int = 64, steps: int = 40) -> Iterator[PgdCost]:
    """The costs with the defense, the attack, or both in the sandbox; the order alternates."""
    source, shape = NETWORKS["ResNet-18 of torchvision, 3 x 32 x 32"]
    text = BUILT_IN.replace("{module}", "plugins.attacks.pgd").replace("{of}", "pgd")
    text = text.replace("{most}", "{}")
    kind = 'object.__setattr__(attack, "__class__", renamed)'
    text = text.replace(kind, f'{kind}; object.__setattr__(attack, "steps", {steps})')
    with TemporaryDirectory() as folder:
        write_submission(Path(folder) / "net", source)
        write_submission(Path(folder) / "attack", text, kind="attack")
        loaders = (unsandboxed, sandboxed)
        nets = [built(load(Path(folder) / "net")) for load in loaders]
        attacks = [load(Path(folder) / "attack").find("attack", "mine").value for load in loaders]
        x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
        plain = pgd(attacks[0], nets[0], x)
        for name, attack, net in (
            ("defense", attacks[0], nets[1]), ("attack", attacks[1], nets[0]),
            ("defense and attack", attacks[1], nets[1]),
        ):  # fmt: skip
            yield pgd_cost(name, plain, pgd(attack, net, x), pairs)


def pgd(attack: Attack, net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A function that attacks images [n, C, H, W] once."""
    y, example = torch.arange(len(x)) % 10, torch.arange(len(x))
    ball = Linf(Fraction(8, 255))
    return lambda: attack_once(attack, net, x, y, ball, seed=0, example=example)


def pgd_cost(
    name: str, plain: Callable[[], Tensor], inside: Callable[[], Tensor], pairs: int
) -> PgdCost:
    """The cost of one function beside another, after one unmeasured run of each."""
    expected, ratios, seconds = plain(), [], []
    equal = torch.equal(inside(), expected)
    for pair in range(pairs):
        used = {}
        for run in (plain, inside) if pair % 2 else (inside, plain):
            before = cpu_seconds()
            images = run()
            used[run] = cpu_seconds() - before
            equal &= torch.equal(images, expected)
        ratios.append(used[inside] / used[plain])
        seconds.append(used[plain])
    return PgdCost(name, ratios, statistics.median(seconds), equal)


def built(registry: Registry) -> nn.Module:
    """The network of the submission."""
    return DefenseBuilder(registry, "mine", registry.find("dataset", "digits").value).build()


def ten_gradients(module: nn.Module, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """A function that takes ten signed gradient steps on 128 images [128, *shape]."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(128, *shape, generator=generator), torch.arange(128) % 10
    access = ModelAccess(module)

    def run() -> Tensor:
        adv = x
        for _ in range(10):
            found = access.gradient(adv, lambda logits: cross_entropy(logits, y))
            adv = (adv + 0.01 * found.gradient.sign()).clamp(0, 1)
        return adv

    return run


def compare(one: Callable[[], object], two: Callable[[], object]) -> tuple[float, float]:
    """(median ratio of wall time, median seconds of the second), after one untimed run of each."""
    seconds: dict[Callable[[], object], list[float]] = {one: [], two: []}
    for pair in range(COST_PAIRS + 1):
        for run, measured in seconds.items():
            since = time.perf_counter()
            run()
            if pair:
                measured.append(time.perf_counter() - since)
    ratios = [a / b for a, b in zip(seconds[one], seconds[two], strict=True)]
    return statistics.median(ratios), statistics.median(seconds[two])


if __name__ == "__main__":
    main()
