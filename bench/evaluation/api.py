"""`bench.evaluate`: a torch module under the attacks of a threat model, on any 8-bit images."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from bench.core.cells import BALANCED_ORDER, FAST
from bench.core.errors import BenchError
from bench.evaluation.attack_run import Array, Radius, deterministic_settings
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.events import CellFailed, DefenseFailed, Event, Listener
from bench.evaluation.launcher import chosen_device
from bench.evaluation.memory_plugins import (
    add_arrays,
    add_model,
    add_threat_model,
    class_count,
    images_and_labels,
    memory_registry,
    require_module,
)
from bench.evaluation.plan import Selection
from bench.evaluation.progress import CostEstimates, ProgressDisplay
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Attack, Dataset, ThreatModel
from bench.registry.registry import Registry
from bench.results.evaluation_result import EvaluationResult, load_evaluation
from bench.results.fast_suite import mode_of_suite
from bench.store import Store
from bench.threats.suites import SUITES
from bench.threats.threat_model import norm_ball

DEFAULT_SUITE = "standard"


def evaluate(
    model: nn.Module,
    data: str | tuple[str, int] | tuple[Array, Array],
    *,
    threat_model: str | None = None,
    norm: str = "Linf", eps: Radius | Sequence[Radius] | None = None,
    attacks: str | Sequence[str] | None = None, suite: str = "",
    name: str = "model", bpda: nn.Module | None = None, random_draws: int = 0,
    order: str = BALANCED_ORDER, seed: int = 0, batch: int | None = None, device: str = "auto",
    db: str | Path | None = None, progress: bool = True,
) -> EvaluationResult:  # fmt: skip
    """Evaluate a model under attack; the referee re-verifies every adversarial example.

    `bench.evaluate(model, ("cifar10", 1000), threat_model="cifar10-linf")` runs what that
    leaderboard asks for; `bench.evaluate(model, (x, y), eps=8/255)` runs AutoAttack's standard
    suite (arXiv:2003.01690). Counts are those of `bench run` with the same settings.

    Args:
        model: images [n, C, H, W] in [0, 1] to logits [n, K]. Copies are evaluated, in eval mode.
        data: a data set, with a number of test images or without, or images [n, C, H, W] of 8 bits
            with labels [n].
        threat_model: a registered threat model; without it `norm` and `eps` state one.
        norm: `Linf`, `L2` or `L1`.
        eps: the radius, or several for a curve.
        attacks: attacks, variants such as `pgd[steps=100]`, or suites; None: what the protocol of
            `threat_model` asks for, else the suite `standard`.
        suite: `fast`, which runs alone: AutoAttack on few survivors, with a bound on what it would
            still break on the others.
        name: the model in tables.
        bpda: a BPDA approximation of the model, whose gradients attacks use as well.
        random_draws: for a random model, the number of draws that each gradient averages.
        order: which test images are the first, `balanced` or `file`; `seed`: of random numbers.
        batch: images on the device at once; None: 512 of at most 256 values, else 128.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        db: a database for the outcomes, from which an interrupted call goes on.
        progress: show progress on stderr.

    Returns:
        The counts with their intervals, which print as a table.

    Raises:
        BenchError: an argument is wrong, or an evaluation failed.
    """
    require_module(model, "model")
    registry = memory_registry()
    dataset, count = _dataset(registry, model, data)
    add_model(registry, model, dataset, name=name, bpda=bpda, random_draws=random_draws)
    mode = mode_of_suite(suite, "full", [attacks] if isinstance(attacks, str) else attacks or ())
    threats = _threat_models(registry, dataset, threat_model, norm, eps, attacks, count)
    ranked = threat_model is not None and threats[0].protocol.ranked
    whole = mode == FAST or (attacks is None and not suite and ranked)
    chosen = () if whole else _attack_names(registry, threats, suite or attacks)
    names = tuple(threat.name for threat in threats)
    selection = Selection(names, (name,), chosen, count, seed, mode, suite, order)
    with _database(db) as (url, kept):
        settings = RunSettings(chosen_device(device), batch)
        diagnosed = attacks is None and suite in ("", FAST)
        found = _run(registry, selection, settings, url, whole=diagnosed, progress=progress)
        return kept(replace(found, url=url))


# --- the arguments of `evaluate`


def _dataset(
    registry: Registry, model: nn.Module, data: str | tuple[str, int] | tuple[Array, Array]
) -> tuple[Dataset, int | None]:
    """The data set and the number of examples; None: as the threat model states."""
    if isinstance(data, str):
        found: Dataset = registry.find("dataset", data).value
        return found, None
    if not isinstance(data, tuple) or len(data) != 2:
        raise BenchError(
            f"data is {type(data).__name__}; use the name of a data set, (name, number), or "
            "(images, labels)."
        )
    first, second = cast(tuple[Any, Any], data)
    if isinstance(first, str):
        if not isinstance(second, int) or second < 1:
            raise BenchError(f"data is ({first!r}, {second!r}); use a number of images.")
        found = registry.find("dataset", first).value
        return found, second
    x, y = images_and_labels(first, second)
    return add_arrays(registry, x, y, class_count(model, x)), len(x)


def _threat_models(
    registry: Registry,
    dataset: Dataset,
    named: str | None,
    norm: str,
    eps: Radius | Sequence[Radius] | None,
    attacks: str | Sequence[str] | None,
    count: int | None,
) -> list[ThreatModel]:
    """The named threat model, or one for each radius. Raises BenchError where both are given."""
    if (named is None) == (eps is None):
        raise BenchError("name a threat_model or give eps, one of the two.")
    if named is not None:
        found: ThreatModel = registry.find("threat", named).value
        if found.dataset != dataset.name:
            raise BenchError(
                f"{named} is for {found.dataset} and the data are {dataset.name}; give norm and "
                "eps for data of your own."
            )
        return [found]
    several = isinstance(eps, Sequence) and not isinstance(eps, str)
    radii: list[Any] = list(eps) if several else [eps]  # type: ignore[arg-type]
    if not radii:
        raise BenchError("eps is empty; give one radius or several.")
    n = count or dataset.test_size
    balls = [norm_ball(norm, radius) for radius in radii]
    made = [
        add_threat_model(registry, dataset, ball, _suite_attacks(ball.name, attacks), n)
        for ball in balls
    ]
    return list({threat.name: threat for threat in made}.values())


def _suite_attacks(norm: str, attacks: str | Sequence[str] | None) -> tuple[str, ...]:
    """The attacks by name; those of a suite in its place, `standard` for None."""
    named = [attacks or DEFAULT_SUITE] if attacks is None or isinstance(attacks, str) else attacks
    found: list[str] = []
    for name in named:
        found += SUITES[name].attacks[norm] if name in SUITES else [name]
    return tuple(dict.fromkeys(found))


def _attack_names(
    registry: Registry, threats: Sequence[ThreatModel], attacks: str | Sequence[str] | None
) -> tuple[str, ...]:
    """The attacks to run, which are those of the suite `standard` for None."""
    names = _suite_attacks(threats[0].ball.name, attacks)
    found: list[Attack] = [registry.find("attack", name).value for name in names]
    return tuple(dict.fromkeys(attack.name for attack in found))


# --- the run


class _Failures:
    """A listener that keeps the reasons of failures and passes every event on."""

    def __init__(self, show: Listener) -> None:
        self.show, self.reasons = show, list[str]()

    def __call__(self, event: Event) -> None:
        if isinstance(event, CellFailed):
            self.reasons.append(f"{event.cell.attack} failed: {event.reason}")
        if isinstance(event, DefenseFailed):
            self.reasons.append(event.reason)
        self.show(event)

    def raise_first(self) -> None:
        """Raises BenchError with the first reason, where something failed."""
        if self.reasons:
            raise BenchError(self.reasons[0])


def _run(
    registry: Registry,
    selection: Selection,
    settings: RunSettings,
    url: str,
    *,
    whole: bool,
    progress: bool,
) -> EvaluationResult:
    """Evaluate a selection; `whole`: with the diagnostics and certifiers of a leaderboard row."""
    if not whole:
        registry.diagnostics.clear()
    certifiers = "quick" if whole else "none"
    with deterministic_settings(), Store.open(url) as store, _shown(progress) as show:
        failures = _Failures(show)
        MatrixWorker(
            registry, store, selection, settings, certifiers=certifiers, listener=failures
        ).run()
        failures.raise_first()
        return load_evaluation(
            store, selection.defenses[0], selection.threats, selection.order, selection.mode
        )


@contextmanager
def _database(
    db: str | Path | None,
) -> Iterator[tuple[str, Callable[[EvaluationResult], EvaluationResult]]]:
    """The URL or path of the database, and a function that ties its folder to the result.

    Without `db` it is in a temporary folder, which is removed with the result.
    """
    if db is not None:
        yield str(db), lambda result: result
        return
    folder = tempfile.mkdtemp(prefix="gauntlet-")

    def kept(result: EvaluationResult) -> EvaluationResult:
        weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
        return result

    try:
        yield str(Path(folder) / "evaluation.db"), kept
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _shown(progress: bool) -> Iterator[Listener]:
    with ProgressDisplay((), CostEstimates(()), quiet=not progress) as display:
        yield display
