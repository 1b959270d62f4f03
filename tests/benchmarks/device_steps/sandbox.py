"""Step f: a sandboxed defense that is attacked with images on the device."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.plugin import cross_entropy
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from tests.benchmarks.device_steps.step import Step
from tests.benchmarks.unit_cost import now
from tests.sandbox.isolated import PLAIN, sandboxed, unsandboxed, write_submission

FIXED = PLAIN.replace(
    "self.layer = nn.Linear(64, 10)",
    """self.layer = nn.Linear(64, 10)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(640.0).sin().view(10, 64))
            self.layer.bias.zero_()""",
)
"""A network whose weights are the same in each process."""
WHY = "the sandbox has no device files, so its process computes on the CPU; images are copied"
START_SECONDS = 10.0  # about the start of a sandboxed process
STEPS = 10


def run(step: Step) -> None:
    """The same signed steps against a defense in the sandbox and in this process."""
    if not step.fits("a sandboxed defense", START_SECONDS):
        return
    with TemporaryDirectory() as folder:
        write_submission(Path(folder), FIXED)
        since = time.monotonic()
        remote = built(sandboxed(Path(folder)))
        started = time.monotonic() - since
        local = built(unsandboxed(Path(folder))).to(step.device)
        images, seconds = signed_steps(remote, step)
        expected, local_seconds = signed_steps(local, step)
    step.add(
        images_on=str(images.device), network_on="cpu", why=WHY, images=len(images),
        steps=STEPS, start_seconds=started, seconds=seconds, in_process_seconds=local_seconds,
        differing_pixels=int((images != expected).sum()),
    )  # fmt: skip


def built(registry: Registry) -> nn.Module:
    """The network of the submission."""
    return DefenseBuilder(registry, "mine", registry.find("dataset", "digits").value).build()


def signed_steps(module: nn.Module, step: Step) -> tuple[Tensor, float]:
    """Images [n, 1, 8, 8] on the device after some signed gradient steps, and the seconds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(step.size.sandbox_images, 1, 8, 8, generator=generator).to(step.device)
    y = torch.arange(len(x), device=step.device) % 10
    access = ModelAccess(module)
    since = now(step.device)
    for _ in range(STEPS):
        slope = access.gradient(x, lambda logits: cross_entropy(logits, y)).gradient
        x = (x + 0.01 * slope.sign()).clamp(0, 1)
    return x, now(step.device) - since
