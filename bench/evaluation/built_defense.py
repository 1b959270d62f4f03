"""A built defense on a set of examples: model, clean pass, and the cells and referees it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from bench.core.batches import default_batch, noise_rows
from bench.core.cells import CLEAN, Cell, Numeric
from bench.core.errors import PluginError
from bench.data import datasets
from bench.data.datasets import Examples
from bench.data.image_rows import CleanImages, selected
from bench.engine.answers import ClassifierOnly, column_mismatch
from bench.engine.cell_spec import CellSpec
from bench.engine.fast_selftest import FastModel, fastest_form
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import pad_rows
from bench.evaluation.nuisance_model import seen_through
from bench.evaluation.pixel_guard import PixelGuard
from bench.evaluation.surrogate_model import (
    Heartbeat,
    PlannedSurrogate,
    SurrogateModel,
    no_heartbeat,
)
from bench.evaluation.targets import target_classes
from bench.plugin import Access, Attack, Traits, is_shared
from bench.referee.fresh_model import FreshAnswers, FreshModel
from bench.referee.referee import Referee, goal_reached
from bench.registry.cards import attack_digest
from bench.sandbox.defense_proxy import DefenseProxy
from bench.threats.threat_model import ThreatModel
from bench.training.defense_builder import DefenseBuilder
from bench.training.label_surrogate import Labels
from bench.training.surrogate_cache import label_function

LABEL_VOTES = 5
"""Draws of a declared-random defense whose majority answers one label query."""
PROBE_IMAGES = 32  # clean images for the self-tests of a faster form of the model


@dataclass(frozen=True)
class RunSettings:
    """Device, number of slots and arithmetic; none of them can add a success."""

    device: torch.device
    slots: int | None = None
    """Rows that the engine evaluates in one batch; None: as many as suit the images."""
    numeric: Numeric = Numeric.FLOAT32


class BuiltDefense:
    """One built defense and its clean pass on fixed examples; the model has seen no attack yet."""

    def __init__(
        self, builder: DefenseBuilder, examples: Examples, settings: RunSettings, seed: int
    ) -> None:
        self.builder, self.examples, self.settings, self.seed = builder, examples, settings, seed
        self.registry, self.dataset = builder.registry, builder.dataset
        self.defense = builder.record
        self.module = builder.build().to(settings.device)
        """The copy of the model that attacks query."""
        bpda = builder.bpda()
        self.bpda = None if bpda is None else bpda.to(settings.device)
        """The declared BPDA approximation, whose gradients attacks use."""
        self.digest = builder.digest
        self._clean: FreshAnswers | None = None

    @cached_property
    def x(self) -> CleanImages:
        """[n, C, H, W] clean images, of large sets unread rows; plugins get copies."""
        return self.guard.images

    @cached_property
    def y(self) -> Tensor:
        """[n] labels; plugins get copies."""
        return self.guard.labels

    @cached_property
    def guard(self) -> PixelGuard:
        """Finds writes into the clean images and labels."""
        return PixelGuard(self.examples, self.settings.device)

    @contextmanager
    def fixed_random_state(self) -> Iterator[None]:
        """Seed torch's generators as on every run; their former state returns at the end."""
        device = self.settings.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.random.manual_seed(self.seed)
            yield

    # --- the clean pass

    @property
    def clean(self) -> FreshAnswers:
        """Answers of a fresh copy of the model to the clean images; computed once."""
        return self.clean_pass(no_heartbeat)

    def clean_pass(self, heartbeat: Heartbeat) -> FreshAnswers:
        """`clean`, with `heartbeat` called between groups; raises PluginError for wrong columns."""
        if self._clean is None:
            self._clean = self._compute_clean_pass(heartbeat)
        return self._clean

    def _compute_clean_pass(self, heartbeat: Heartbeat) -> FreshAnswers:
        fresh_model = self._fresh_model("clean")
        groups = _with_heartbeats(-(-len(self.x) // fresh_model.rows), heartbeat)
        answer = fresh_model.answer(self.x, groups)
        columns = answer.logits.shape[1] + self.rejects
        mismatch = column_mismatch(columns, len(self.dataset.classes), rejects=self.rejects)
        if mismatch:
            raise PluginError(f"{self.defense.name}: {mismatch}")
        self.guard.check(self.defense.name)
        return answer

    def clean_answers(self, threat: ThreatModel) -> FreshAnswers:
        """The clean pass, one row per item of the cells of this threat model."""
        index, clean = self._example_index(threat), self.clean
        return FreshAnswers(
            clean.logits[index], clean.label[index], clean.confidence[index],
            clean.votes[:, index], clean.rejection[index], clean.log_shares[index],
        )  # fmt: skip

    # --- the model that attacks query

    @cached_property
    def fast_model(self) -> FastModel:
        """The fastest form of the model that the arithmetic in the settings allows."""
        reason = self._why_not_faster()
        if reason and self.settings.numeric is not Numeric.FLOAT32:
            return FastModel(self.module, (), (f"plain float32: {reason}.",))
        probes = pad_rows(self.x[:PROBE_IMAGES], PROBE_IMAGES)
        return fastest_form(self.module, probes, self.settings.numeric)

    def _why_not_faster(self) -> str:
        if self.defense.randomness:
            return "it declares randomness"
        if self.bpda is not None:
            return "it declares a BPDA approximation"
        if self.rejects:
            return "it rejects images"
        return "it is sandboxed" if isinstance(self.module, DefenseProxy) else ""

    def attacked_model(self, threat: ThreatModel, attack: Attack) -> FastModel:
        """The form of the model that an attack queries: the fast one, with four exceptions.

        Under a nuisance it is the model that sees images through it, whose draws are random.
        External attacks may keep answers or backpropagate twice through one graph; transfer attacks
        query the surrogate model; the nearest adversarial example lies so close to the decision
        boundary that other arithmetic changes its class.
        """
        if threat.nuisance is not None:
            return FastModel(seen_through(threat.nuisance, self.module), (), ())
        queries_other_code = not Traits.has_steps(attack) or Traits.of(attack).source
        if queries_other_code or threat.goal.kind == "nearest":
            return FastModel(self.module, (), ())
        return self.fast_model

    def label_function(self) -> Labels:
        """Predicted labels [n] of a fresh copy for images [n, C, H, W]; a random defense votes."""
        module = self.builder.build().to(self.settings.device)
        votes = 1 if self.defense.randomness is None else LABEL_VOTES
        return label_function(
            ClassifierOnly(module) if self.rejects else module,
            self.noise("surrogate labels"), votes=votes,
        )  # fmt: skip

    @property
    def rejects(self) -> bool:
        """Whether the model's answers end with a rejection score."""
        return self.defense.rejects is not None

    @cached_property
    def classifier(self) -> nn.Module:
        """The model without its detector: images [n, C, H, W] to logits [n, K]."""
        return ClassifierOnly(self.module) if self.rejects else self.module

    def is_random(self, threat: ThreatModel | None = None) -> bool:
        """Whether answers are random: the defense declares it, or the threat model a nuisance."""
        nuisance = threat is not None and threat.nuisance is not None
        return nuisance or self.defense.randomness is not None

    def noise(self, role: str, threat: ThreatModel | None = None) -> SeededNoise | None:
        """The random state of one role, under a threat model; None if answers are deterministic."""
        if not self.is_random(threat):
            return None
        rows = noise_rows(self.dataset.shape)
        return SeededNoise(self.seed, role, self.settings.device, rows=rows)

    def as_surrogate(self) -> PlannedSurrogate:
        """This defense as the surrogate model of a transfer attack on another one."""

        def make(heartbeat: Heartbeat) -> SurrogateModel:
            logits = self.clean_pass(heartbeat).logits
            return SurrogateModel(self.module, logits, self.bpda, self.rejects)

        return PlannedSurrogate(self.digest, make)

    # --- cells

    def clean_cell(self) -> Cell:
        """The cell of the clean pass, shared by all threat models on these examples."""
        return Cell(
            threat="", defense=self.defense.name, attack=CLEAN, threat_id="",
            defense_digest=self.digest, attack_digest=CLEAN, examples=self.examples.digest,
            items=len(self.examples.labels), seed=self.seed,
        )  # fmt: skip

    def cell(
        self, threat: ThreatModel, attack: Attack, mode: str, surrogate: PlannedSurrogate | None
    ) -> Cell:
        """The evaluation cell of one attack under one threat model."""
        return Cell(
            threat=threat.name, defense=self.defense.name, attack=attack.name,
            threat_id=threat.id, defense_digest=self.digest,
            attack_digest=attack_digest(self.registry.find("attack", attack.name)),
            examples=self.examples.digest,
            items=self.item_count(threat, attack), seed=self.seed,
            mode=mode, numeric=self.settings.numeric,
            source_digest=self._source_digest(attack, surrogate),
        )  # fmt: skip

    def _source_digest(self, attack: Attack, surrogate: PlannedSurrogate | None) -> str:
        if is_shared(attack):
            return datasets.training_digest(self.dataset)
        return "" if surrogate is None else surrogate.digest

    def cell_spec(
        self,
        threat: ThreatModel,
        attack: Attack,
        surrogate: SurrogateModel | None,
        *,
        exact: bool = False,
    ) -> CellSpec:
        """All that the engine needs to run the attack; `exact`: in float32 despite the settings."""
        index, target = self._example_index(threat), self._target_classes(threat)
        y = self.y[index]
        noise = self.noise(f"play {attack.name}", threat)
        clean_logits = self.clean.logits if surrogate is None else surrogate.clean_logits
        return CellSpec(
            attack=attack,
            model_access=self._attack_access(threat, attack, noise, exact=exact)
            if surrogate is None
            else surrogate.access(),
            defense=ModelAccess(
                seen_through(threat.nuisance, self.module), noise=noise, rejects=self.rejects
            ),
            ball=threat.ball, goal=threat.goal, budget=threat.budget,
            x=selected(self.x, index), y=y, target=target,
            clean_logits=clean_logits[index],
            reached_on_clean=goal_reached(self.clean.votes[:, index], y, target, threat.goal),
            seed=self.seed, slots=self.settings.slots or default_batch(self.dataset.shape),
            noise=noise,
        )  # fmt: skip

    def true_gradient_spec(self, threat: ThreatModel, attack: Attack) -> CellSpec | None:
        """`cell_spec` with the model's own gradient, where the attack would use an approximation.

        None where none is declared, or where the attack uses no gradient of the defense.
        """
        if self.bpda is None or attack.needs < Access.GRADIENTS or Traits.of(attack).source:
            return None
        if is_shared(attack):
            return None
        spec = self.cell_spec(threat, attack, None)
        access = self._attack_access(threat, attack, spec.noise, exact=True, bpda=False)
        return replace(spec, model_access=access)

    def fit_access(self, threat: ThreatModel, attack: Attack) -> ModelAccess:
        """The access of a shared attack while it fits its point, with draws of its own."""
        noise = self.noise(f"fit {attack.name}", threat)
        return self._attack_access(threat, attack, noise, exact=True)

    def _attack_access(
        self,
        threat: ThreatModel,
        attack: Attack,
        noise: SeededNoise | None,
        *,
        exact: bool,
        bpda: bool = True,
    ) -> ModelAccess:
        """The access to this model that the threat model grants an attack, as far as it needs it.

        An attack that declares scores counts as a black box, and so it gets no gradients.
        """
        plain = seen_through(threat.nuisance, self.module)
        module = plain if exact else self.attacked_model(threat, attack).module
        backward = None if self.bpda is None else seen_through(threat.nuisance, self.bpda)
        less = attack.needs < threat.access
        return ModelAccess(
            module, bpda=backward if bpda else None, access=min(attack.needs, threat.access),
            draws=self._draws(threat, attack), votes=LABEL_VOTES, noise=noise,
            attack_name=attack.name,
            threat_model="its declared `needs`" if less else threat.name, rejects=self.rejects,
            joint=Traits.of(attack).joint,
        )  # fmt: skip

    def _draws(self, threat: ThreatModel, attack: Attack) -> int:
        """Draws over which each gradient or score is averaged; 1 for deterministic answers."""
        declared = (threat.nuisance, self.defense.randomness)
        known = [one.draws for one in declared if one is not None]
        return (Traits.of(attack).eot_draws or max(known)) if known else 1

    def item_count(self, threat: ThreatModel, attack: Attack) -> int:
        """Number of items of a cell: examples times targets, of the first examples of a costly
        attack."""
        limit, count = Traits.of(attack).examples, len(self.examples.labels)
        return min(count, limit or count) * self._targets_per_example(threat)

    def referee(self, threat: ThreatModel, attack: Attack, shared: Tensor | None = None) -> Referee:
        """The referee of a cell, with a fresh copy of the model that no attack has queried.

        `shared` is the one point [1, ...] of a shared attack.
        """
        index = self._example_index(threat)
        return Referee(
            self._fresh_model(f"judge {attack.name}", threat), threat.ball, threat.goal,
            selected(self.x, index), self.y[index], self._target_classes(threat),
            minimises=Traits.of(attack).minimises,
            confirmation_noise=self.noise(f"confirm {attack.name}", threat), shared=shared,
            share=None if threat.nuisance is None else threat.nuisance.share,
        )  # fmt: skip

    def _fresh_model(self, role: str, threat: ThreatModel | None = None) -> FreshModel:
        """A new copy of the model, under a threat model; `role` names its random draws."""
        module = self.builder.build().to(self.settings.device)
        seen = seen_through(None if threat is None else threat.nuisance, module)
        return FreshModel(seen, noise=self.noise(role, threat), rejects=self.rejects)

    def _targets_per_example(self, threat: ThreatModel) -> int:
        """Number of items per example: 1, or one per wrong class where the goal is every class."""
        return len(self.dataset.classes) - 1 if threat.goal.rule == "all" else 1

    def _example_index(self, threat: ThreatModel) -> Tensor:
        """[items] index of each item's example."""
        index = torch.arange(len(self.x), device=self.x.device)
        return index.repeat_interleave(self._targets_per_example(threat))

    def _target_classes(self, threat: ThreatModel) -> Tensor:
        """[items] target class of each item; -1 where the goal is not targeted."""
        if threat.goal.kind != "targeted":
            return torch.full_like(self.y, -1)
        classes = len(self.dataset.classes)
        return target_classes(threat, self.y, self.clean.logits, classes, self.seed)


def _with_heartbeats(groups: int, heartbeat: Heartbeat) -> Iterator[int]:
    """The group numbers, `heartbeat` being called between them."""
    for group in range(groups):
        if group:
            heartbeat()
        yield group
