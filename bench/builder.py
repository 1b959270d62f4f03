"""Builds the defenses that a run plays, each once, and trains first what they need."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from bench import data, matrix
from bench.arena import Arena, Setting
from bench.data import Examples
from bench.events import Event, Listener
from bench.matrix import Pair, Selection
from bench.plugin import Dataset, Defense, ThreatModel, Traits
from bench.records import Cell, Numeric
from bench.registry import Registry, attack_digest
from bench.school import teach
from bench.shelf import NeedsTraining
from bench.store import Store

POLL = 0.2  # seconds between looks at a training that somebody else holds


class InOtherHands(Exception):  # noqa: N818 - no error: there is other work
    """Another worker trains what a board needs."""


@dataclass
class Builder:
    """The arenas of one worker; under which digest each defense stands, the store is told."""

    registry: Registry
    store: Store
    selection: Selection
    setting: Setting
    owner: str
    listener: Listener
    patient: bool = False
    """It waits for a training in other hands; else that is InOtherHands."""
    arenas: dict[tuple[str, str, int], Arena] = field(default_factory=dict)

    def seats(self, pair: Pair) -> tuple[Arena, Arena | None]:
        """The defense of a pair, built, and the twin that a transfer attack asks."""
        return self.arena(pair.defense, pair.threat), self.source(pair)

    def source(self, pair: Pair) -> Arena | None:
        """The twin, built, on as many examples as the defense; None where nobody asks it."""
        if pair.reason or not Traits.of(pair.attack).source:
            return None
        twin: Defense = self.registry.find("defense", pair.defense.twin).value
        return self.arena(twin, pair.threat, beside=pair.defense)

    def arena(self, defense: Defense, threat: ThreatModel, beside: Defense | None = None) -> Arena:
        """The defense, built, on as many examples as `beside`; what it needs is trained first."""
        dataset = self.dataset(threat)
        count = matrix.examples(threat, beside or defense, self.selection, dataset)
        key = (defense.name, dataset.name, count)
        while key not in self.arenas:
            try:
                self.arenas[key] = self._built(defense, dataset, count)
            except NeedsTraining as need:
                self._teach(need, dataset)
        return self.arenas[key]

    def unbuilt(self, pairs: list[Pair]) -> list[Cell]:
        """The cells of a defense on a board, under the digest of one that cannot be built."""
        threat, defense = pairs[0].threat, pairs[0].defense
        digest = f"unbuilt {self.registry.find('defense', defense.name).source}"
        dataset = self.dataset(threat)
        count = matrix.examples(threat, defense, self.selection, dataset)
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
        chosen = data.examples(dataset, count)
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

    def _built(self, defense: Defense, dataset: Dataset, count: int) -> Arena:
        examples = self.examples(dataset, count)
        arena = Arena(self.registry, defense, dataset, examples, self.setting, self.selection.seed)
        self.declare(defense, dataset, arena.digest)
        if self.setting.numeric is not Numeric.FLOAT32:
            for note in arena.quick.notes:
                self.listener(Event("odd", f"{defense.name} on {dataset.name}, {note}"))
        return arena

    def _teach(self, need: NeedsTraining, dataset: Dataset) -> None:
        """Train it here, or wait a moment for whoever does; InOtherHands where not patient."""
        taught = teach(
            self.registry, self.store, self.owner, need, dataset, self.setting.device,
            lambda text: self.listener(Event("train", text)),
        )  # fmt: skip
        if not taught:
            self.listener(Event("wait", f"{need.name} is being trained by another worker"))
            if not self.patient:
                raise InOtherHands(need.name) from need
            time.sleep(POLL)
