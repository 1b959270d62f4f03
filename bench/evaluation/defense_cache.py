"""Defenses built for a run, each once; missing weights are trained first."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from bench.core.cards import DefenseCard
from bench.core.cells import Cell, Numeric
from bench.data import datasets
from bench.data.datasets import Examples
from bench.engine.surrogate_iterates import SurrogateIterates
from bench.evaluation import plan
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.events import (
    Listener,
    RunNotice,
    TrainingElsewhere,
    TrainingProgress,
    ignore_event,
)
from bench.evaluation.learned_surrogate import learned_surrogate
from bench.evaluation.plan import PlannedPair, Selection
from bench.evaluation.surrogate_model import PlannedSurrogate
from bench.plugin import Dataset, Defense, ThreatModel, Traits
from bench.registry.cards import attack_digest
from bench.registry.registry import Registry
from bench.store import Store
from bench.store.waiting import Reminder
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.label_surrogate import RECIPES
from bench.training.state import EpochReport, format_epoch
from bench.training.tasks import train_once, train_with_teacher, training_task
from bench.training.trained_weights import WeightsSource

POLL_SECONDS = 0.2  # between two looks at a lease that another worker holds


class TrainedElsewhereError(Exception):
    """Another worker trains a defense; raised where this worker has other cells to evaluate."""


@dataclass(kw_only=True)
class DefenseCache:
    """Built defenses by name, data set and number of examples; nothing is recorded of them."""

    registry: Registry
    selection: Selection
    settings: RunSettings
    store: Store | None = None
    """The database whose trained weights are used; None: those of the cache folder."""
    listener: Listener = ignore_event
    built: dict[tuple[str, str, int], BuiltDefense] = field(default_factory=dict)
    iterates: defaultdict[tuple[str, str, str, str], SurrogateIterates] = field(
        default_factory=lambda: defaultdict(SurrogateIterates)
    )
    """By digests of surrogate and attack, set, and digest of the examples."""

    def surrogate(self, pair: PlannedPair) -> PlannedSurrogate | None:
        """The surrogate model of a transfer attack, on the defense's examples; else None."""
        role = Traits.of(pair.attack).source
        if pair.reason or not role:
            return None
        if role in RECIPES:
            defense = self.defense(pair.defense, pair.threat)
            return learned_surrogate(defense, pair.threat, RECIPES[role], self._report_surrogate)
        name = plan.surrogate_name(pair.threat, pair.defense, pair.attack)
        surrogate: Defense = self.registry.find("defense", name).value
        built = self.defense(surrogate, pair.threat, examples_of=pair.defense)
        planned = built.as_surrogate()
        # The plan refuses random surrogates, whose iterates would differ from call to call.
        planned.iterates = self._iterates(pair, built)
        return planned

    def _iterates(self, pair: PlannedPair, surrogate: BuiltDefense) -> SurrogateIterates:
        """What the attack of a pair has reached on this surrogate, for any defense."""
        attack = attack_digest(self.registry.find("attack", pair.attack.name))
        examples = surrogate.examples.digest
        return self.iterates[surrogate.digest, attack, repr(pair.threat.ball), examples]

    def _report_surrogate(self, text: str) -> None:
        self.listener(TrainingProgress(text))

    def defense(
        self, defense: Defense, threat: ThreatModel, examples_of: Defense | None = None
    ) -> BuiltDefense:
        """The built defense on its examples, or on those of `examples_of`."""
        dataset = self.dataset(threat)
        count = plan.example_count(threat, examples_of or defense, self.selection, dataset)
        key = (defense.name, dataset.name, count)
        while key not in self.built:
            try:
                self.built[key] = self._build(defense, dataset, count)
            except NeedsTraining as need:
                self._train(need, dataset)
        return self.built[key]

    def dataset(self, threat: ThreatModel) -> Dataset:
        """The data set of a threat model."""
        found: Dataset = self.registry.find("dataset", threat.dataset).value
        return found

    def examples(self, dataset: Dataset, count: int) -> Examples:
        """The first `count` test examples of a data set."""
        return datasets.first_examples(dataset, count, self.selection.order)

    def _build(self, defense: Defense, dataset: Dataset, count: int) -> BuiltDefense:
        source = WeightsSource(store=self.store)
        builder = DefenseBuilder(self.registry, defense.name, dataset, source=source)
        examples = self.examples(dataset, count)
        return BuiltDefense(builder, examples, self.settings, self.selection.seed)

    def _train(self, need: NeedsTraining, dataset: Dataset) -> None:
        def report(epoch: EpochReport) -> None:
            self.listener(TrainingProgress(f"{need.name}: {format_epoch(epoch)}"))

        registry, device = self.registry, self.settings.device
        source = WeightsSource(store=self.store)
        train_with_teacher(
            registry, need.name, dataset, source=source, device=device, progress=report
        )


@dataclass(kw_only=True)
class RecordedDefenseCache(DefenseCache):
    """A cache that records labels and digests in the database and trains under its leases."""

    store: Store
    owner: str
    wait_for_training: bool = False
    """Wait for a training of another worker; otherwise raise TrainedElsewhereError."""
    _reminders: defaultdict[str, Reminder] = field(
        default_factory=lambda: defaultdict(lambda: Reminder(first=0.0))
    )
    """Recipe -> when the wait for its training is reported."""

    def examples(self, dataset: Dataset, count: int) -> Examples:
        """The first `count` test examples of a data set; their labels are recorded."""
        chosen = super().examples(dataset, count)
        row = (dataset.name, count, chosen.labels.astype(np.int16), dataset.classes, dataset.shape)
        self.store.keep_examples(chosen.digest, *row, chosen.order)
        return chosen

    def unbuilt_cells(self, pairs: list[PlannedPair]) -> list[Cell]:
        """The cells of one defense that cannot be built, under a digest of its source alone."""
        threat, defense = pairs[0].threat, pairs[0].defense
        digest = f"unbuilt {self.registry.find('defense', defense.name).source}"
        dataset = self.dataset(threat)
        count = plan.example_count(threat, defense, self.selection, dataset)
        examples = self.examples(dataset, count)
        self.record_digest(defense, dataset, digest)
        return [self._unbuilt_cell(pair, digest, examples) for pair in pairs]

    def _unbuilt_cell(self, pair: PlannedPair, digest: str, examples: Examples) -> Cell:
        threat, defense, attack = pair.threat, pair.defense, pair.attack
        return Cell(
            threat=threat.name, defense=defense.name, attack=attack.name,
            threat_id=threat.id, defense_digest=digest,
            attack_digest=attack_digest(self.registry.find("attack", attack.name)),
            examples=examples.digest, items=len(examples.labels), seed=self.selection.seed,
            mode=self.selection.mode, numeric=self.settings.numeric,
        )  # fmt: skip

    def digests(self) -> dict[str, dict[str, str]]:
        """Defense -> data set -> digest of the defense as last built, from the database."""
        return {card.name: dict(card.digests) for card in self.store.cards(DefenseCard)}

    def record_digest(self, defense: Defense, dataset: Dataset, digest: str) -> None:
        """Record the digest of a defense on a data set; cells of other digests are outdated."""
        known = self.digests().get(defense.name, {}) | {dataset.name: digest}
        self.store.record_cards([self.registry.defense_card(defense.name, known)])

    def _build(self, defense: Defense, dataset: Dataset, count: int) -> BuiltDefense:
        built = super()._build(defense, dataset, count)
        self.record_digest(defense, dataset, built.digest)
        if self.settings.numeric is not Numeric.FLOAT32:
            for note in built.fast_model.notes:
                self.listener(RunNotice(f"{defense.name} on {dataset.name}, {note}"))
        return built

    def _train(self, need: NeedsTraining, dataset: Dataset) -> None:
        trained = train_once(
            self.registry, self.store, self.owner, need, dataset, self.settings.device,
            lambda text: self.listener(TrainingProgress(text)),
        )  # fmt: skip
        if not trained:
            if not self.wait_for_training or self._reminders[need.recipe].due():
                holder = self.store.holder_of(training_task(need.recipe), task=True)
                self.listener(TrainingElsewhere(need.name, holder))
            if not self.wait_for_training:
                raise TrainedElsewhereError(need.name) from need
            self.store.waiting.check()
            time.sleep(POLL_SECONDS)
