"""Claims, curves, the report of a defense, the JSON report and its digest, the terminal."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from itertools import count as counted
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.core.cards import AttackCard, Claim, ThreatCard
from bench.core.errors import BenchError
from bench.core.outcomes import KeptImage
from bench.registry.registry import Registry
from bench.results.defense_report import accuracy_curve, defense_report
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard
from bench.results.masking_checks import samples_blindly, uses_gradients
from bench.results.ranking import load_ranking
from bench.results.text_report import text_report
from bench.store import EvidenceRow, Store
from leaderboard import words
from tests.fixtures.small_store import Bits, World, first, outcomes, some
from tests.results.small_results import ALL, NONE, certify, enter, rows_of, small

# Claims.


@pytest.mark.parametrize(
    ("claimed", "complete", "said"),
    [(0.5, True, "holds"), (0.53, True, "holds"), (0.6, True, "below"), (0.6, False, "below"),
     (0.5, False, "not testable")],
)  # fmt: skip
def test_a_claim_is_compared_with_the_interval(
    world: World, claimed: float, complete: bool, said: str
) -> None:
    world.defense("d", Claim("linf", claimed, "arXiv:0000.00000"))
    world.clean("d", ALL)
    world.evaluate("d", "pgd", first(300))
    if complete:
        world.evaluate("d", "fgsm", NONE)
    claim = rows_of(world)["d"].claim
    assert claim is not None
    assert (claim.verdict, claim.robust) == (said, claimed)
    assert "300 of 600" in claim.sentence


@pytest.mark.parametrize("claimed", [0.3, 0.5, 0.6])
def test_a_claim_of_an_invalid_row_is_not_testable(world: World, claimed: float) -> None:
    world.diagnostic("deterministic")
    world.defense("d", Claim("linf", claimed))
    world.clean("d", ALL)
    world.evaluate("d", "fgsm", NONE)
    world.evaluate("d", "pgd", first(300))
    source = world.digests["diagnostic", "deterministic"]
    moves = EvidenceRow("deterministic", "raised", "It moves.", source)
    world.store.record_evidence("d", world.digests["defense", "d"], world.examples, moves)
    row = rows_of(world)["d"]
    assert row.claim is not None
    assert (row.verdict, row.claim.verdict) == ("invalid", "not testable")
    assert "300 of 600" in row.claim.sentence and "row is invalid" in row.claim.sentence


def test_a_claim_below_the_whole_interval_holds(world: World) -> None:
    """More was measured than claimed; the page on methods states the same rule."""
    world.defense("d", Claim("linf", 0.3))
    world.clean("d", ALL)
    world.evaluate("d", "fgsm", NONE)
    world.evaluate("d", "pgd", first(300))
    claim = rows_of(world)["d"].claim
    assert claim is not None and claim.verdict == "holds"
    (text,) = [text for title, text in words.method_sections() if title == "Claims"]
    assert "unless the whole interval is below it" in text


def test_a_claim_under_another_threat_model_is_not_compared(world: World) -> None:
    world.defense("d", Claim("l2", 0.9))
    world.evaluate("d", "pgd", ALL)
    assert rows_of(world)["d"].claim is None


# Curves and reports.


def test_a_curve_falls_where_examples_are_broken() -> None:
    spent = np.array([1.0, 3.0, 3.0, np.inf, 2.0, 0.0])
    clean = np.array([True, True, True, True, False, True])
    curve = accuracy_curve(spent, clean)
    assert curve.x.tolist() == [0, 1, 3]
    assert curve.correct.tolist() == [4, 3, 1]
    assert curve.n == 6


def test_a_curve_without_broken_examples_is_flat() -> None:
    curve = accuracy_curve(np.full(3, np.inf), np.array([True, True, False]))
    assert (curve.x.tolist(), curve.correct.tolist()) == ([0], [2])


def test_steps_of_earlier_restarts_count_in_the_curve(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    step, restart = np.where(first(2), 5, -1), np.where(some(600, 1), 2, 0)
    world.evaluate("d", "pgd", first(2), step=step, restart=restart)
    found = defense_report(world.store, find_leaderboard(world.store, None), "d")
    assert found.steps["pgd"].x.tolist() == [0, 5, 85]
    assert found.steps["pgd"].correct.tolist() == [600, 599, 598]
    assert found.forwards["pgd"].x.tolist() == [0, 3]


def test_nearest_examples_give_a_curve_and_other_radii_give_points(world: World) -> None:
    enter(world, "d", ~first(100), NONE, first(300))
    world.threat("near", "pgd", eps=0.1)
    world.evaluate("d", "pgd", first(200), threat="near")
    world.threat("nearest", goal="nearest", ranked=False)
    # Beyond the radius the verdict is robust; where the label is wrong there is a distance.
    world.attack("deepfool")
    far = np.linspace(0, 0.599, 600)
    world.evaluate("d", "deepfool", first(201), distance=far, label=first(500), threat="nearest")
    found = defense_report(world.store, find_leaderboard(world.store, "linf"), "d")
    curve = found.distances["deepfool"]
    at = {x: int(k) for x, k in zip(np.round(curve.x, 6), curve.correct, strict=True)}
    assert (at[0.0], at[0.1], at[0.3], at[0.499]) == (500, 499, 299, 100)
    assert curve.correct.min() == 100
    assert [(p.radius, p.robust.k, p.complete) for p in found.radii] == [
        (0.1, 400, True),
        (0.2, 300, True),
    ]
    assert defense_report(world.store, find_leaderboard(world.store, "nearest"), "d").radii == ()


def test_a_report_has_row_cells_and_images(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    adv = np.full((1, 2, 2), 0.5, np.float32)
    kept = KeptImage(3, np.zeros((1, 2, 2), np.uint8), adv, 0, 0, 0.9, 1, 0.8)
    world.record(world.cell("d", "pgd"), outcomes(first(9)), images=(kept,))
    found = defense_report(world.store, find_leaderboard(world.store, None), "d")
    assert found.row.robust.k == 591
    assert [cell.attack for cell in found.cells] == ["fgsm", "pgd"]
    assert [image.item for image in found.images["pgd"]] == [3]


def test_an_unknown_leaderboard_or_defense_is_refused_with_the_known_ones(world: World) -> None:
    with pytest.raises(BenchError, match="no leaderboard yet"):
        json_report(world.store)
    enter(world, "d", ALL, NONE)
    with pytest.raises(BenchError, match=r"'lnif'.*Did you mean 'linf'"):
        json_report(world.store, "lnif")
    with pytest.raises(BenchError, match="evaluated: d"):
        defense_report(world.store, find_leaderboard(world.store, None), "e")


# The report.


def test_the_json_report_has_the_documented_shape(world: World) -> None:
    world.threat("linf", "fgsm", "pgd")
    enter(world, "d", ALL, first(10), first(20))
    certify(world, ~first(20))
    said = json.loads(json.dumps(json_report(world.store), allow_nan=False))
    assert said["schema"] == 2
    assert said["threat"].keys() >= {"id", "name", "dataset", "set", "access", "goal", "budget"}
    assert said["examples"] == {"n": 600, "digest": "examples", "order": "balanced"}
    (row,) = said["ranking"]
    assert row["rank"] == [1, 1]
    assert row["robust"].keys() == {"k", "n", "low", "high"}
    assert row["robust"]["low"] < 580 / 600 < row["robust"]["high"]
    assert row["coverage"] == {"done": 2, "required": 2}
    assert row["flags"][0].keys() == {"name", "state", "evidence"}
    assert row["certified"]["k"] == 580
    assert row["certified"].keys() >= {"certifier", "exact", "error"}
    assert row.keys() >= {"clean", "robust_required", "strongest", "verdict", "claim", "tier"}
    cell = said["matrix"][1]
    assert (cell["attack"], cell["state"], cell["robust"]["k"]) == ("pgd", "done", 580)
    assert cell.keys() >= {"reason", "out_of_ball", "fragile", "forwards", "gradients", "seconds"}
    assert len(said["digest"]) == 64


COLUMN = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda bits: np.array(bits))


@settings(max_examples=12, deadline=None)
@given(COLUMN, st.lists(COLUMN, min_size=1, max_size=3))
def test_more_attacks_never_raise_robust_accuracy(
    empty: Path, right: Bits, broken: list[Bits]
) -> None:
    with small(empty, 12) as world:
        world.defense("d")
        world.clean("d", right)
        before = int(right.sum())
        for number, bits in enumerate(broken):
            world.attack(f"a{number}")
            world.evaluate("d", f"a{number}", bits)
            said = json_report(world.store)
            robust = said["ranking"][0]["robust"]["k"]
            alone = [s["robust"]["k"] for s in said["matrix"] if s["robust"]]
            assert robust <= before
            assert robust <= min(alone)
            before = robust
        expected = sum(
            bool(ok) and not any(bits[i] for bits in broken) for i, ok in enumerate(right)
        )
        assert before == expected


@st.composite
def recording_orders(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    order = draw(st.permutations(range(12)))
    cuts = draw(st.lists(st.integers(1, 11), unique=True, max_size=4))
    return list(order), [0, *sorted(cuts), 12]


def _digest(empty: Path, broken: list[Bits], how: Any, cells: list[int]) -> str:
    with small(empty, 12) as world:
        world.defense("d")
        for number in cells:
            world.attack(f"a{number}")
            order, cuts = how
            chunks = [order[a:b] for a, b in pairwise(cuts)]
            found = outcomes(broken[number], forwards=np.arange(12) + next(CLOCK))
            world.record(world.cell("d", f"a{number}"), found, chunks=chunks)
        digest: str = json_report(world.store)["digest"]
        return digest


CLOCK = counted()


@settings(max_examples=10, deadline=None)
@given(COLUMN, COLUMN, recording_orders())
def test_the_digest_depends_on_verdicts_alone(empty: Path, one: Bits, two: Bits, how: Any) -> None:
    straight = list(range(12)), [0, 12]
    first_digest = _digest(empty, [one, two], straight, [0, 1])
    assert _digest(empty, [one, two], how, [1, 0]) == first_digest
    flipped = one ^ some(12, how[0][0])
    assert _digest(empty, [flipped, two], how, [0, 1]) != first_digest


# The terminal.


def test_the_terminal_shows_counts_intervals_ranks_coverage_and_warnings(world: World) -> None:
    world.attack("random", "nothing", steps=1, samples=True)
    enter(world, "d", ALL, NONE, NONE)
    world.evaluate("d", "random", first(60))
    enter(world, "[bold]e", ALL, first(9))
    console = Console(width=200, file=io.StringIO())
    with console.capture() as printed:
        console.print(text_report(json_report(world.store)))
    text = printed.get()
    assert "540/600" in text
    assert "87.3-92.2" in text
    assert "suspect 1/2" in text
    assert "random-beats-gradient" in text
    assert "Of 600 examples that both evaluated, random break 60 and fgsm, pgd 0" in text
    assert "[bold]e: Provisional: 1 of 2 required attacks are done." in text
    assert "missing" in text


def test_the_terminal_and_the_json_count_further_attacks(world: World) -> None:
    world.attack("extra")
    enter(world, "d", ALL, NONE, first(10))
    world.evaluate("d", "extra", first(60))
    said = json_report(world.store)
    (row,) = said["ranking"]
    assert (row["coverage"], row["further"]) == ({"done": 2, "required": 2}, 1)
    console = Console(width=200, file=io.StringIO())
    console.print(text_report(said))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2/2 + 1" in text
    assert "590/600" in text and "540/600" in text


# Cards of the real plugins.


def test_the_built_in_cards_are_read_as_they_are_written(store: Store) -> None:
    cards = Registry.load().cards({"undefended": {"digits": "weights"}})
    store.record_cards(cards)
    attacks = {card.name: card for card in cards if isinstance(card, AttackCard)}
    assert uses_gradients(attacks["pgd"])
    assert not uses_gradients(attacks["transfer"])
    assert samples_blindly(attacks["random"])
    assert not samples_blindly(attacks["pgd"])
    threat = next(card for card in cards if card.name == "digits-box")
    assert isinstance(threat, ThreatCard)
    world = World(store)
    world.threats["digits-box"] = threat.id
    world.digests["defense", "undefended"] = "weights"
    world.digests["attack", "unbounded"] = attacks["unbounded"].digest
    world.clean("undefended", ALL)
    world.evaluate("undefended", "unbounded", ALL, threat="digits-box")
    leaderboard = find_leaderboard(store, "digits-box")
    assert leaderboard.is_unbounded
    (row,) = load_ranking(store, leaderboard)
    states = {flag.name: flag.state for flag in row.flags}
    assert (row.robust.k, row.rank, states["unbounded-falls-short"]) == (0, None, "clear")
    assert states["zero-gradients"] == "not tested"


def test_the_terminal_report_is_torch_free() -> None:
    code = "import sys; import bench.results.text_report; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
