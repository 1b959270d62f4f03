"""The states of submissions of every kind during a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.core.cells import Cell, Culprit, Failure
from bench.evaluation.submission_states import SubmissionStates
from bench.registry.registry import Registry
from bench.store import PlannedCell, Store
from tests.fixtures.planted_plugins import ATTACK, write_submission

THREAT = """
@hookimpl
def bench_threat_models():
    yield ThreatModel("submitted-threat", "digits", Linf(Fraction(1, 10)))
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry with a submitted attack and a submitted threat model."""
    folder = tmp_path_factory.mktemp("in")
    write_submission(folder, "nudge", ATTACK.format(name="nudge"))
    write_submission(folder, "submitted-threat", THREAT, kind="threat")
    found = Registry.load(folder, allow_unsandboxed=True)
    assert found.problems == []
    return found


def cell(threat: str, attack: str) -> Cell:
    return Cell(threat, "linear", attack, threat, "d" * 64, attack, "e" * 64, 1)


def recorded_states(store: Store) -> dict[str, list[str]]:
    return {entry.name: [step.state for step in entry.history] for entry in store.submissions()}


def test_a_threat_model_whose_cells_finish_is_finished(store: Store, registry: Registry) -> None:
    states = SubmissionStates(registry, store)
    cells = [cell("submitted-threat", "nudge"), cell("submitted-threat", "fgsm"), cell("", "fgsm")]
    for each in cells:
        states.begin(each)
    states.end(cells)
    expected = ["running", "finished"]
    assert recorded_states(store) == {"submitted-threat": expected, "nudge": expected}


@pytest.mark.parametrize(("failed", "expected"), [(1, "finished"), (2, "failed")])
def test_a_threat_model_has_failed_only_where_every_cell_has(
    store: Store, registry: Registry, failed: int, expected: str
) -> None:
    states = SubmissionStates(registry, store)
    cells = [cell("submitted-threat", "fgsm"), cell("submitted-threat", "pgd")]
    store.plan(PlannedCell(each) for each in cells)
    for each in cells:
        states.begin(each)
    for each in cells[:failed]:
        lease = store.lease(each.key, "worker")
        assert lease is not None
        store.fail(lease, Failure(Culprit.PLUGIN, "It broke."))
    states.end(cells)
    assert recorded_states(store) == {"submitted-threat": ["running", expected]}


def test_after_an_interrupt_submissions_are_queued_again(store: Store, registry: Registry) -> None:
    states = SubmissionStates(registry, store)
    states.begin(cell("submitted-threat", "nudge"))
    states.halt()
    expected = ["running", "queued"]
    assert recorded_states(store) == {"submitted-threat": expected, "nudge": expected}
