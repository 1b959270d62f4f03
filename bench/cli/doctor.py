"""Checks whether this machine can run evaluations: one finding per requirement."""

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
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.canaries import cached_canaries
from bench.evaluation.launcher import set_deterministic
from bench.plugin import Dataset
from bench.plugin.losses import cross_entropy
from bench.registry.registry import Registry
from bench.sandbox import isolation, process
from bench.store import Store

FREE_BYTES = 1 << 30  # of disk space that a run needs


@dataclass(frozen=True)
class DoctorFinding:
    """The result of one examination."""

    name: str
    fit: bool
    sentence: str


def examine_machine(url: str | None) -> list[DoctorFinding]:
    """Examine everything that a run needs; changes nothing."""
    return [examine(url) for examine in EXAMINATIONS]


def _python(_: str | None) -> DoctorFinding:
    names = ("torch", "torchvision", "sqlalchemy", "streamlit", "pluggy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return DoctorFinding("versions", True, f"Python {platform.python_version()}, {versions}.")


def _devices(_: str | None) -> DoctorFinding:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(names) or "no CUDA device; cells run on the CPU"
    return DoctorFinding("devices", True, f"{found}; {torch.get_num_threads()} threads.")


def _arithmetic(_: str | None) -> DoctorFinding:
    """Compares the gradient of a linear model's cross-entropy with its closed form."""
    layer = torch.nn.Linear(4, 3)
    images = torch.full((32, 4), 0.5)
    label = torch.zeros(32, dtype=torch.int64)
    since = time.perf_counter()
    answer = ModelAccess(layer).gradient(images, lambda logits: cross_entropy(logits, label))
    share = answer.logits.softmax(1) - torch.nn.functional.one_hot(label, 3)
    exact = bool(torch.allclose(answer.gradient, share @ layer.weight, atol=1e-6))
    took = time.perf_counter() - since
    word = "equals its closed form" if exact else "does NOT equal its closed form: reinstall torch"
    return DoctorFinding("arithmetic", exact, f"a test gradient {word} ({took:.2f} s).")


def _plugins(_: str | None) -> DoctorFinding:
    registry = Registry.load()
    counts = f"{len(registry.attacks)} attacks, {len(registry.defenses)} defenses"
    if registry.problems:
        return DoctorFinding("plugins", False, f"{counts}; refused: {' '.join(registry.problems)}")
    return DoctorFinding("plugins", True, f"{counts}, none refused.")


def _datasets(_: str | None) -> DoctorFinding:
    """Reads and checks every data set that is present; downloads nothing."""
    read, broken = [], []
    for name, offer in Registry.load().datasets.items():
        if not _is_present(offer.value):
            continue
        try:
            datasets.load_dataset(offer.value)
            read.append(f"{name} ({_settings(offer.value)})" if offer.value.local else name)
        except BenchError as error:
            broken.append(str(error))
    sentence = (
        f"read and checked: {', '.join(read)}; the others belong into {datasets.data_folder()}."
    )
    return DoctorFinding("data", not broken, " ".join([*broken, sentence]))


def _is_present(dataset: Dataset) -> bool:
    """Whether a data set needs no files, names its own, or has them in the data folder."""
    if dataset.name == "digits" or dataset.local or dataset.problem:
        return True
    return (datasets.data_folder() / (dataset.place or dataset.name)).exists()


def _settings(dataset: Dataset) -> str:
    """What is read of the user's own files: how many images, their size and digest."""
    test = datasets.load_dataset(dataset).test
    digest = datasets.first_examples(dataset, len(test.labels)).digest
    size = " x ".join(map(str, test.images.shape[2:]))
    return f"{dataset.summary} {len(test.labels)} are read as {size} pixels, digest {digest}"


def _canaries(_: str | None) -> DoctorFinding:
    """Plays defenses with known robust accuracy against the built-in attacks."""
    set_deterministic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = cached_canaries(Registry.without_submissions(), RunSettings(device))
    return DoctorFinding("canaries", not report.failures, report.sentence)


def _database(url: str | None) -> DoctorFinding:
    with Store.open(url, read_only=True) as store:
        problems = store.check()
    sentence = (
        " ".join(f"{fault.sentence}." for fault in problems)
        or "every stored digest and reference is correct."
    )
    return DoctorFinding("database", not problems, sentence)


def _disk(_: str | None) -> DoctorFinding:
    free = shutil.disk_usage(Path.cwd()).free
    word = "enough" if free > FREE_BYTES else "too little: delete files before a run"
    sentence = f"{free / FREE_BYTES:.1f} GiB free here, {word}."
    return DoctorFinding("disk", free > FREE_BYTES, sentence)


def _isolation(_: str | None) -> DoctorFinding:
    """Starts a sandboxed process, to see that it works here."""
    if isolation.why_unavailable():
        return DoctorFinding(
            "isolation", True, f"{isolation.why_unavailable()}; submitted code is not run "
            "without --allow-unsandboxed.",
        )  # fmt: skip
    since, sandbox = time.perf_counter(), process.SandboxProcess()
    sandbox.start()
    sandbox.close()
    took = time.perf_counter() - since
    return DoctorFinding("isolation", True, f"a sandboxed process started within {took:.1f} s.")


def _guarded(
    examine: Callable[[str | None], DoctorFinding],
) -> Callable[[str | None], DoctorFinding]:
    """An examination whose BenchError becomes a finding."""

    def guarded(url: str | None) -> DoctorFinding:
        try:
            return examine(url)
        except BenchError as error:
            missing = "there is no database" in str(error)  # the first run creates it
            return DoctorFinding(examine.__name__.strip("_"), missing, str(error))

    return guarded


EXAMINATIONS = [
    _guarded(examine)
    for examine in (
        _python, _devices, _arithmetic, _canaries, _plugins, _datasets, _database, _disk,
        _isolation,
    )
]  # fmt: skip
