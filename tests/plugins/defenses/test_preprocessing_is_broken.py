"""Adaptive attacks break preprocessing and random defenses on digits.

Each defense is attacked twice: by an attack that does not take it into account (or uses its own
gradient), and through its BPDA approximation with the gradient averaged over its declared draws.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.data import datasets
from bench.engine.problem import attack_once
from bench.plugin import L2, Finding, PerturbationSet
from bench.referee.fresh_model import VOTES
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from bench.training.tasks import build_trained
from plugins.diagnostics.zero_gradients import ZeroGradients

N = 128
SUBMISSIONS = Path(__file__).parents[3] / "submissions"
pytestmark = pytest.mark.slow


class MeanOfDraws(nn.Module):
    """The mean logits over several draws, for attacks that average."""

    def __init__(self, module: nn.Module, draws: int) -> None:
        super().__init__()
        self.module, self.draws = module, draws

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.module(images) for _ in range(self.draws)]).mean(0)


class Defenses:
    """The first digits, and the defenses trained once."""

    def __init__(self, folder: Path, n: int = N) -> None:
        self.registry = Registry.load(SUBMISSIONS)
        self.digits = self.registry.datasets["digits"].value
        self.ball: PerturbationSet = self.registry.threats["digits-linf"].value.ball
        self.folder = folder
        examples = datasets.first_examples(self.digits, n)
        self.x, self.y = examples.tensor(), torch.tensor(examples.labels)

    def loader(self, name: str) -> DefenseBuilder:
        return build_trained(self.registry, name, self.digits, self.folder)

    def draws(self, name: str) -> int:
        declared = self.registry.defenses[name].value.randomness
        return declared.draws if declared else 1

    def crafted(self, through: nn.Module, attack: str, ball: PerturbationSet | None) -> Tensor:
        """The images of an attack that uses the gradient of a module."""
        found = self.registry.attacks[attack].value
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return attack_once(
                found,
                through,
                self.x,
                self.y,
                ball or self.ball,
                seed=0,
                example=torch.arange(len(self.x)),
            )

    def right(self, name: str, images: Tensor) -> float:
        """The share of digits that the majority of the referee's draws classifies correctly."""
        module = self.loader(name).build()
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(1)
            votes = [module(images).argmax(1) for _ in range(VOTES if self.draws(name) > 1 else 1)]
        return float((torch.stack(votes).mode(0).values == self.y).double().mean())

    def clean(self, name: str) -> float:
        return self.right(name, self.x)

    def unaware(self, name: str, attack: str = "pgd") -> float:
        """Accuracy under an attack on the undefended network."""
        return self.right(name, self.crafted(self.loader("undefended").build(), attack, None))

    def naive(self, name: str) -> float:
        """Accuracy under an attack with the gradient of one draw of the module itself."""
        return self.right(name, self.crafted(self.loader(name).build(), "pgd", None))

    def aware(self, name: str, attack: str = "pgd", ball: PerturbationSet | None = None) -> float:
        """Accuracy under an attack through BPDA, if declared, over the declared draws."""
        loader = self.loader(name)
        module = loader.bpda() or loader.build()
        return self.right(name, self.crafted(MeanOfDraws(module, self.draws(name)), attack, ball))


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Defenses:
    return Defenses(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(
    ("name", "clean", "hidden", "left"),
    [
        pytest.param("jpeg", 0.9, 0.8, 0.2, marks=pytest.mark.row("F01")),
        pytest.param("shield", 0.9, 0.8, 0.3, marks=pytest.mark.row("F02")),
        pytest.param("defense-gan", 0.85, 0.75, 0.35, marks=pytest.mark.row("F07")),
        pytest.param("thermometer", 0.9, 0.8, 0.2, marks=pytest.mark.row("D29")),
        pytest.param("activation-pruning", 0.85, 0.25, 0.15, marks=pytest.mark.row("D30")),
    ],
)
def test_attacks_with_its_own_gradient_fail_and_bpda_attacks_succeed(
    field: Defenses, name: str, clean: float, hidden: float, left: float
) -> None:
    assert field.clean(name) > clean
    assert field.naive(name) > hidden
    assert field.aware(name) < left


@pytest.mark.row("D29")
def test_adversarial_training_on_the_bits_keeps_what_the_bits_alone_do_not(
    field: Defenses,
) -> None:
    """Published: 0 % without and 30 % with the training, under BPDA (arXiv:1802.00420)."""
    trained, plain = field.aware("thermometer-training"), field.aware("thermometer")
    assert field.clean("thermometer-training") > 0.85
    assert plain < 0.2 and trained > plain + 0.3
    assert field.naive("thermometer-training") > trained, "its own gradient is none"


@pytest.mark.parametrize(
    ("name", "clean", "gap"),
    [
        pytest.param("crop-ensemble", 0.85, 0.2, marks=pytest.mark.row("F03")),
        pytest.param("defense-gan", 0.85, 0.1, marks=pytest.mark.row("F07")),
        pytest.param("defense-gan-affine", 0.8, 0.1, marks=pytest.mark.row("F07")),
        pytest.param("crop", 0.6, 0.05, marks=pytest.mark.row("F13")),
        pytest.param("resize-pad", 0.9, 0.08, marks=pytest.mark.row("D31")),
        pytest.param("total-variation", 0.8, 0.02, marks=pytest.mark.row("F05")),
    ],
)
def test_defenses_against_unaware_attacks_are_broken_by_adaptive_ones(
    field: Defenses, name: str, clean: float, gap: float
) -> None:
    assert field.clean(name) > clean
    aware = field.aware(name)
    assert field.unaware(name) > aware + gap
    assert aware < 0.25


@pytest.mark.row("D32")
@pytest.mark.parametrize("name", ["scaled-logits", "quantised-logits"])
def test_a_masked_model_resists_its_own_gradient_and_is_broken_by_transfer(
    field: Defenses, name: str
) -> None:
    assert field.naive(name) > 0.85
    assert field.unaware(name) < 0.1
    record = field.registry.defenses[name].value
    seen = ZeroGradients().examine(field.loader(name).build(), field.x[:32], field.y[:32], record)
    assert seen.finding is Finding.WARNING


@pytest.mark.row("D23", "RP03")
@pytest.mark.parametrize("name", ["noise-first", "noise-dense"])
def test_small_noise_gains_nothing_under_fgsm(field: Defenses, name: str) -> None:
    assert field.clean(name) > 0.9
    assert field.aware(name, "fgsm") < field.aware("undefended", "fgsm") + 0.1


@pytest.mark.row("D24")
def test_training_with_noise_helps_in_l2_and_costs_little_in_linf(field: Defenses) -> None:
    """On 500 digits: the difference in Linf, 0.07, is uncertain by 0.04 on 128 of them."""
    ball, whole = L2(Fraction(1)), Defenses(field.folder, 500)
    ours, plain = "randomised-training", "pgd-training"
    assert whole.aware(ours, ball=ball) > whole.aware(plain, ball=ball)
    assert whole.aware(ours) > whole.aware(plain) - 0.1
