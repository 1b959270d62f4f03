"""Plays a planted case with the machinery of a run, and says whether it was caught."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.contract.check import CheckOutcome
from bench.contract.runner import check_registration
from bench.core.cells import CellState
from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, error_text
from bench.core.outcomes import Verdict
from bench.data import datasets
from bench.evaluation.launcher import MatrixRun, make_worker
from bench.evaluation.plan import Selection
from bench.registry.registry import Registry
from bench.results.leaderboards import find_leaderboard
from bench.results.masking_checks import WARNING
from bench.results.ranking import load_ranking
from bench.store import CellRow, Store
from bench.training.defense_builder import DefenseBuilder, build_module
from bench.training.tasks import build_trained
from tests.planted import oracle
from tests.planted.cases import Case
from tests.planted.networks import CNN

TOLERANCE = 0.05
"""Robust accuracy above the truth by which a dishonest defense counts as broken."""
BELOW = 0.02
"""Robust accuracy below the truth from which a broken attack has claimed what it did not find."""
ROOT = Path(__file__).parents[2]
ENTRY_POINT = "[bench]\nplanted = tests.planted.plugin\n"


@dataclass
class Played:
    """The result of one case."""

    name: str
    group: str
    what: str
    truth: float = float("nan")
    """Robust accuracy by the oracle on the white-box version."""
    clean: float = float("nan")
    ours: float = float("nan")
    """Our worst case over required and follow-up attacks; nan without a figure."""
    verdict: str = "none"
    fired: list[str] = field(default_factory=list)
    """Masking checks that raised a warning."""
    refused: list[str] = field(default_factory=list)
    """Contract checks that failed."""
    notes: list[str] = field(default_factory=list)
    caught: bool = False
    """Of an honest one: whether it was accused."""
    seconds: float = 0.0
    per_attack: dict[str, float] = field(default_factory=dict)
    """Robust accuracy by attack."""

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@contextmanager
def installed() -> Iterator[None]:
    """Install the planted cases as a plugin, also for child processes."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        info = Path(folder, "planted_cases-1.0.dist-info")
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-cases\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(ENTRY_POINT)
        before, path = os.environ.get("PYTHONPATH"), list(sys.path)
        sys.path[:0] = [folder, str(ROOT)]
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [folder, str(ROOT), *([before] if before else [])]
        )
        try:
            yield
        finally:
            sys.path[:] = path
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before


def load_registry() -> Registry:
    """The registry with the planted cases; raises BenchError where one was refused."""
    registry = Registry.without_submissions()
    if registry.problems:
        raise BenchError(" ".join(registry.problems))
    return registry


def play(
    case: Case,
    registry: Registry,
    examples: int,
    attacks: tuple[str, ...] = (),
    *,
    until_caught: bool = False,
) -> Played:
    """Play one case; whatever it does, there is a result.

    A defense meets these attacks; without any the required and follow-up attacks of the protocol.
    With `until_caught` no dishonest defense is evaluated that a contract check refuses.
    """
    since = time.process_time()
    state = torch.random.get_rng_state()
    played = Played(case.name, case.group, case.what)
    try:
        if case.attack is None:
            play_defense(case, registry, examples, played, attacks, until_caught=until_caught)
        else:
            play_attack(case, registry, examples, played)
    except PLUGIN_EXCEPTIONS as error:  # one case that ends the run is a result of that case
        played.verdict, played.caught = "crash", case.honest
        played.notes.append(error_text(error))
    torch.random.set_rng_state(state)
    played.seconds = round(time.process_time() - since, 1)
    return played


def play_defense(
    case: Case, registry: Registry, examples: int, played: Played, attacks: tuple[str, ...], *,
    until_caught: bool,
) -> None:  # fmt: skip
    """Train, check, evaluate and judge one defense."""
    assert case.defense is not None
    name = case.defense.name
    dataset = registry.find("dataset", registry.find("threat", case.threat).value.dataset).value
    build_trained(registry, name, dataset)
    played.refused = contract_failures(registry, "defense", name)
    if until_caught and played.refused and not case.honest:
        played.caught = True
        return
    played.truth = truth(case, registry, name, examples)
    rows, store_rows = evaluate(registry, case.threat, (name,), attacks, examples, played)
    for row in rows:
        if row.defense == name and row.robust.n:
            figure = row.robust_ranked if row.robust_ranked.n else row.robust
            played.ours, played.clean = figure.k / figure.n, row.clean.k / row.clean.n
            played.verdict = row.verdict
            played.fired = [check.name for check in row.flags if check.state == WARNING]
    failed = [row for row in store_rows if row.state is CellState.FAILED]
    played.notes += [f"{row.cell.attack} failed ({row.culprit}): {row.reason}" for row in failed]
    judged = played.verdict in ("suspect", "invalid") or bool(played.refused)
    no_figure = played.ours != played.ours
    if case.honest:
        played.caught = judged or no_figure
    else:
        played.caught = judged or no_figure or played.ours <= played.truth + TOLERANCE


def play_attack(case: Case, registry: Registry, examples: int, played: Played) -> None:
    """Check and evaluate one attack against the undefended planted network."""
    assert case.attack is not None
    name = case.attack.name
    dataset = registry.find("dataset", "digits").value
    build_trained(registry, CNN, dataset)
    played.truth = truth(case, registry, CNN, examples)
    played.refused = contract_failures(registry, "attack", name)
    _, rows = evaluate(registry, case.threat, (CNN,), (name,), examples, played)
    named = [row for row in rows if row.cell.attack == name]
    for row in named:
        if row.state is CellState.FAILED:
            played.verdict = f"failed, {row.culprit}"
            played.notes.append(row.reason)
        elif row.state is CellState.NOT_APPLICABLE:
            played.verdict = "not applicable"
        elif row.figures is not None:
            played.ours = row.figures.robust / row.cell.items
            if row.figures.refused:
                played.fired.append(f"{row.figures.refused} candidates refused")
    blamed = any(row.culprit is not None and str(row.culprit) == "plugin" for row in named)
    stopped = bool(played.refused) or blamed or played.verdict == "not applicable"
    false_breaks = case.threat == "digits-linf" and played.ours < played.truth - BELOW
    played.caught = not false_breaks and (stopped or not case.weakens)


def truth(case: Case, registry: Registry, name: str, examples: int) -> float:
    """Robust accuracy of the white-box version on the first examples."""
    threat = registry.find("threat", case.threat).value
    dataset = registry.find("dataset", threat.dataset).value
    build = case.white_box or registry.find("defense", name).value.build
    module = build_module(name, build, DefenseBuilder(registry, name, dataset))
    chosen = datasets.first_examples(dataset, examples)
    y = torch.from_numpy(chosen.labels.copy())
    if registry.find("defense", name).value.rejects is not None and case.white_box is None:
        module = torch.nn.Sequential(module, FirstColumns(len(dataset.classes)))
    radius = float(threat.ball.radius)
    return float(oracle.robust(module, chosen.tensor(), y, radius).double().mean())


class FirstColumns(torch.nn.Module):
    """The logits [n, K] of an answer that ends with a rejection score."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, answers: torch.Tensor) -> torch.Tensor:
        """Answers [n, K + 1] to logits [n, K]."""
        return answers[:, : self.classes]


def contract_failures(registry: Registry, kind: str, name: str) -> list[str]:
    """Names of the contract checks that fail."""
    results = check_registration(registry, kind, registry.find(kind, name))
    return [result.check for result in results if result.outcome is CheckOutcome.FAIL]


def evaluate(
    registry: Registry,
    threat: str,
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    examples: int,
    played: Played,
) -> tuple[list[Any], list[CellRow]]:
    """Ranking rows and cells of a run in a database of its own."""
    selection = Selection((threat,), defenses, attacks, examples=examples)
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        url = f"sqlite:///{folder}/bench.db"
        with Store.open(url) as store:
            make_worker(MatrixRun(selection, url, quiet=True), store, registry, _ignore).run()
            cells = store.cells()
            try:
                rows = load_ranking(store, find_leaderboard(store, threat))
            except BenchError as error:
                played.notes.append(str(error))
                rows = []
            for row in cells:
                if row.state is CellState.DONE and row.cell.threat:
                    broken = store.outcomes(row.key).verdict == Verdict.BROKEN
                    played.per_attack[row.cell.attack] = 1 - float(np.mean(broken))
    return rows, cells


def _ignore(event: object) -> None:
    """No progress is shown."""
