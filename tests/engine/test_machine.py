"""The machine class that a process reports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench.engine.machine import this_machine


def test_the_machine_class_is_that_of_torch() -> None:
    found = this_machine(torch.device("cpu"))
    capability = torch.backends.cpu.get_cpu_capability()
    assert (found.device, found.cpu_capability) == ("cpu", capability)
    assert (found.torch, found.threads) == (torch.__version__, torch.get_num_threads())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("ATEN_CPU_CAPABILITY", "default", "DEFAULT"), ("OMP_NUM_THREADS", "2", "2 threads")],
)
def test_what_changes_roundings_changes_the_machine_class(
    name: str, value: str, expected: str
) -> None:
    program = (
        "import torch; from bench.engine.machine import this_machine;"
        "print(this_machine(torch.device('cpu')).sentence)"
    )
    command = ["env", f"{name}={value}", sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert expected in said and said.strip() != this_machine(torch.device("cpu")).sentence
