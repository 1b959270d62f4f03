"""The built-in threat models: their rules, and that each can be evaluated."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from bench.evaluation.plan import why_not_applicable
from bench.plugin import Access, Budget, Goal, Traits
from bench.registry.registry import Registry
from bench.threats.threat_model import ThreatModel
from plugins.published._weights import published_digests
from plugins.threats import digits, images

MODELS = [*digits.bench_threat_models(), *images.bench_threat_models()]
BY_NAME = {threat_model.name: threat_model for threat_model in MODELS}

RULES = [
    ("digits-linf", "digits", "Linf", Fraction(1, 5), "untargeted", True),
    ("digits-l2", "digits", "L2", Fraction(1), "untargeted", True),
    ("digits-l1", "digits", "L1", Fraction(2), "untargeted", True),
    ("digits-labels", "digits", "L2", Fraction(1), "untargeted", True),
    ("digits-targeted", "digits", "Linf", Fraction(1, 5), "targeted", False),
    ("digits-nearest", "digits", "L2", Fraction(8), "nearest", False),
    ("digits-box", "digits", "Linf", Fraction(1), "untargeted", False),
    ("mnist-linf", "mnist", "Linf", Fraction(1, 10), "untargeted", True),
    ("fashion-linf", "fashion-mnist", "Linf", Fraction(1, 10), "untargeted", True),
    ("cifar10-linf", "cifar10", "Linf", Fraction(8, 255), "untargeted", True),
    ("cifar10-l2", "cifar10", "L2", Fraction(1, 2), "untargeted", True),
    ("cifar100-linf", "cifar100", "Linf", Fraction(8, 255), "untargeted", True),
    ("digits-linf-half", "digits", "Linf", Fraction(1, 10), "untargeted", False),
    ("digits-linf-double", "digits", "Linf", Fraction(2, 5), "untargeted", False),
    ("digits-l2-half", "digits", "L2", Fraction(1, 2), "untargeted", False),
    ("digits-l2-double", "digits", "L2", Fraction(2), "untargeted", False),
    ("digits-l1-half", "digits", "L1", Fraction(1), "untargeted", False),
    ("digits-l1-double", "digits", "L1", Fraction(4), "untargeted", False),
    ("digits-rotation", "digits", "rotation-translation", Fraction(1), "untargeted", False),
    ("digits-universal-linf", "digits", "linf-delta", Fraction(1, 5), "untargeted", False),
    ("digits-universal-l2", "digits", "l2-delta", Fraction(2), "untargeted", False),
    ("fashion-patch", "fashion-mnist", "random-patch", Fraction(1), "untargeted", False),
    ("digits-one-pixel", "digits", "L0", Fraction(1), "untargeted", False),
    ("digits-corruptions", "digits", "corruption", Fraction(1), "untargeted", False),
    ("mnist-corruptions", "mnist", "corruption", Fraction(1), "untargeted", False),
    ("fashion-mnist-corruptions", "fashion-mnist", "corruption", Fraction(1), "untargeted", False),
    ("cifar10-corruptions", "cifar10", "corruption", Fraction(1), "untargeted", False),
    ("cifar100-corruptions", "cifar100", "corruption", Fraction(1), "untargeted", False),
    ("digits-physical", "digits", "Linf", Fraction(1, 5), "untargeted", False),
    ("fashion-print", "fashion-mnist", "Linf", Fraction(1, 10), "untargeted", False),
    ("fashion-stickers", "fashion-mnist", "masked-pattern", Fraction(1), "untargeted", False),
]

UNRANKED = (
    "digits-rotation", "digits-universal-linf", "digits-universal-l2", "digits-one-pixel",
    "fashion-patch", "digits-physical", "fashion-print", "fashion-stickers",
)  # fmt: skip
"""Without required attacks: no part of the default run."""

IDS = {
    "digits-linf": "b44e60d878811b67",
    "digits-l2": "d2ba5cc1fad47fd5",
    "digits-l1": "40c48c196291e761",
    "digits-labels": "8213b77bbce0a688",
    "digits-targeted": "9a64eda89640555c",
    "digits-nearest": "be179c0732d52657",
    "digits-box": "b77d7418a2f568f8",
    "digits-linf-half": "9cd4644ec644fb16",
    "digits-linf-double": "4cd880a6e2084e66",
    "digits-l2-half": "bed324599e0ce075",
    "digits-l2-double": "70429a6c9cd27496",
    "digits-l1-half": "c125603830b6cbe1",
    "digits-l1-double": "ba924c4b4d9001e5",
    "digits-rotation": "f3daa7c1d3ee60ff",
    "digits-one-pixel": "c82b6f99696462ab",
    "digits-corruptions": "ebdaf104d51ad783",
    "mnist-corruptions": "5dd976e131ae03b2",
    "fashion-mnist-corruptions": "1bbdd6fc9bf96b51",
    "cifar10-corruptions": "1ac9b245aa0d8dc2",
    "cifar100-corruptions": "5518f1197448da1a",
    "digits-universal-linf": "f1a9e2d5cc6148d0",
    "digits-universal-l2": "05f0b3b124955d00",
    "fashion-patch": "bee0c108ef595ca9",
    "digits-physical": "62d1427634a56b7b",
    "fashion-print": "e84b88847101c150",
    "fashion-stickers": "b2914fd657164635",
    "mnist-linf": "00476ffb5968fff3",
    "fashion-linf": "8b293e85ae5c4624",
    "cifar10-linf": "1dcbed173b31af53",
    "cifar10-l2": "1b4c43a816b9a94a",
    "cifar100-linf": "255d74d887dee4e4",
}
"""Results are stored under these ids; with another id they would not be found."""


@pytest.fixture(scope="module")
def known() -> Registry:
    """Every built-in plugin."""
    return Registry.load()


def test_the_threat_models_have_these_rules() -> None:
    found = [
        (b.name, b.dataset, b.ball.name, b.ball.eps, b.goal.kind, b.protocol.ranked)
        for b in sorted(MODELS, key=lambda threat_model: threat_model.order)
    ]
    assert found == RULES


def test_every_threat_model_has_its_own_id_order_and_summary() -> None:
    for field in ("id", "order", "summary"):
        values = [getattr(threat_model, field) for threat_model in MODELS]
        assert len(set(values)) == len(values)
        assert all(values)


def test_the_ids_are_unchanged() -> None:
    assert {threat_model.name: threat_model.id for threat_model in MODELS} == IDS


def test_only_digits_labels_and_corruptions_hide_scores_and_the_former_limits_queries() -> None:
    for threat_model in MODELS:
        labels = threat_model.name == "digits-labels"
        known = Access.LABELS if labels else Access.GRADIENTS
        corruptions = threat_model.name.endswith("-corruptions")
        assert threat_model.access == (Access.NOTHING if corruptions else known)
        assert threat_model.budget == (Budget(queries=1000) if labels else Budget())


def test_the_targeted_threat_model_declares_the_target_class() -> None:
    assert BY_NAME["digits-targeted"].goal == Goal("targeted", "next")


def test_the_radius_of_digits_nearest_covers_every_image() -> None:
    black, white = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    assert bool(BY_NAME["digits-nearest"].ball.contains(white, black).all())
    assert bool(BY_NAME["digits-box"].ball.contains(white, black).all())
    smaller = replace(BY_NAME["digits-nearest"].ball, eps=Fraction(799, 100))  # type: ignore[type-var]
    assert not bool(smaller.contains(white, black).any())


@pytest.mark.parametrize("name", BY_NAME)
def test_required_attacks_exist_and_can_run(name: str, known: Registry) -> None:
    threat_model: ThreatModel = known.find("threat", name).value
    # Without required attacks it is no part of the default run.
    assert threat_model.protocol.required or name in UNRANKED
    assert threat_model.dataset in known.datasets
    plain = replace(known.defenses["undefended"].value, name="other")
    detector = replace(plain, rejects=0.05)
    for attack in (known.find("attack", name).value for name in threat_model.protocol.required):
        other = detector if Traits.of(attack).joint else plain
        assert why_not_applicable(threat_model, other, attack) == ""


def test_ranked_threat_models_require_more_than_one_gradient_step(known: Registry) -> None:
    for threat_model in MODELS:
        attacks = [known.find("attack", name).value for name in threat_model.protocol.required]
        if threat_model.protocol.ranked:
            assert any(attack.steps >= 20 and not Traits.of(attack).source for attack in attacks)


def test_the_public_surrogates_of_images_of_ten_classes_need_no_training() -> None:
    """Their weights come with the project; for CIFAR-100 there are none."""
    ranked = [one for one in images.bench_threat_models() if one.protocol.ranked]
    names = {one.name: set(one.protocol.surrogates.values()) for one in ranked}
    trained = {name for name, found in names.items() if not found <= set(published_digests())}
    assert trained == {"cifar100-linf"} and len(names) == 5


def test_an_image_folder_registers_its_threat_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", "somewhere")
    added = [b for b in images.bench_threat_models() if b.name not in BY_NAME]
    assert [(b.name, b.dataset, b.ball.eps) for b in added] == [
        ("folder-linf", "image-folder", Fraction(4, 255))
    ]
