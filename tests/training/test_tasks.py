"""Training tasks: teachers first, each recipe once, and one worker per training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy import update
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError
from bench.plugin import InnerAttack, Linf, Recipe, TrainingBatch
from bench.store import Lease, Store, leases
from bench.store.tables import TASKS
from bench.training import recipes, state, tasks
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.tasks import build_trained, train_with_teacher
from tests.fixtures.small_defenses import (
    DIGITS,
    EPS,
    INNER,
    RecordingLoss,
    defense,
    linear,
    on_adv,
    one_thread,
    registry,
    small_recipe,
    train,
)
from tests.store.chunks import AWAY

__all__ = ["one_thread"]

BALL = Linf(EPS)


def distance_to_teacher(batch: TrainingBatch) -> Tensor:
    """Squared distance [n] to the teacher's logits."""
    assert batch.teacher is not None
    difference: Tensor = batch.model(batch.x) - batch.teacher(batch.x)
    return difference.square().sum(1)


TEACHER = small_recipe(epochs=3)
STUDENT = small_recipe(loss=distance_to_teacher, teacher="teacher", epochs=1)


def test_a_teacher_is_trained_first_and_frozen(tmp_path: Path) -> None:
    recorded = RecordingLoss(distance_to_teacher)
    known = registry(
        defense("teacher", TEACHER), defense("student", replace(STUDENT, loss=recorded))
    )
    reports: list[state.EpochReport] = []
    train_with_teacher(known, "student", DIGITS, folder=tmp_path, progress=reports.append)
    assert [entry.epochs for entry in reports] == [3, 3, 3, 1]
    seen = recorded.batches[0].teacher
    assert seen is not None
    assert not seen.training
    assert not any(p.requires_grad for p in seen.parameters())
    own = build_trained(known, "teacher", DIGITS, tmp_path).build()
    for mine, theirs in zip(own.parameters(), seen.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_teachers_teacher_is_trained_before_it(tmp_path: Path) -> None:
    known = registry(
        defense("first", TEACHER),
        defense("teacher", replace(STUDENT, teacher="first", epochs=2)),
        defense("student", STUDENT),
    )
    reports: list[state.EpochReport] = []
    found = train_with_teacher(known, "student", DIGITS, folder=tmp_path, progress=reports.append)
    assert [entry.epochs for entry in reports] == [3, 3, 3, 2, 2, 1]
    assert train_with_teacher(known, "student", DIGITS, folder=tmp_path) == found


def test_a_builder_needs_the_teachers_weights_first(tmp_path: Path) -> None:
    known = registry(defense("teacher", TEACHER), defense("student", STUDENT))
    with pytest.raises(NeedsTraining) as caught:
        DefenseBuilder(known, "student", DIGITS, tmp_path).build()
    assert caught.value.name == "teacher"
    build_trained(known, "teacher", DIGITS, tmp_path)
    with pytest.raises(NeedsTraining) as caught:
        DefenseBuilder(known, "student", DIGITS, tmp_path).build()
    assert caught.value.name == "student"


def test_another_teacher_is_another_training() -> None:
    def digest(teacher: Recipe) -> str:
        known = registry(defense("teacher", teacher), defense("student", STUDENT))
        return recipes.recipe_digest(known, "student", DIGITS)

    assert digest(TEACHER) == digest(replace(TEACHER))
    assert digest(TEACHER) != digest(replace(TEACHER, epochs=4))


def test_a_defense_cannot_be_its_own_teacher(tmp_path: Path) -> None:
    known = registry(
        defense("teacher", small_recipe(loss=distance_to_teacher, teacher="student")),
        defense("student", STUDENT),
    )
    with pytest.raises(PluginError, match="student learns from teacher learns from student"):
        build_trained(known, "student", DIGITS, tmp_path)


def test_a_transfer_attack_adds_images_against_the_teacher(tmp_path: Path) -> None:
    recorded = RecordingLoss(on_adv)
    both = small_recipe(
        loss=recorded, inner=INNER, teacher="teacher",
        transfer=InnerAttack("pgd", BALL, {"steps": 5, "rate": 0.5}), epochs=1,
    )  # fmt: skip
    known = registry(defense("teacher", TEACHER), defense("student", both))
    train_with_teacher(known, "student", DIGITS, folder=tmp_path)
    batch = recorded.batches[-1]
    moved, teacher = batch.transferred, batch.teacher
    assert moved is not None
    assert teacher is not None
    assert BALL.contains(moved, batch.x).all()
    assert not torch.equal(moved, batch.adv)
    with torch.no_grad():
        fooled = (teacher(moved).argmax(1) != batch.y).float().mean()
        plain = (teacher(batch.x).argmax(1) != batch.y).float().mean()
    assert fooled > plain + 0.5


class WithDetector(nn.Module):
    """Logits [n, K] and a score that rejects no image."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], -1)], 1)


def test_a_teachers_detector_is_left_out(tmp_path: Path) -> None:
    recorded = RecordingLoss(distance_to_teacher)
    student = small_recipe(
        loss=recorded, teacher="teacher", transfer=InnerAttack("pgd", BALL), epochs=1
    )
    teacher = replace(
        defense("teacher", TEACHER),
        build=lambda loader: WithDetector(loader.trained(linear(loader.shape, loader.classes))),
        rejects=0.05,
    )
    train_with_teacher(
        registry(teacher, defense("student", student)), "student", DIGITS, folder=tmp_path
    )
    batch = recorded.batches[-1]
    assert batch.teacher is not None
    assert batch.teacher(batch.x).shape == (len(batch.x), 10)


def test_a_transfer_attack_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="pgd on its teacher and names no teacher"):
        train(tmp_path, small_recipe(loss=on_adv, transfer=INNER))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def test_a_training_that_another_worker_takes_over_is_left_to_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.0)
    known = registry(defense("base", small_recipe(epochs=2)))
    with pytest.raises(NeedsTraining) as need:
        DefenseBuilder(known, "base", DIGITS).complete()
    others: list[Lease | None] = []

    def lose(_: str) -> None:
        if not others:
            with store._engine.begin() as connection:
                connection.execute(update(TASKS).values(lease_until=0.0))
            others.append(store.lease_task(tasks.training_task(need.value.recipe), AWAY))

    rest = (need.value, DIGITS, torch.device("cpu"), lose)
    assert not tasks.train_once(known, store, "me", *rest)
    assert others[0] is not None
    store.heartbeat(others[0])
