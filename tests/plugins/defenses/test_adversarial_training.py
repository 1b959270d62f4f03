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

    def held(self, name: str, attack: str, through: nn.Module | None = None) -> Tensor:
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
        return float(self.held(name, attack, through).double().mean())


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> TrainedDefenses:
    return TrainedDefenses(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(
    "name",
    ["undefended", "weight-decay", "fgsm-training", "fgsm-mixture", "pgd-training", "trades",
     "linear", "bit-depth", "argmax-only"],
)  # fmt: skip
def test_every_defense_is_accurate_on_clean_digits(bed: TrainedDefenses, name: str) -> None:
    assert bed.clean(name) > 0.9


@pytest.mark.row("D01")
def test_pgd_breaks_the_undefended_network(bed: TrainedDefenses) -> None:
    assert bed.robust("undefended") < 0.05


@pytest.mark.row("D03")
def test_weight_decay_is_not_a_defense(bed: TrainedDefenses) -> None:
    assert bed.robust("weight-decay") < 0.1


@pytest.mark.row("D08", "D13")
@pytest.mark.parametrize("name", ["pgd-training", "trades"])
def test_pgd_training_gains_forty_points_under_pgd(bed: TrainedDefenses, name: str) -> None:
    robust = bed.robust(name)
    assert robust > bed.robust("undefended") + 0.4
    assert 0.5 < robust < 0.75


@pytest.mark.parametrize(
    "name",
    [pytest.param("fast-training", marks=pytest.mark.row("D17", "RP05")),
     pytest.param("free-training", marks=pytest.mark.row("D16", "RP05"))],
)  # fmt: skip
def test_cheaper_training_is_as_robust_as_pgd_training(bed: TrainedDefenses, name: str) -> None:
    assert bed.clean(name) > 0.9
    assert bed.robust(name, "apgd-ce") > bed.robust("pgd-training", "apgd-ce") - 0.1


@pytest.mark.row("D05", "D07")
@pytest.mark.parametrize("name", ["fgsm-training", "fgsm-mixture"])
def test_fgsm_training_helps_against_fgsm_more_than_against_pgd(
    bed: TrainedDefenses, name: str
) -> None:
    one_step, many = bed.robust(name, "fgsm"), bed.robust(name)
    assert one_step > bed.robust("undefended", "fgsm") + 0.4
    assert many < one_step - 0.05
    assert many > bed.robust("undefended") + 0.25


@pytest.mark.row("F04")
def test_bit_depth_hides_its_gradient_and_bpda_breaks_it(bed: TrainedDefenses) -> None:
    bpda = bed.loader("bit-depth").bpda()
    assert bpda is not None
    assert bed.robust("bit-depth") > 0.85
    assert bed.robust("bit-depth", through=bpda) < 0.3
    found = ModelAccess(bed.module("bit-depth"), bpda=bpda).gradient(
        bed.x, lambda logits: cross_entropy(logits, bed.y)
    )
    assert (found.gradient.flatten(1) != 0).any(1).all()


@pytest.mark.row("D33")
def test_argmax_only_is_broken_by_the_attacks_that_break_the_undefended_network(
    bed: TrainedDefenses,
) -> None:
    surrogate = bed.module("undefended")
    assert torch.equal(
        bed.held("argmax-only", "pgd", through=surrogate), bed.held("undefended", "pgd")
    )
    assert bed.robust("argmax-only") > 0.85, "its own gradient leads nowhere"


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "pgd-margin"])
def test_no_attack_breaks_a_certified_example_of_the_linear_model(
    bed: TrainedDefenses, attack: str
) -> None:
    module = bed.module("linear")
    certified = LinearExact().certify(module, bed.x, bed.y, bed.ball)
    assert not (certified & ~bed.held("linear", attack)).any()


@pytest.mark.row("V01")
@pytest.mark.parametrize("board", ["digits-linf", "digits-l2", "digits-l1"])
def test_the_certificate_of_the_linear_model_is_exact(bed: TrainedDefenses, board: str) -> None:
    ball = bed.registry.threats[board].value.ball
    module = bed.module("linear")
    assert LinearExact().refuses(module, ball) == ""
    certified = LinearExact().certify(module, bed.x, bed.y, ball)
    weight = weight_and_bias(module)[0].float()
    held = bed.right(module, bed.x)
    for rival in range(10):
        slope = (weight[rival] - weight[bed.y]).view_as(bed.x)
        adv = ball.farthest(slope, bed.x)
        assert ball.contains(adv, bed.x).all()
        held &= bed.right(module, adv)
    assert torch.equal(certified, held)


@pytest.mark.row("F04", "D33")
@pytest.mark.parametrize("name", ["bit-depth", "argmax-only"])
def test_hidden_gradients_are_flagged(bed: TrainedDefenses, name: str) -> None:
    assert look(bed, ZeroGradients(), name).finding is Finding.RAISED


def every(bed: TrainedDefenses) -> dict[str, Diagnostic]:
    return {name: offer.value for name, offer in bed.registry.diagnostics.items()}


def look(bed: TrainedDefenses, diagnostic: Diagnostic, name: str) -> Evidence:
    defense = bed.registry.defenses[name].value
    return diagnostic.examine(bed.module(name), bed.x[:32], bed.y[:32], defense)


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
    bed: TrainedDefenses, name: str, diagnostic: str
) -> None:
    evidence = look(bed, every(bed)[diagnostic], name)
    assert evidence.finding is Finding.CLEAR, evidence.sentence
