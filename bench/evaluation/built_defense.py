"""A built defense on a set of examples: model, clean pass, cells and referees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bench.core.cells import CLEAN, Cell, Numeric
from bench.core.errors import PluginError
from bench.data.datasets import Examples
from bench.engine.answers import ClassifierOnly, column_mismatch
from bench.engine.cell_spec import GROUP, CellSpec
from bench.engine.fast_selftest import FastModel, fastest_form
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import pad_rows
from bench.evaluation.targets import TARGET_RULES
from bench.plugin import Attack, Dataset, Defense, Traits
from bench.referee.fresh_model import FreshAnswers, FreshModel
from bench.referee.referee import Referee, goal_reached
from bench.registry.cards import attack_digest
from bench.registry.registry import Registry
from bench.sandbox.defense_proxy import DefenseProxy
from bench.threats.threat_model import ThreatModel
from bench.training.defense_builder import DefenseBuilder

PROBE_IMAGES = 32  # clean images that the self-tests of a faster form ask


@dataclass(frozen=True)
class RunSettings:
    """How cells are played on this machine; none of it may invent a success."""

    device: torch.device
    slots: int = 128
    numeric: Numeric = Numeric.FLOAT32


class BuiltDefense:
    """One defense, built, its clean pass known; it makes the cells, games and referees."""

    def __init__(
        self,
        registry: Registry,
        defense: Defense,
        dataset: Dataset,
        examples: Examples,
        setting: RunSettings,
        seed: int,
    ) -> None:
        self.registry, self.defense, self.dataset = registry, defense, dataset
        self.examples, self.setting, self.seed = examples, setting, seed
        loader = self._loader()
        self.module = loader.build().to(setting.device)
        """The copy that attacks ask."""
        own = loader.bpda()
        self.bpda = None if own is None else own.to(setting.device)
        """What attacks differentiate through, where the author declares it."""
        self.digest = loader.digest

    def _loader(self) -> DefenseBuilder:
        return DefenseBuilder(self.registry, self.defense.name, self.dataset)

    def _fresh(self) -> nn.Module:
        """A copy that has seen nothing."""
        return self._loader().build().to(self.setting.device)

    @cached_property
    def quick(self) -> FastModel:
        """What attacks ask, in the arithmetic of the setting."""
        plain = "it declares randomness" if self.defense.randomness else ""
        plain = plain or ("it declares a stand-in" if self.bpda is not None else "")
        plain = plain or ("it rejects" if self.rejects else "")
        plain = plain or ("it is locked in" if isinstance(self.module, DefenseProxy) else "")
        if plain and self.setting.numeric is not Numeric.FLOAT32:
            return FastModel(self.module, (), (f"plain float32: {plain}.",))
        return fastest_form(
            self.module, pad_rows(self.x[:PROBE_IMAGES], PROBE_IMAGES), self.setting.numeric
        )

    def form(self, threat: ThreatModel, attack: Attack) -> FastModel:
        """What an attack asks on a board: the quick form, where nothing speaks against it.

        A library may keep an answer, or walk its graph twice. A transfer attack asks its source.
        And the nearest success lies so close to the border that other arithmetic puts it on the
        other side.
        """
        elsewhere = Traits.is_external(attack) or Traits.of(attack).source
        if elsewhere or threat.goal.kind == "nearest":
            return FastModel(self.module, (), ())
        return self.quick

    @cached_property
    def x(self) -> Tensor:
        """[n, C, H, W] clean images."""
        return self.examples.tensor(self.setting.device)

    @cached_property
    def y(self) -> Tensor:
        """[n] labels."""
        return torch.tensor(self.examples.labels, device=self.setting.device)

    @cached_property
    def clean(self) -> FreshAnswers:
        """The clean pass, of a copy of its own."""
        return self._passed(lambda: None)

    def know(self, beat: Callable[[], None]) -> None:
        """Make the clean pass, unless it is made; `beat` is called between its groups."""
        if "clean" not in vars(self):
            self.clean = self._passed(beat)

    def _passed(self, beat: Callable[[], None]) -> FreshAnswers:
        groups = _paced(-(-len(self.x) // GROUP), beat)
        answer = self._court("clean").answer(self.x, groups)
        classes = len(self.dataset.classes)
        wrong = column_mismatch(
            answer.logits.shape[1] + self.rejects, classes, rejects=self.rejects
        )
        if wrong:
            raise PluginError(f"{self.defense.name}: {wrong}")
        return answer

    @property
    def rejects(self) -> bool:
        """Whether its answers end with a rejection score."""
        return self.defense.rejects is not None

    @cached_property
    def classifier(self) -> nn.Module:
        """The module without its detector: images to logits [n, K]."""
        return ClassifierOnly(self.module) if self.rejects else self.module

    def _court(self, role: str) -> FreshModel:
        """A copy that no attack has seen, its draws of that role."""
        return FreshModel(self._fresh(), noise=self.noise(role), rejects=self.rejects)

    def noise(self, role: str) -> SeededNoise | None:
        """The random state of a declared-random defense, for one role in a cell."""
        if self.defense.randomness is None:
            return None
        return SeededNoise(self.seed, role, self.setting.device)

    def clean_cell(self) -> Cell:
        """The clean pass, shared by all boards on these examples."""
        return Cell(
            threat="", defense=self.defense.name, attack=CLEAN, threat_id="",
            defense_digest=self.digest, attack_digest=CLEAN, examples=self.examples.digest,
            items=len(self.examples.labels), seed=self.seed,
        )  # fmt: skip

    def cell(
        self, threat: ThreatModel, attack: Attack, mode: str, source: BuiltDefense | None
    ) -> Cell:
        """The cell of one attack on one board."""
        return Cell(
            threat=threat.name, defense=self.defense.name, attack=attack.name,
            threat_id=threat.id, defense_digest=self.digest,
            attack_digest=attack_digest(self.registry.find("attack", attack.name)),
            examples=self.examples.digest, items=self._count(threat), seed=self.seed,
            mode=mode, numeric=self.setting.numeric,
            source_digest="" if source is None else source.digest,
        )  # fmt: skip

    def game(
        self,
        threat: ThreatModel,
        attack: Attack,
        source: BuiltDefense | None,
        *,
        exact: bool = False,
    ) -> CellSpec:
        """The cell, resolved for the engine; `exact`: in float32 whatever the setting says."""
        items, aim = self._items(threat), self._aims(threat)
        noise = self.noise(f"play {attack.name}")
        draws = 1 if self.defense.randomness is None else self.defense.randomness.draws
        module = self.module if exact else self.form(threat, attack).module
        own = ModelAccess(
            module, bpda=self.bpda, access=threat.access, draws=draws, noise=noise,
            asker=attack.name, board=threat.name, rejects=self.rejects,
            joint=Traits.of(attack).joint,
        )  # fmt: skip
        # The source is the attacker's own: asked freely, and whatever it reveals.
        door = own if source is None else source.freely()
        y = self.y[items]
        return CellSpec(
            attack=attack, model_access=door,
            defense=ModelAccess(self.module, noise=noise, rejects=self.rejects),
            ball=threat.ball, goal=threat.goal, budget=threat.budget,
            x=self.x[items], y=y, aim=aim, clean=(source or self).clean.logits[items],
            lost=goal_reached(self.clean.votes[:, items], y, aim, threat.goal),
            seed=self.seed, slots=self.setting.slots, noise=noise,
        )  # fmt: skip

    def freely(self) -> ModelAccess:
        """The door for an attack that owns this model as its source."""
        return ModelAccess(self.module, bpda=self.bpda, rejects=self.rejects)

    def referee(self, threat: ThreatModel, attack: Attack) -> Referee:
        """The rules of the cell and a fresh defense that has never seen the attack."""
        items = self._items(threat)
        return Referee(
            self._court(f"judge {attack.name}"), threat.ball, threat.goal,
            self.x[items], self.y[items], self._aims(threat),
            minimises=Traits.of(attack).minimises, fresh=self.noise(f"confirm {attack.name}"),
        )  # fmt: skip

    def answers(self, threat: ThreatModel) -> FreshAnswers:
        """The clean pass, item by item."""
        items = self._items(threat)
        clean = self.clean
        return FreshAnswers(
            clean.logits[items], clean.label[items], clean.confidence[items],
            clean.votes[:, items], clean.rejection[items],
        )  # fmt: skip

    def _targets(self, threat: ThreatModel) -> int:
        """How often each example is played: once, or once for each wrong class."""
        return len(self.dataset.classes) - 1 if threat.goal.rule == "all" else 1

    def _count(self, threat: ThreatModel) -> int:
        return len(self.examples.labels) * self._targets(threat)

    def _items(self, threat: ThreatModel) -> Tensor:
        """[items] which example each item is."""
        index = torch.arange(len(self.x), device=self.x.device)
        return index.repeat_interleave(self._targets(threat))

    def _aims(self, threat: ThreatModel) -> Tensor:
        """[items] declared targets; -1 on boards without."""
        if threat.goal.kind != "targeted":
            return torch.full_like(self.y, -1)
        classes = len(self.dataset.classes)
        return TARGET_RULES[threat.goal.rule](self.y, self.clean.logits, classes, self.seed)


def _paced(groups: int, beat: Callable[[], None]) -> Iterator[int]:
    for group in range(groups):
        if group:
            beat()
        yield group
