"""The states of submissions in play, whatever their kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.core.cells import Cell, Culprit, Failure
from bench.evaluation.submission_states import SubmissionStates
from bench.registry.registry import Registry
from bench.store import PlannedCell, Store
from tests.fixtures.planted_plugins import ATTACK, entry

THREAT = """
@hookimpl
def bench_threat_models():
    yield ThreatModel("board", "digits", Linf(Fraction(1, 10)))
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """With an attack and a threat model that were submitted."""
    folder = tmp_path_factory.mktemp("in")
    entry(folder, "nudge", ATTACK.format(name="nudge"))
    entry(folder, "board", THREAT, kind="threat")
    found = Registry.load(folder, allow_unsandboxed=True)
    assert found.problems == []
    return found


def cell(threat: str, attack: str) -> Cell:
    return Cell(threat, "linear", attack, threat, "d" * 64, attack, "e" * 64, 1)


def told(store: Store) -> dict[str, list[str]]:
    return {entry.name: [step.state for step in entry.history] for entry in store.submissions()}


def test_a_threat_model_that_is_played_runs_and_finishes(store: Store, registry: Registry) -> None:
    entrants = SubmissionStates(registry, store)
    cells = [cell("board", "nudge"), cell("board", "fgsm"), cell("", "fgsm")]
    for each in cells:
        entrants.begin(each)
    entrants.end(cells)
    states = ["running", "finished"]
    assert told(store) == {"board": states, "nudge": states}


@pytest.mark.parametrize(("failed", "states"), [(1, "finished"), (2, "failed")])
def test_a_threat_model_fails_only_where_every_cell_does(
    store: Store, registry: Registry, failed: int, states: str
) -> None:
    entrants = SubmissionStates(registry, store)
    cells = [cell("board", "fgsm"), cell("board", "pgd")]
    store.plan(PlannedCell(each) for each in cells)
    for each in cells:
        entrants.begin(each)
    for each in cells[:failed]:
        lease = store.lease(each.key, "somebody")
        assert lease is not None
        store.fail(lease, Failure(Culprit.PLUGIN, "It broke."))
    entrants.end(cells)
    assert told(store) == {"board": ["running", states]}


def test_what_an_interrupt_stops_is_queued_again(store: Store, registry: Registry) -> None:
    entrants = SubmissionStates(registry, store)
    entrants.begin(cell("board", "nudge"))
    entrants.halt()
    states = ["running", "queued"]
    assert told(store) == {"board": states, "nudge": states}
