"""Plays the canaries against the built-in attacks, once per code and machine class.

Where an attack breaks more than the closed form allows or leaves more than it leaves, or where a
diagnostic misses a fake, runs of this code on this machine class are marked invalid.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import bench
import plugins
from bench.core.cells import Cell, Numeric
from bench.core.errors import PLUGIN_EXCEPTIONS, error_text
from bench.core.folders import cache_folder
from bench.core.hashing import digest
from bench.core.outcomes import Verdict
from bench.data import datasets
from bench.engine.machine import this_machine
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.canary_models import CANARY_IMAGES, Canary, canaries
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.diagnostics import evidence_of
from bench.evaluation.plan import PlannedPair
from bench.plugin import Dataset, Defense, Finding, Images, Split
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.results.canary_check import CANARY_CHECK, CANARY_OWNER
from bench.store import EvidenceRow, Store
from bench.threats.threat_model import ThreatModel
from bench.training.defense_builder import DefenseBuilder

SOUND = {
    "Linf": ("random", "mi-fgsm", "square"),
    "L2": ("random", "square-l2"),
    "L1": ("random", "square-l1"),
}
"""Norm -> attacks of which the canaries only ask that they break nothing unbreakable."""
WARNINGS = ("zero-gradients", "deterministic", "batch-independent")
"""Diagnostics that each warn on one fake and on no honest canary."""
CODE_FOLDERS = ("threats", "plugin", "data", "engine", "referee", "evaluation")
"""Packages of bench on which the figures of a cell depend."""
PLUGIN_FOLDERS = ("attacks", "diagnostics")
_Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CanaryReport:
    """The results of all canaries for one version of the code on one machine class."""

    code: str
    """Digest of the code."""
    machine: str
    findings: dict[str, str]
    """Canary -> what came out wrong; empty where it came out right."""

    @property
    def failures(self) -> dict[str, str]:
        """The canaries that came out wrong."""
        return {name: wrong for name, wrong in self.findings.items() if wrong}

    @property
    def sentence(self) -> str:
        """One sentence for lists and evidence."""
        where = f"code {self.code[:12]} on {self.machine}"
        if not self.failures:
            return f"All {len(self.findings)} canaries came out right for {where}."
        wrong = " ".join(f"{name}: {text}" for name, text in self.failures.items())
        return f"{len(self.failures)} of {len(self.findings)} canaries fail for {where}. {wrong}"


@cache
def code_digest() -> str:
    """Digest of the sources on which the figures of a cell depend."""
    roots = [Path(bench.__file__).parent / name for name in CODE_FOLDERS]
    roots += [Path(plugins.__file__).parent / name for name in PLUGIN_FOLDERS]
    files = {
        f"{root.parent.name}/{path.relative_to(root.parent).as_posix()}": path
        for root in roots
        for path in root.rglob("*.py")
    }
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return digest(hashes)


def machine_class(device: torch.device, numeric: str = Numeric.FLOAT32) -> str:
    """The machine class of this process and the arithmetic of a run, on one line."""
    return f"{this_machine(device).sentence}, {numeric}"


def recorded_canaries(store: Store, registry: Registry, settings: RunSettings) -> CanaryReport:
    """The report of this code on this machine class, recorded in the database.

    It is played where neither the database nor the cache folder has it.
    """
    code, machine = code_digest(), machine_class(settings.device, settings.numeric)
    known = known_canaries(store, code, machine)
    if known is not None:
        return known
    report = cached_canaries(registry, settings)
    for name, wrong in report.findings.items():
        finding = Finding.WARNING if wrong else Finding.PASSED
        row = EvidenceRow(name, str(finding), wrong, code)
        store.record_evidence(CANARY_OWNER, code, machine, row)
    return report


def cached_canaries(registry: Registry, settings: RunSettings) -> CanaryReport:
    """The report from a file of the cache folder; played where there is none."""
    code, machine = code_digest(), machine_class(settings.device, settings.numeric)
    path = cache_folder() / "canaries" / f"{digest([code, machine])}.json"
    names = {canary.name for canary in canaries()}
    with suppress(OSError, ValueError):
        findings = json.loads(path.read_text())
        if isinstance(findings, dict) and set(findings) == names:
            return CanaryReport(code, machine, findings)
    report = play_canaries(registry, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(report.findings))
    partial.replace(path)
    return report


def mark_cell(store: Store, cell: Cell, report: CanaryReport | None) -> None:
    """Record with a cell whether the canaries of the code that evaluates it came out right.

    A cell that was begun by code whose canaries came out wrong remains marked.
    """
    if report is None:
        return
    known = {row.diagnostic: row for row in store.evidence(cell.key, cell.examples)}
    before = known.get(CANARY_CHECK)
    if before is None or before.finding != Finding.WARNING:
        finding = Finding.WARNING if report.failures else Finding.PASSED
        row = EvidenceRow(CANARY_CHECK, str(finding), report.sentence, report.code)
        store.record_evidence(cell.defense, cell.key, cell.examples, row)


def known_canaries(store: Store, code: str, machine: str) -> CanaryReport | None:
    """The recorded report; None where there is none for all canaries."""
    rows = {row.diagnostic: row.sentence for row in store.evidence(code, machine)}
    names = [canary.name for canary in canaries()]
    if set(names) - set(rows):
        return None
    return CanaryReport(code, machine, {name: rows[name] for name in names})


def play_canaries(registry: Registry, settings: RunSettings) -> CanaryReport:
    """Play every canary; torch's global random state is left unchanged."""
    findings = {canary.name: _wrong(canary, registry, settings) for canary in canaries()}
    machine = machine_class(settings.device, settings.numeric)
    return CanaryReport(code_digest(), machine, findings)


def _wrong(canary: Canary, registry: Registry, settings: RunSettings) -> str:
    """What came out wrong, in sentences; empty where nothing did."""
    try:
        return " ".join(_faults(canary, registry, settings))
    except PLUGIN_EXCEPTIONS as error:
        # An attack or a diagnostic that cannot run here cannot run in a cell either.
        return f"It could not be played: {error_text(error)}."


def _faults(canary: Canary, registry: Registry, settings: RunSettings) -> Iterator[str]:
    """One sentence for each attack and each diagnostic with a wrong result."""
    own, threat, built = _built(canary, registry, settings)
    noisy = canary.warning in ("deterministic", "batch-independent")
    broken: dict[str, _Bits] = {}
    for name in () if noisy else _attacks(canary):
        pair = PlannedPair(threat, built.defense, own.find("attack", name).value)
        verdict = CellPlayer("none").outcomes(pair, built).verdict
        broken[name] = verdict == Verdict.BROKEN
        yield from _wrong_cell(name, broken[name], canary)
    if canary.together:
        found = np.logical_or.reduce([broken[name] for name in canary.together])
        missed = int((canary.breakable & ~found).sum())
        if missed:
            yield f"{', '.join(canary.together)} leave {missed} that the closed form breaks."
    yield from _wrong_diagnostics(canary, registry, built)


def _attacks(canary: Canary) -> tuple[str, ...]:
    """The names of all attacks that a canary meets, each once."""
    sound = () if canary.warning else SOUND[canary.ball.name]
    return tuple(dict.fromkeys((*canary.exact, *canary.together, *sound)))


def _wrong_cell(name: str, broken: _Bits, canary: Canary) -> Iterator[str]:
    """Sentences on one attack: it breaks the unbreakable, or leaves what it must break ([n])."""
    beyond = int((broken & ~canary.breakable).sum())
    if beyond:
        yield f"{name} breaks {beyond} of {CANARY_IMAGES} that have no adversarial example."
    missed = int((canary.breakable & ~broken).sum())
    if name in canary.exact and missed:
        yield f"{name} leaves {missed} of {CANARY_IMAGES} that the closed form breaks."


def _wrong_diagnostics(canary: Canary, registry: Registry, built: BuiltDefense) -> Iterator[str]:
    """Sentences on diagnostics: the one of a fake must warn, on honest canaries none of them."""
    if canary.bpda is not None:  # its own gradient is zero, as declared
        return
    for name in (canary.warning,) if canary.warning else WARNINGS:
        finding, sentence = evidence_of(registry.find("diagnostic", name).value, built)
        if (finding is Finding.WARNING) != bool(canary.warning):
            yield f"{name} says {finding}: {sentence}"


def _built(
    canary: Canary, registry: Registry, settings: RunSettings
) -> tuple[Registry, ThreatModel, BuiltDefense]:
    """A registry with the canary and the built-in attacks, its threat model, and it built."""
    data = Split(canary.images, canary.labels)
    index = np.arange(len(canary.labels))
    dataset = Dataset(
        canary.name, tuple(map(str, range(canary.classes))), (1, 4, 4),
        lambda _: Images(None, data, index), len(canary.labels),
    )  # fmt: skip
    threat = ThreatModel(canary.name, canary.name, canary.ball)
    approximation = canary.bpda
    defense = Defense(
        canary.name, lambda _: canary.model, (canary.name,),
        bpda=None if approximation is None else lambda _: approximation,
    )  # fmt: skip
    built_in = {n: r for n, r in registry.attacks.items() if r.origin == "built-in"}
    own = Registry(
        datasets={canary.name: Registration(dataset, "built-in", canary.name, "")},
        threats={canary.name: Registration(threat, "built-in", canary.name, "")},
        attacks=built_in,
        defenses={canary.name: Registration(defense, "built-in", canary.name, "")},
    )
    builder = DefenseBuilder(own, canary.name, dataset)
    examples = datasets.first_examples(dataset, len(canary.labels))
    plain = replace(settings, slots=CANARY_IMAGES)
    return own, threat, BuiltDefense(builder, examples, plain, seed=0)
