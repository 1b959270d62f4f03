"""Obfuscated gradients: a plain attack overestimates what follow-up attacks break."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.registry.registry import Registry
from plugins.attacks.fast_gradient import FastGradient
from tests.benchmarks import obfuscated_gradients, weak_and_strong_attacks
from tests.benchmarks.adaptive_evaluation import AdaptiveEvaluation, undeclared
from tests.benchmarks.obfuscated_gradients import COUNTERPARTS, MaskingRow, measure, table

ROOT = Path(__file__).parents[3]
SUBMISSIONS = ROOT / "submissions"


def row(kind: str, plain: float, follow_up: float, defense: str = "x") -> MaskingRow:
    return MaskingRow("a paper", defense, kind, "0 %", 100, 0.9, plain, follow_up, "pgd", 1.0)


@pytest.mark.parametrize(
    ("found", "misses"),
    [
        (row("shattered", 0.8, 0.2), ""),
        (row("shattered", 0.8, 0.35), "more than 30% stay robust"),
        (row("shattered", 0.4, 0.2), "the follow-up attacks break less than 25% more"),
        (row("vanishing", 0.8, 0.31), "more than 30% stay robust"),
        (row("stochastic", 0.2, 0.15), ""),
        (row("stochastic", 0.9, 0.16), "more than 15% stay robust"),
        (row("adversarial training", 0.6, 0.58, "pgd-training"), ""),
        (row("adversarial training", 0.6, 0.57, "pgd-training"), "adversarial training moves by"),
        (row("adversarial training", 0.6, 0.2, "cascade"), ""),
    ],
)
def test_a_row_outside_the_expected_pattern_is_named(found: MaskingRow, misses: str) -> None:
    assert found.misses.startswith(misses)
    assert bool(found.misses) == bool(misses)
    assert f"| {found.plain:.1%} | {found.follow_up:.1%} | pgd | {found.misses} |" in table([found])


def test_the_page_notes_what_larger_evaluations_show_of_its_rows() -> None:
    """Right: a note for each row that has one, below the sizes; none for other rows."""
    note = obfuscated_gradients.NOTES["pgd-training"]
    with_it = obfuscated_gradients.page([row("adversarial training", 0.6, 0.5, "pgd-training")])
    assert with_it.endswith(f"cascade.\n\n{note}\n") and "\nDigits: 100. Not" in with_it
    assert note not in obfuscated_gradients.page([row("shattered", 0.8, 0.2, "jpeg")])
    assert (ROOT / "docs" / "obfuscated-gradients.md").read_text().endswith(f"\n\n{note}\n")


def test_every_counterpart_and_attack_is_registered() -> None:
    registry = Registry.load(SUBMISSIONS)
    for counterpart in COUNTERPARTS:
        assert "digits" in registry.find("defense", counterpart.defense).value.datasets
    for evaluated in weak_and_strong_attacks.EVALUATIONS:
        registry.find("defense", evaluated.defense)
    attacks = {*obfuscated_gradients.FOLLOW_UPS, *weak_and_strong_attacks.ATTACKS}
    assert attacks <= set(registry.attacks)


def test_the_plain_attack_uses_nothing_that_is_declared() -> None:
    registry = Registry.load(SUBMISSIONS)
    thermometer, pruning, plain = (
        undeclared(registry.find("defense", name).value)
        for name in ("thermometer", "activation-pruning", "undefended")
    )
    assert thermometer.bpda is None and thermometer.randomness is None
    assert pruning.randomness is not None and pruning.randomness.draws == 1
    assert plain == registry.find("defense", "undefended").value


class FirstEight(FastGradient):
    """FGSM on the first eight examples only."""

    examples = 8


def test_examples_that_an_attack_leaves_out_are_not_broken() -> None:
    evaluation = AdaptiveEvaluation(examples=24)
    attacks = evaluation.caches[False].registry.attacks
    whole = evaluation.robust("linear", "fgsm")
    fgsm = attacks["fgsm"].value
    limited_fgsm = FirstEight(**{**vars(fgsm), "name": "limited"})
    attacks["limited"] = replace(attacks["fgsm"], value=limited_fgsm)
    limited, clean = evaluation.robust("linear", "limited"), evaluation.clean("linear")
    assert whole is not None and limited is not None
    assert (limited[8:] == clean[8:]).all() and (limited[:8] == whole[:8]).all()
    assert whole[8:].sum() < clean[8:].sum()


@pytest.mark.slow
@pytest.mark.row("RP04")
def test_shattered_gradients_fall_to_follow_up_attacks() -> None:
    """The measured figures of all defenses are in docs/obfuscated-gradients.md."""
    evaluation = AdaptiveEvaluation(examples=48)
    names = ("thermometer", "bit-depth", "pgd-training")
    found = {r.defense: r for r in measure(evaluation, names)}
    assert set(found) == set(names)
    assert {name: r.misses for name, r in found.items()} == dict.fromkeys(names, "")
    assert found["thermometer"].plain - found["thermometer"].follow_up > 0.5
    trained = found["pgd-training"]
    assert trained.own_attack == "pgd-restarts" and trained.plain - trained.follow_up < 0.03


@pytest.mark.slow
@pytest.mark.row("E06")
def test_the_strongest_attack_leaves_less_than_the_weak_one() -> None:
    evaluations = [
        r
        for r in weak_and_strong_attacks.EVALUATIONS
        if r.defense in ("undefended", "weight-decay")
    ]
    rows = list(weak_and_strong_attacks.measure(AdaptiveEvaluation(examples=48), evaluations))
    assert all(r.under_weak > 0.8 and r.left < 0.4 and r.worst <= r.left for r in rows)
    text = weak_and_strong_attacks.page(rows, 48)
    assert "the first 48 digits" in text
    assert text.count("| `random`") == 2


@pytest.mark.row("E06")
def test_the_page_has_every_defense() -> None:
    text = weak_and_strong_attacks.PAGE.read_text()
    for evaluated in weak_and_strong_attacks.EVALUATIONS:
        assert f"| {evaluated.title} | `{evaluated.defense}` |" in text
        assert evaluated.shows in text
