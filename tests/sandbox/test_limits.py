"""Limits of time that a plugin cannot raise, and its CPU time, which the harness measures.

Covers bench.core.cpu_time too.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from bench.core.cpu_time import cpu_seconds
from bench.core.errors import PluginError
from bench.sandbox import isolation
from bench.sandbox.deadline import CELL_DEADLINE
from bench.sandbox.isolation import Limits
from bench.sandbox.process import WORKER_CLOCK
from bench.training.defense_builder import DefenseBuilder
from tests.benchmarks.sandbox_cost import pgd_costs
from tests.fixtures.known_models import digits
from tests.sandbox.isolated import PLAIN, sandboxed, write_submission

pytestmark = pytest.mark.usefixtures("sandbox")

BURNING = PLAIN.replace(
    "        return self.layer(images.flatten(1))",
    "        import os, signal, time\n"
    "        signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "        if images.sum() == 0 and os.fork() == 0:\n"
    "            until = time.process_time() + 0.5\n"
    "            while time.process_time() < until: pass\n"
    "            os._exit(0)\n"
    "        until = time.process_time() + 0.5\n"
    "        while time.process_time() < until: pass\n"
    "        return self.layer(images.flatten(1))",
)
SLEEPING = PLAIN.replace(
    "        return self.layer(images.flatten(1))",
    "        import time\n        time.sleep(60)\n        return self.layer(images.flatten(1))",
).replace("build=build)", "build=build, forwards=10**6)")


def built(folder: Path) -> torch.nn.Module:
    """The sandboxed model of the submission in a folder."""
    registry = sandboxed(folder)
    assert registry.reasons_not_imported == {}
    return DefenseBuilder(registry, "mine", registry.find("dataset", "digits").value).build()


def test_the_cpu_time_of_a_worker_is_part_of_the_harness_s(tmp_path: Path) -> None:
    write_submission(tmp_path, BURNING)
    module, x = built(tmp_path), digits(8)[0]
    for images, burned in ((x, 0.5), (torch.zeros_like(x), 1.0)):
        before, own = cpu_seconds(), time.process_time()
        module(images)
        time.sleep(1.0)  # the child burns on after the reply
        used, in_this_process = cpu_seconds() - before, time.process_time() - own
        assert burned - 0.15 < used - in_this_process < burned + 0.3
    total = WORKER_CLOCK.seconds()
    del module
    assert WORKER_CLOCK.seconds() >= total


@pytest.mark.slow
def test_pgd_in_the_sandbox_has_the_same_images_and_counts_its_workers() -> None:
    costs = list(pgd_costs(pairs=1, batch=8, steps=3))
    assert [cost.sandboxed for cost in costs] == ["defense", "attack", "defense and attack"]
    assert all(cost.equal for cost in costs)
    # Without the workers' time the first and the last would take a few hundredths.
    assert all(0.5 < cost.ratios[0] < 4 for cost in costs)


def test_no_declaration_raises_the_limit_of_a_call_beyond_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "LIMITS", Limits(call=0.5, longest_call=1.5))
    write_submission(tmp_path, SLEEPING)
    module, since = built(tmp_path), time.monotonic()
    with pytest.raises(PluginError, match=r"within 1\.5 s; its process was ended: .* 5\.3 images"):
        module(digits(8)[0])
    assert time.monotonic() - since < 10


def test_a_cell_ends_whatever_its_calls_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "LIMITS", Limits(cell=1.0))
    write_submission(tmp_path, BURNING)
    module, x = built(tmp_path), digits(8)[0]
    with (
        CELL_DEADLINE.cell(),
        pytest.raises(PluginError, match=r"mine did not finish its cell within 1 s; its process"),
    ):
        for _ in range(10):  # each takes half a second, where a call may take a minute
            module(x)
    assert len(module(x)) == 8  # in another cell, by a new process
