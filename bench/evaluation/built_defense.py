"""A built defense on a set of examples: model, clean pass, and the cells and referees it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bench.core.cells import CLEAN, Cell, Numeric
from bench.core.errors import PluginError
from bench.data.datasets import Examples
from bench.engine.answers import ClassifierOnly, column_mismatch
from bench.engine.cell_spec import NOISE_GROUP, CellSpec
from bench.engine.fast_selftest import FastModel, fastest_form
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import pad_rows
from bench.evaluation.targets import TARGET_FUNCTIONS
from bench.plugin import Attack, Traits
from bench.referee.fresh_model import FreshAnswers, FreshModel
from bench.referee.referee import Referee, goal_reached
from bench.registry.cards import attack_digest
from bench.sandbox.defense_proxy import DefenseProxy
from bench.threats.threat_model import ThreatModel
from bench.training.defense_builder import DefenseBuilder

PROBE_IMAGES = 32  # clean images for the self-tests of a faster form of the model

Heartbeat = Callable[[], None]


def no_heartbeat() -> None:
    """Do nothing: the heartbeat where no lease has to be extended."""


@dataclass(frozen=True)
class RunSettings:
    """Device, number of slots and arithmetic; none of them can add a success."""

    device: torch.device
    slots: int = 128
    """Rows that the engine evaluates in one batch."""
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
    def x(self) -> Tensor:
        """[n, C, H, W] clean images."""
        return self.examples.tensor(self.settings.device)

    @cached_property
    def y(self) -> Tensor:
        """[n] labels."""
        return torch.tensor(self.examples.labels, device=self.settings.device)

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
        groups = _with_heartbeats(-(-len(self.x) // NOISE_GROUP), heartbeat)
        answer = self._fresh_model("clean").answer(self.x, groups)
        columns = answer.logits.shape[1] + self.rejects
        mismatch = column_mismatch(columns, len(self.dataset.classes), rejects=self.rejects)
        if mismatch:
            raise PluginError(f"{self.defense.name}: {mismatch}")
        return answer

    def clean_answers(self, threat: ThreatModel) -> FreshAnswers:
        """The clean pass, one row per item of the cells of this threat model."""
        index, clean = self._example_index(threat), self.clean
        return FreshAnswers(
            clean.logits[index], clean.label[index], clean.confidence[index],
            clean.votes[:, index], clean.rejection[index],
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
        """The form of the model that an attack queries: the fast one, with three exceptions.

        External attacks may keep answers or backpropagate twice through one graph; transfer attacks
        query the surrogate model; the nearest adversarial example lies so close to the decision
        boundary that other arithmetic changes its class.
        """
        queries_other_code = Traits.is_external(attack) or Traits.of(attack).source
        if queries_other_code or threat.goal.kind == "nearest":
            return FastModel(self.module, (), ())
        return self.fast_model

    @property
    def rejects(self) -> bool:
        """Whether the model's answers end with a rejection score."""
        return self.defense.rejects is not None

    @cached_property
    def classifier(self) -> nn.Module:
        """The model without its detector: images [n, C, H, W] to logits [n, K]."""
        return ClassifierOnly(self.module) if self.rejects else self.module

    def noise(self, role: str) -> SeededNoise | None:
        """The random state of a declared-random defense for one role; None if deterministic."""
        if self.defense.randomness is None:
            return None
        return SeededNoise(self.seed, role, self.settings.device)

    def unlimited_access(self) -> ModelAccess:
        """Access without limits, for a transfer attack whose surrogate model this is."""
        return ModelAccess(self.module, bpda=self.bpda, rejects=self.rejects)

    # --- cells

    def clean_cell(self) -> Cell:
        """The cell of the clean pass, shared by all threat models on these examples."""
        return Cell(
            threat="", defense=self.defense.name, attack=CLEAN, threat_id="",
            defense_digest=self.digest, attack_digest=CLEAN, examples=self.examples.digest,
            items=len(self.examples.labels), seed=self.seed,
        )  # fmt: skip

    def cell(
        self, threat: ThreatModel, attack: Attack, mode: str, surrogate: BuiltDefense | None
    ) -> Cell:
        """The evaluation cell of one attack under one threat model."""
        return Cell(
            threat=threat.name, defense=self.defense.name, attack=attack.name,
            threat_id=threat.id, defense_digest=self.digest,
            attack_digest=attack_digest(self.registry.find("attack", attack.name)),
            examples=self.examples.digest,
            items=len(self.examples.labels) * self._targets_per_example(threat), seed=self.seed,
            mode=mode, numeric=self.settings.numeric,
            source_digest="" if surrogate is None else surrogate.digest,
        )  # fmt: skip

    def cell_spec(
        self,
        threat: ThreatModel,
        attack: Attack,
        surrogate: BuiltDefense | None,
        *,
        exact: bool = False,
    ) -> CellSpec:
        """All that the engine needs to run the attack; `exact`: in float32 despite the settings."""
        index, target = self._example_index(threat), self._target_classes(threat)
        y = self.y[index]
        noise = self.noise(f"play {attack.name}")
        return CellSpec(
            attack=attack,
            model_access=self._attack_access(threat, attack, noise, exact=exact)
            if surrogate is None
            else surrogate.unlimited_access(),
            defense=ModelAccess(self.module, noise=noise, rejects=self.rejects),
            ball=threat.ball, goal=threat.goal, budget=threat.budget,
            x=self.x[index], y=y, target=target,
            clean_logits=(surrogate or self).clean.logits[index],
            reached_on_clean=goal_reached(self.clean.votes[:, index], y, target, threat.goal),
            seed=self.seed, slots=self.settings.slots, noise=noise,
        )  # fmt: skip

    def _attack_access(
        self, threat: ThreatModel, attack: Attack, noise: SeededNoise | None, *, exact: bool
    ) -> ModelAccess:
        """The access to this model that the threat model grants an attack."""
        module = self.module if exact else self.attacked_model(threat, attack).module
        randomness = self.defense.randomness
        return ModelAccess(
            module, bpda=self.bpda, access=threat.access,
            draws=1 if randomness is None else randomness.draws, noise=noise,
            attack_name=attack.name, threat_model=threat.name, rejects=self.rejects,
            joint=Traits.of(attack).joint,
        )  # fmt: skip

    def referee(self, threat: ThreatModel, attack: Attack) -> Referee:
        """The referee of a cell, with a fresh copy of the model that no attack has queried."""
        index = self._example_index(threat)
        return Referee(
            self._fresh_model(f"judge {attack.name}"), threat.ball, threat.goal,
            self.x[index], self.y[index], self._target_classes(threat),
            minimises=Traits.of(attack).minimises,
            confirmation_noise=self.noise(f"confirm {attack.name}"),
        )  # fmt: skip

    def _fresh_model(self, role: str) -> FreshModel:
        """A new copy of the model; `role` names its random draws."""
        module = self.builder.build().to(self.settings.device)
        return FreshModel(module, noise=self.noise(role), rejects=self.rejects)

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
        rule = TARGET_FUNCTIONS[threat.goal.rule]
        return rule(self.y, self.clean.logits, len(self.dataset.classes), self.seed)


def _with_heartbeats(groups: int, heartbeat: Heartbeat) -> Iterator[int]:
    """The group numbers, `heartbeat` being called between them."""
    for group in range(groups):
        if group:
            heartbeat()
        yield group
