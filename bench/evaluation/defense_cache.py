"""Builds the defenses that a run plays, each once, and trains first what they need."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from bench.core.cells import Cell, Numeric
from bench.data import datasets
from bench.data.datasets import Examples
from bench.evaluation import plan
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.events import Event, Listener
from bench.evaluation.plan import PlannedPair, Selection
from bench.plugin import Dataset, Defense, ThreatModel, Traits
from bench.registry.cards import attack_digest
from bench.registry.registry import Registry
from bench.store import Store
from bench.training.defense_builder import NeedsTraining
from bench.training.tasks import train_once

POLL = 0.2  # seconds between looks at a training that somebody else holds


class TrainedElsewhere(Exception):  # noqa: N818 - no error: there is other work
    """Another worker trains what a board needs."""


@dataclass
class DefenseCache:
    """The arenas of one worker; under which digest each defense stands, the store is told."""

    registry: Registry
    store: Store
    selection: Selection
    setting: RunSettings
    owner: str
    listener: Listener
    patient: bool = False
    """It waits for a training in other hands; else that is InOtherHands."""
    arenas: dict[tuple[str, str, int], BuiltDefense] = field(default_factory=dict)

    def seats(self, pair: PlannedPair) -> tuple[BuiltDefense, BuiltDefense | None]:
        """The defense of a pair, built, and the surrogate that a transfer attack asks."""
        return self.arena(pair.defense, pair.threat), self.source(pair)

    def source(self, pair: PlannedPair) -> BuiltDefense | None:
        """The surrogate, built, on as many examples as the defense; None where nobody asks it."""
        if pair.reason or not Traits.of(pair.attack).source:
            return None
        surrogate: Defense = self.registry.find("defense", pair.defense.surrogate).value
        return self.arena(surrogate, pair.threat, beside=pair.defense)

    def arena(
        self, defense: Defense, threat: ThreatModel, beside: Defense | None = None
    ) -> BuiltDefense:
        """The defense, built, on as many examples as `beside`; what it needs is trained first."""
        dataset = self.dataset(threat)
        count = plan.example_count(threat, beside or defense, self.selection, dataset)
        key = (defense.name, dataset.name, count)
        while key not in self.arenas:
            try:
                self.arenas[key] = self._built(defense, dataset, count)
            except NeedsTraining as need:
                self._teach(need, dataset)
        return self.arenas[key]

    def unbuilt(self, pairs: list[PlannedPair]) -> list[Cell]:
        """The cells of a defense on a board, under the digest of one that cannot be built."""
        threat, defense = pairs[0].threat, pairs[0].defense
        digest = f"unbuilt {self.registry.find('defense', defense.name).source}"
        dataset = self.dataset(threat)
        count = plan.example_count(threat, defense, self.selection, dataset)
        examples = self.examples(dataset, count)
        self.declare(defense, dataset, digest)
        return [
            Cell(
                threat=threat.name, defense=defense.name, attack=pair.attack.name,
                threat_id=threat.id, defense_digest=digest,
                attack_digest=attack_digest(self.registry.find("attack", pair.attack.name)),
                examples=examples.digest, items=len(examples.labels), seed=self.selection.seed,
                mode=self.selection.mode, numeric=self.setting.numeric,
            )
            for pair in pairs
        ]  # fmt: skip

    def dataset(self, threat: ThreatModel) -> Dataset:
        """The data set of a board."""
        found: Dataset = self.registry.find("dataset", threat.dataset).value
        return found

    def examples(self, dataset: Dataset, count: int) -> Examples:
        """The first examples of a data set; the store keeps their labels."""
        chosen = datasets.first_examples(dataset, count)
        labels = chosen.labels.astype(np.int16)
        shown = (dataset.classes, dataset.shape)
        self.store.keep_examples(chosen.digest, dataset.name, count, labels, *shown)
        return chosen

    def digests(self) -> dict[str, dict[str, str]]:
        """Under which digest each defense stands, on each data set it was played on."""
        return {c.name: dict(c.detail.get("digests", {})) for c in self.store.cards("defense")}

    def declare(self, defense: Defense, dataset: Dataset, digest: str) -> None:
        """From now on the defense stands under this digest."""
        known = self.digests().get(defense.name, {}) | {dataset.name: digest}
        self.store.declare([self.registry.defense_card(defense.name, known)])

    def _built(self, defense: Defense, dataset: Dataset, count: int) -> BuiltDefense:
        examples = self.examples(dataset, count)
        arena = BuiltDefense(
            self.registry, defense, dataset, examples, self.setting, self.selection.seed
        )
        self.declare(defense, dataset, arena.digest)
        if self.setting.numeric is not Numeric.FLOAT32:
            for note in arena.quick.notes:
                self.listener(Event("odd", f"{defense.name} on {dataset.name}, {note}"))
        return arena

    def _teach(self, need: NeedsTraining, dataset: Dataset) -> None:
        """Train it here, or wait a moment for whoever does; InOtherHands where not patient."""
        taught = train_once(
            self.registry, self.store, self.owner, need, dataset, self.setting.device,
            lambda text: self.listener(Event("train", text)),
        )  # fmt: skip
        if not taught:
            self.listener(Event("wait", f"{need.name} is being trained by another worker"))
            if not self.patient:
                raise TrainedElsewhere(need.name) from need
            time.sleep(POLL)
