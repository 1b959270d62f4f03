"""Is this machine fit to play? One finding for each thing a run leans on."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from bench.core.errors import BenchError
from bench.data import datasets
from bench.engine.model_access import ModelAccess
from bench.plugin.losses import cross_entropy
from bench.registry.registry import Registry
from bench.sandbox import isolation, process
from bench.store import Store

SPARE = 1 << 30  # bytes under which the disk counts as full


@dataclass(frozen=True)
class DoctorFinding:
    """One thing looked at."""

    name: str
    fit: bool
    sentence: str


def examine_machine(url: str | None) -> list[DoctorFinding]:
    """Look at everything a run needs; nothing is changed."""
    return [look(url) for look in LOOKS]


def _python(_: str | None) -> DoctorFinding:
    names = ("torch", "torchvision", "sqlalchemy", "streamlit", "pluggy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return DoctorFinding("versions", True, f"Python {platform.python_version()}, {versions}.")


def _devices(_: str | None) -> DoctorFinding:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(names) or "no CUDA device; cells are played on the CPU"
    return DoctorFinding("devices", True, f"{found}; {torch.get_num_threads()} threads.")


def _arithmetic(_: str | None) -> DoctorFinding:
    """A gradient that is known: of the cross-entropy of a linear model."""
    layer = torch.nn.Linear(4, 3)
    images = torch.full((32, 4), 0.5)
    label = torch.zeros(32, dtype=torch.int64)
    since = time.perf_counter()
    answer = ModelAccess(layer).gradient(images, lambda logits: cross_entropy(logits, label))
    share = answer.logits.softmax(1) - torch.nn.functional.one_hot(label, 3)
    exact = bool(torch.allclose(answer.gradient, share @ layer.weight, atol=1e-6))
    took = time.perf_counter() - since
    word = "as in closed form" if exact else "NOT as in closed form: reinstall torch"
    return DoctorFinding("arithmetic", exact, f"a smoke gradient came out {word} in {took:.2f} s.")


def _plugins(_: str | None) -> DoctorFinding:
    registry = Registry.load()
    counts = f"{len(registry.attacks)} attacks, {len(registry.defenses)} defenses"
    if registry.problems:
        return DoctorFinding("plugins", False, f"{counts}; refused: {' '.join(registry.problems)}")
    return DoctorFinding("plugins", True, f"{counts}, none refused.")


def _datasets(_: str | None) -> DoctorFinding:
    """Whatever lies there is read and checked; nothing is downloaded."""
    here, broken = [], []
    for name, offer in Registry.load().datasets.items():
        if name != "digits" and not (datasets.data_folder() / (offer.value.place or name)).exists():
            continue
        try:
            datasets.load_dataset(offer.value)
            here.append(name)
        except BenchError as error:
            broken.append(str(error))
    sentence = f"read and checked: {', '.join(here)}; others from {datasets.data_folder()}."
    return DoctorFinding("data", not broken, " ".join([*broken, sentence]))


def _database(url: str | None) -> DoctorFinding:
    with Store.open(url, read_only=True) as store:
        problems = store.check()
    sentence = " ".join(problems) or "every stored digest and reference holds."
    return DoctorFinding("database", not problems, sentence)


def _disk(_: str | None) -> DoctorFinding:
    free = shutil.disk_usage(Path.cwd()).free
    word = "enough" if free > SPARE else "too little: free some before a run"
    return DoctorFinding("disk", free > SPARE, f"{free / SPARE:.1f} GiB free here, {word}.")


def _isolation(_: str | None) -> DoctorFinding:
    """Walls are put up around a worker, not only looked for."""
    if isolation.why_unavailable():
        return DoctorFinding(
            "isolation", True, f"{isolation.why_unavailable()}; they wait, or run with "
            "--allow-unsandboxed.",
        )  # fmt: skip
    since, worker = time.perf_counter(), process.SandboxProcess()
    worker.start()
    worker.close()
    took = time.perf_counter() - since
    return DoctorFinding("isolation", True, f"a worker stood behind walls within {took:.1f} s.")


def _guarded(look: Callable[[str | None], DoctorFinding]) -> Callable[[str | None], DoctorFinding]:
    """A look whose failure is a finding."""

    def guarded(url: str | None) -> DoctorFinding:
        try:
            return look(url)
        except BenchError as error:
            # A database that is not there yet is no illness.
            missing = "there is no database" in str(error)
            return DoctorFinding(look.__name__.strip("_"), missing, str(error))

    return guarded


LOOKS = [
    _guarded(look)
    for look in (
        _python, _devices, _arithmetic, _plugins, _datasets, _database, _disk, _isolation,
    )
]  # fmt: skip
