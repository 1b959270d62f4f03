"""Certificates of trained digits networks: below every attack, and ordered as in the papers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.data import datasets
from bench.engine.problem import attack_once
from bench.plugin import L2, Linf
from bench.registry.registry import Registry
from bench.training.tasks import build_trained
from plugins.attacks.pgd import PGD
from plugins.certifiers.dual_bound import DualBound
from plugins.certifiers.interval import Intervals
from plugins.certifiers.lipschitz_margin import LipschitzMargin
from plugins.certifiers.pixeldp import PixelDP
from plugins.certifiers.randomized_smoothing import Smoothing, certified_radius, class_counts
from plugins.defenses.randomized_smoothing import SIGMA, Smoothed

N = 100
pytestmark = pytest.mark.slow


class TrainedNetworks:
    """The digits, and networks trained once."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry.load(folder / "no-submissions")
        self.digits = self.registry.datasets["digits"].value
        self.folder = folder
        examples = datasets.first_examples(self.digits, N)
        self.x, self.y = examples.tensor(), torch.tensor(examples.labels)

    def module(self, name: str) -> nn.Module:
        return build_trained(self.registry, name, self.digits, self.folder).build()

    def still_correct(self, module: nn.Module, attack: str, ball: Linf | L2) -> Tensor:
        found = self.registry.attacks[attack].value
        adv = attack_once(found, module, self.x, self.y, ball, seed=0, example=torch.arange(N))
        after, clean = module(adv).argmax(1), module(self.x).argmax(1)
        kept: Tensor = (after == self.y) & (clean == self.y)
        return kept


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> TrainedNetworks:
    return TrainedNetworks(tmp_path_factory.mktemp("digits"))


@pytest.mark.row("V04", "V03", "V05")
def test_no_attack_breaks_an_example_certified_by_bounds(networks: TrainedNetworks) -> None:
    module = networks.module("undefended")
    tools = (Intervals(), DualBound(), LipschitzMargin())
    before = [torch.ones(N, dtype=torch.bool)] * len(tools)
    for eps in (Fraction(1, 200), Fraction(1, 100), Fraction(1, 50)):
        ball = Linf(eps)
        robust = networks.still_correct(module, "fgsm", ball) & networks.still_correct(
            module, "pgd", ball
        )
        found = [tool.certify(module, networks.x, networks.y, ball) for tool in tools]
        for certified, earlier in zip(found, before, strict=True):
            assert not (certified & ~robust).any()
            assert not (certified & ~earlier).any()
        before = found
        assert robust.double().mean() > 0.8
    interval, dual, _ = (certified.double().mean() for certified in before)
    assert dual > interval + 0.2


@pytest.mark.row("V07")
def test_training_with_noise_certifies_more_than_plain_training(networks: TrainedNetworks) -> None:
    share = {}
    smoothed = networks.module("smoothed")
    assert isinstance(smoothed, Smoothed)
    for name, classifier in (
        ("noise", smoothed.classifier),
        ("plain", networks.module("undefended")),
    ):
        vote = Smoothed(classifier, SIGMA, 64)
        hits = class_counts(vote, networks.x, 500).gather(1, networks.y[:, None])[:, 0].tolist()
        share[name] = sum(certified_radius(k, 500, SIGMA, 0.001) >= 0.25 for k in hits) / N
    assert share["noise"] > share["plain"] + 0.15
    assert share["noise"] > 0.5


@pytest.mark.row("V06")
def test_the_certified_curve_of_the_vote_is_below_its_attacked_one(
    networks: TrainedNetworks,
) -> None:
    vote, loader = (
        networks.module("smoothed"),
        build_trained(networks.registry, "smoothed", networks.digits, networks.folder),
    )
    soft = loader.bpda()
    assert soft is not None
    for eps in (Fraction(1, 20), Fraction(1, 2)):
        torch.manual_seed(0)
        robust = torch.ones(N, dtype=torch.bool)
        for attack in (networks.registry.attacks["fgm-l2"].value, PGD(steps=10, rate=0.25)):
            adv = attack_once(
                attack, soft, networks.x, networks.y, L2(eps), seed=0, example=torch.arange(N)
            )
            robust &= vote(adv).argmax(1) == networks.y
        for tool in (Smoothing(), PixelDP()):
            if not tool.refuses(vote, L2(eps)):
                certified = tool.certify(vote, networks.x, networks.y, L2(eps))
                assert int((certified & ~robust).sum()) <= 1, tool.name
                assert int(certified.sum()) > 5, tool.name
