"""The digits defenses after training: the order of the papers' results, with wide margins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.data import datasets
from bench.engine.model_access import ModelAccess
from bench.engine.problem import attack_once
from bench.plugin import Diagnostic, Evidence, Finding, cross_entropy
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from bench.training.tasks import build_trained
from plugins.certifiers.linear_exact import LinearExact, weight_and_bias
from plugins.diagnostics.zero_gradients import ZeroGradients

N = 500
pytestmark = pytest.mark.slow


class TrainedDefenses:
    """The digits data set with every defense trained, once a session."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry.load(folder / "no-submissions")
        self.digits = self.registry.datasets["digits"].value
        self.ball = self.registry.threats["digits-linf"].value.ball
        self.folder = folder
        examples = datasets.first_examples(self.digits, N)
        self.x, self.y = examples.tensor(), torch.tensor(examples.labels)

    def loader(self, name: str) -> DefenseBuilder:
        return build_trained(self.registry, name, self.digits, self.folder)

    def module(self, name: str) -> nn.Module:
        return self.loader(name).build()

    def right(self, module: nn.Module, images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(images).argmax(1) == self.y
        return found

    def clean(self, name: str) -> float:
        return float(self.right(self.module(name), self.x).double().mean())

    def still_correct(self, name: str, attack: str, through: nn.Module | None = None) -> Tensor:
        """[N] bool: correct before and after one attack; `through`: the model whose gradient it
        uses.
        """
        module = self.module(name)
        found = self.registry.attacks[attack].value
        example = torch.arange(N)
        adv = attack_once(
            found, through or module, self.x, self.y, self.ball, seed=0, example=example
        )
        return self.right(module, self.x) & self.right(module, adv)

    def robust(self, name: str, attack: str = "pgd", through: nn.Module | None = None) -> float:
        return float(self.still_correct(name, attack, through).double().mean())


@pytest.fixture(scope="module")
def defenses(tmp_path_factory: pytest.TempPathFactory) -> TrainedDefenses:
    return TrainedDefenses(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(
    "name",
    ["undefended", "weight-decay", "fgsm-training", "fgsm-mixture", "pgd-training", "trades",
     "linear", "bit-depth", "argmax-only"],
)  # fmt: skip
def test_every_defense_is_accurate_on_clean_digits(defenses: TrainedDefenses, name: str) -> None:
    assert defenses.clean(name) > 0.9


@pytest.mark.row("D01")
def test_pgd_breaks_the_undefended_network(defenses: TrainedDefenses) -> None:
    assert defenses.robust("undefended") < 0.05


@pytest.mark.row("D03")
def test_weight_decay_is_not_a_defense(defenses: TrainedDefenses) -> None:
    assert defenses.robust("weight-decay") < 0.1


@pytest.mark.row("D08", "D13")
@pytest.mark.parametrize("name", ["pgd-training", "trades"])
def test_pgd_training_gains_forty_points_under_pgd(defenses: TrainedDefenses, name: str) -> None:
    robust = defenses.robust(name)
    assert robust > defenses.robust("undefended") + 0.4
    assert 0.5 < robust < 0.75


@pytest.mark.parametrize(
    "name",
    [pytest.param("fast-training", marks=pytest.mark.row("D17", "RP05")),
     pytest.param("free-training", marks=pytest.mark.row("D16", "RP05"))],
)  # fmt: skip
def test_cheaper_training_is_as_robust_as_pgd_training(
    defenses: TrainedDefenses, name: str
) -> None:
    assert defenses.clean(name) > 0.9
    assert defenses.robust(name, "apgd-ce") > defenses.robust("pgd-training", "apgd-ce") - 0.1


@pytest.mark.row("D05", "D07")
@pytest.mark.parametrize("name", ["fgsm-training", "fgsm-mixture"])
def test_fgsm_training_helps_against_fgsm_more_than_against_pgd(
    defenses: TrainedDefenses, name: str
) -> None:
    one_step, many = defenses.robust(name, "fgsm"), defenses.robust(name)
    assert one_step > defenses.robust("undefended", "fgsm") + 0.4
    assert many < one_step - 0.05
    assert many > defenses.robust("undefended") + 0.25


@pytest.mark.row("F04")
def test_bit_depth_hides_its_gradient_and_bpda_breaks_it(defenses: TrainedDefenses) -> None:
    bpda = defenses.loader("bit-depth").bpda()
    assert bpda is not None
    assert defenses.robust("bit-depth") > 0.85
    assert defenses.robust("bit-depth", through=bpda) < 0.3
    found = ModelAccess(defenses.module("bit-depth"), bpda=bpda).gradient(
        defenses.x, lambda logits: cross_entropy(logits, defenses.y)
    )
    assert (found.gradient.flatten(1) != 0).any(1).all()


@pytest.mark.row("D33")
def test_argmax_only_is_broken_by_the_attacks_that_break_the_undefended_network(
    defenses: TrainedDefenses,
) -> None:
    surrogate = defenses.module("undefended")
    assert torch.equal(
        defenses.still_correct("argmax-only", "pgd", through=surrogate),
        defenses.still_correct("undefended", "pgd"),
    )
    assert defenses.robust("argmax-only") > 0.85, "its own gradient leads nowhere"


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "pgd-margin"])
def test_no_attack_breaks_a_certified_example_of_the_linear_model(
    defenses: TrainedDefenses, attack: str
) -> None:
    module = defenses.module("linear")
    certified = LinearExact().certify(module, defenses.x, defenses.y, defenses.ball)
    assert not (certified & ~defenses.still_correct("linear", attack)).any()


@pytest.mark.row("V01")
@pytest.mark.parametrize("threat", ["digits-linf", "digits-l2", "digits-l1"])
def test_the_certificate_of_the_linear_model_is_exact(
    defenses: TrainedDefenses, threat: str
) -> None:
    ball = defenses.registry.threats[threat].value.ball
    module = defenses.module("linear")
    assert LinearExact().refuses(module, ball) == ""
    certified = LinearExact().certify(module, defenses.x, defenses.y, ball)
    weight = weight_and_bias(module)[0].float()
    robust = defenses.right(module, defenses.x)
    for rival in range(10):
        slope = (weight[rival] - weight[defenses.y]).view_as(defenses.x)
        adv = ball.farthest(slope, defenses.x)
        assert ball.contains(adv, defenses.x).all()
        robust &= defenses.right(module, adv)
    assert torch.equal(certified, robust)


@pytest.mark.row("F04", "D33")
@pytest.mark.parametrize("name", ["bit-depth", "argmax-only"])
def test_hidden_gradients_are_flagged(defenses: TrainedDefenses, name: str) -> None:
    assert examine(defenses, ZeroGradients(), name).finding is Finding.WARNING


def every(defenses: TrainedDefenses) -> dict[str, Diagnostic]:
    return {
        name: registration.value for name, registration in defenses.registry.diagnostics.items()
    }


def examine(defenses: TrainedDefenses, diagnostic: Diagnostic, name: str) -> Evidence:
    defense = defenses.registry.defenses[name].value
    return diagnostic.examine(defenses.module(name), defenses.x[:32], defenses.y[:32], defense)


@pytest.mark.parametrize(
    "name",
    ["undefended", "weight-decay", "fgsm-training", "fgsm-mixture", "pgd-training", "trades",
     "linear"],
)  # fmt: skip
@pytest.mark.parametrize(
    "diagnostic",
    ["zero-gradients", "gradient-agrees", "probabilities", "deterministic", "batch-independent"],
)
def test_no_defense_without_masking_is_flagged(
    defenses: TrainedDefenses, name: str, diagnostic: str
) -> None:
    evidence = examine(defenses, every(defenses)[diagnostic], name)
    assert evidence.finding is Finding.PASSED, evidence.sentence
