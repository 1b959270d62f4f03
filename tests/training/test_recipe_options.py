"""What a recipe may ask of the loop beyond loss and inner attack: each option as a law."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError
from bench.data import datasets
from bench.plugin import FreeTraining, InnerAttack, Linf, Recipe, TrainingBatch, cross_entropy
from bench.registry.registry import Registry
from bench.training import loop, recipes, state, weights_cache
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.tasks import build_trained, train_with_teacher
from tests.fixtures.small_defenses import (
    DIGITS,
    EPS,
    INNER,
    SHAPE,
    Witness,
    defense,
    linear,
    noisy,
    on_adv,
    on_clean,
    one_thread,
    registry,
    taught,
)
from tests.fixtures.small_defenses import recipe as small

__all__ = ["one_thread"]

BALL = Linf(EPS)
FREE = FreeTraining(BALL, replays=3, rate=0.5)
COUNT = 1297  # digits in the training half


def weights(folder: Path, made_by: Recipe, known: Registry | None = None) -> dict[str, Tensor]:
    """The weights that lie in `folder`."""
    known = known or registry(defense("pupil", made_by))
    stock = weights_cache.WeightsFiles(folder, recipes.recipe_digest(known, "pupil", DIGITS))
    return safetensors.torch.load_file(stock.weights)


# --- Free training (arXiv:1904.12843) --------------------------------------------------------


@pytest.mark.row("D16", "RP05")
@pytest.mark.parametrize(
    ("inner", "each"),
    [(None, 1), (InnerAttack("one-step", BALL), 2), (INNER, 3),
     (InnerAttack("pgd", BALL, {"steps": 7, "rate": 0.36}), 8),
     (FREE, 3), (FreeTraining(BALL, 8), 8)],
    ids=["standard", "one step", "pgd-2", "pgd-7", "free-3", "free-8"],
)  # fmt: skip
def test_what_an_epoch_costs_in_gradients(
    tmp_path: Path, inner: InnerAttack | FreeTraining | None, each: int
) -> None:
    """k + 1 an image for k attack steps; Free training pays one for each replay."""
    heard: list[state.EpochReport] = []
    taught(tmp_path, small(loss=on_adv, inner=inner), progress=heard.append)
    assert [entry.gradients for entry in heard] == [each * COUNT] * 2


def test_free_training_without_a_step_is_standard_training_again_and_again(tmp_path: Path) -> None:
    still = small(loss=on_adv, inner=FreeTraining(BALL, replays=1, rate=0.0))
    plain = small(loss=on_clean)
    assert taught(tmp_path / "a", still) == taught(tmp_path / "b", plain)
    thrice = small(loss=on_adv, inner=FreeTraining(BALL, replays=3, rate=0.0))
    assert taught(tmp_path / "c", thrice) != taught(tmp_path / "b", plain)


def test_free_training_carries_its_perturbation_from_replay_to_replay_and_batch_to_batch(
    tmp_path: Path,
) -> None:
    witness = Witness()
    taught(tmp_path, small(loss=witness, inner=FREE, epochs=1))
    moves = [(lesson.adv.detach() - lesson.x) for lesson in witness.lessons]
    assert not moves[0].any(), "it starts at zero"
    assert len(moves) == 11 * FREE.replays
    eps = float(EPS)
    for first, second in zip(witness.lessons[:-1], witness.lessons[1:], strict=True):
        assert first.adv.grad is not None
        before = first.adv.detach()
        climbed = before + FREE.rate * eps * first.adv.grad.sign()
        carried = BALL.project(climbed, first.x) - first.x
        rows = min(len(first.x), len(second.x))
        expected = BALL.project(second.x[:rows] + carried[:rows], second.x[:rows])
        assert torch.equal(second.adv.detach()[:rows], expected)
        assert BALL.contains(second.adv.detach(), second.x).all()


@pytest.mark.row("D16")
def test_free_training_sees_a_slope_where_pixels_are_at_their_bound(tmp_path: Path) -> None:
    """The trap of the clamp inside the graph: most digits pixels are 0, and have no slope there."""
    witness = Witness()
    taught(tmp_path, small(loss=witness, inner=FREE, epochs=1))
    lesson = witness.lessons[4]
    at_bound = (lesson.adv.detach() == 0) | (lesson.adv.detach() == 1)
    assert at_bound.float().mean() > 0.1
    assert lesson.adv.grad is not None
    assert (lesson.adv.grad[at_bound] != 0).float().mean() > 0.9


def test_free_training_needs_a_loss_that_sees_the_perturbation(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"pupil does not depend on batch\.adv"):
        taught(tmp_path, small(loss=on_clean, inner=FREE))


def test_free_training_replays_at_least_once(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="replays a batch 0 times; at least 1"):
        taught(tmp_path, small(loss=on_adv, inner=FreeTraining(BALL, replays=0)))


# --- the teacher -----------------------------------------------------------------------------


def alike(lesson: TrainingBatch) -> Tensor:
    """Squared distance to the teacher's answers."""
    assert lesson.teacher is not None
    apart: Tensor = lesson.model(lesson.x) - lesson.teacher(lesson.x)
    return apart.square().sum(1)


MASTER = small(epochs=3)
PUPIL = small(loss=alike, teacher="master", epochs=1)


def test_a_teacher_is_trained_first_and_stands_before_the_class_frozen(tmp_path: Path) -> None:
    witness = Witness(alike)
    known = registry(defense("master", MASTER), defense("pupil", replace(PUPIL, loss=witness)))
    heard: list[state.EpochReport] = []
    train_with_teacher(known, "pupil", DIGITS, folder=tmp_path, progress=heard.append)
    assert [entry.epochs for entry in heard] == [3, 3, 3, 1]
    seen = witness.lessons[0].teacher
    assert seen is not None
    assert not seen.training
    assert not any(p.requires_grad for p in seen.parameters())
    own = build_trained(known, "master", DIGITS, tmp_path).build()
    for mine, theirs in zip(own.parameters(), seen.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_teachers_teacher_is_trained_before_it(tmp_path: Path) -> None:
    known = registry(
        defense("first", MASTER),
        defense("master", replace(PUPIL, teacher="first", epochs=2)),
        defense("pupil", PUPIL),
    )
    heard: list[state.EpochReport] = []
    found = train_with_teacher(known, "pupil", DIGITS, folder=tmp_path, progress=heard.append)
    assert [entry.epochs for entry in heard] == [3, 3, 3, 2, 2, 1]
    assert train_with_teacher(known, "pupil", DIGITS, folder=tmp_path) == found


def test_a_shelf_asks_for_the_teacher_first(tmp_path: Path) -> None:
    known = registry(defense("master", MASTER), defense("pupil", PUPIL))
    with pytest.raises(NeedsTraining) as caught:
        DefenseBuilder(known, "pupil", DIGITS, tmp_path).build()
    assert caught.value.name == "master"
    build_trained(known, "master", DIGITS, tmp_path)
    with pytest.raises(NeedsTraining) as caught:
        DefenseBuilder(known, "pupil", DIGITS, tmp_path).build()
    assert caught.value.name == "pupil"


def test_another_teacher_is_another_training() -> None:
    def digest(master: Recipe) -> str:
        known = registry(defense("master", master), defense("pupil", PUPIL))
        return recipes.recipe_digest(known, "pupil", DIGITS)

    assert digest(MASTER) == digest(replace(MASTER))
    assert digest(MASTER) != digest(replace(MASTER, epochs=4))


def test_nobody_learns_from_oneself(tmp_path: Path) -> None:
    known = registry(defense("master", small(loss=alike, teacher="pupil")), defense("pupil", PUPIL))
    with pytest.raises(PluginError, match="pupil learns from master learns from pupil"):
        build_trained(known, "pupil", DIGITS, tmp_path)


def test_images_against_the_teacher_come_beside_those_against_the_pupil(tmp_path: Path) -> None:
    witness = Witness(on_adv)
    both = small(
        loss=witness, inner=INNER, teacher="master",
        transfer=InnerAttack("pgd", BALL, {"steps": 5, "rate": 0.5}), epochs=1,
    )  # fmt: skip
    known = registry(defense("master", MASTER), defense("pupil", both))
    train_with_teacher(known, "pupil", DIGITS, folder=tmp_path)
    lesson = witness.lessons[-1]
    moved, master = lesson.transferred, lesson.teacher
    assert moved is not None
    assert master is not None
    assert BALL.contains(moved, lesson.x).all()
    assert not torch.equal(moved, lesson.adv)
    with torch.no_grad():
        fooled = (master(moved).argmax(1) != lesson.y).float().mean()
        plain = (master(lesson.x).argmax(1) != lesson.y).float().mean()
    assert fooled > plain + 0.5


class Guarded(nn.Module):
    """Logits, and a score that rejects nothing."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], -1)], 1)


def test_of_a_teacher_with_a_detector_the_classifier_teaches(tmp_path: Path) -> None:
    witness = Witness(alike)
    pupil = small(loss=witness, teacher="master", transfer=InnerAttack("pgd", BALL), epochs=1)
    master = replace(
        defense("master", MASTER),
        build=lambda loader: Guarded(loader.trained(linear(loader.shape, loader.classes))),
        rejects=0.05,
    )
    train_with_teacher(registry(master, defense("pupil", pupil)), "pupil", DIGITS, folder=tmp_path)
    lesson = witness.lessons[-1]
    assert lesson.teacher is not None
    assert lesson.teacher(lesson.x).shape == (len(lesson.x), 10)


def test_an_attack_on_the_teacher_needs_one(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="declares the transfer attack pgd on its teacher and names no teacher"):
        taught(tmp_path, small(loss=on_adv, transfer=INNER))


# --- what is fitted --------------------------------------------------------------------------


class Centred(nn.Module):
    """A linear model behind the subtraction of a mean image."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = linear(SHAPE, 10)
        self.register_buffer("mean", torch.zeros(SHAPE))

    def forward(self, x: Tensor) -> Tensor:
        """[n, *SHAPE] to [n, 10]."""
        logits: Tensor = self.head(x - self.mean)
        return logits


def centre(lesson: TrainingBatch) -> None:
    """The mean image of the lesson."""
    assert not lesson.model.training
    lesson.model.get_buffer("mean").copy_(lesson.x.mean(0))


CENTRED = small(model=lambda shape, classes: Centred(), fit=centre)


def test_what_is_fitted_is_part_of_the_weights(tmp_path: Path) -> None:
    first = taught(tmp_path / "a", CENTRED)
    assert taught(tmp_path / "b", CENTRED) == first
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    found = weights(tmp_path / "a", CENTRED)["mean"]
    expected = datasets.to_float(torch.tensor(half.images)).mean(0)
    assert torch.allclose(found, expected, atol=1e-6)


def test_what_is_fitted_alone_needs_no_loss(tmp_path: Path) -> None:
    taught(tmp_path, replace(CENTRED, loss=None, epochs=0))
    assert weights(tmp_path, replace(CENTRED, loss=None, epochs=0))["mean"].any()
    with pytest.raises(BenchError, match="asks for 2 epochs and declares no loss"):
        taught(tmp_path, small(loss=None))
    with pytest.raises(BenchError, match="asks for 0 epochs"):
        taught(tmp_path, small(epochs=0))


def test_what_is_only_fitted_has_no_loss_to_ask_for() -> None:
    known = registry(defense("pupil", replace(CENTRED, loss=None, epochs=0)))
    begun = state.initial_state(known, "pupil", DIGITS, None, torch.device("cpu"), mixed=False)
    with pytest.raises(PluginError, match=r"^pupil declares no loss\.$"):
        _ = begun.loss


def test_one_lesson_of_at_most_2048_images_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainingBatch] = []
    taught(tmp_path / "a", replace(CENTRED, inner=INNER, loss=on_adv, fit=seen.append))
    monkeypatch.setattr(loop, "FIT_IMAGES", 100)
    taught(tmp_path / "b", replace(CENTRED, fit=seen.append))
    assert [len(lesson.x) for lesson in seen] == [COUNT, 100]
    assert BALL.contains(seen[0].adv, seen[0].x).all()
    assert not torch.equal(seen[0].adv, seen[0].x)


# --- the early stop --------------------------------------------------------------------------


def spoiled(epoch: int) -> Callable[[TrainingBatch], Tensor]:
    """Cross-entropy, until from this epoch (of eleven batches) on it climbs instead."""
    calls = 0

    def loss(lesson: TrainingBatch) -> Tensor:
        nonlocal calls
        calls += 1
        sign = 1 if calls <= 11 * (epoch - 1) else -3
        return sign * cross_entropy(lesson.model(lesson.x), lesson.y)

    return loss


MONITOR = InnerAttack("pgd", BALL, {"steps": 3, "rate": 0.01})


@pytest.mark.row("D17")
def test_training_stops_where_robustness_collapses_and_keeps_the_best_epoch(
    tmp_path: Path,
) -> None:
    heard: list[state.EpochReport] = []
    made_by = small(loss=spoiled(4), monitor=MONITOR, epochs=20)
    taught(tmp_path / "a", made_by, progress=heard.append)
    shares = [entry.monitored or 0.0 for entry in heard]
    assert 4 <= len(heard) < 20
    assert shares[-1] < max(shares) - state.OVERFITTING_DROP
    assert all(
        share >= max(shares[:i]) - state.OVERFITTING_DROP
        for i, share in enumerate(shares[:-1])
        if i
    )
    best = max(range(len(shares)), key=lambda i: (shares[i], i)) + 1
    taught(tmp_path / "b", small(epochs=best))
    kept, plain = weights(tmp_path / "a", made_by), weights(tmp_path / "b", small(epochs=best))
    assert all(torch.equal(kept[key], plain[key]) for key in plain)


def test_a_training_that_holds_is_not_stopped_nor_changed_by_the_watch(tmp_path: Path) -> None:
    heard: list[state.EpochReport] = []
    watched = taught(tmp_path / "a", small(monitor=MONITOR, epochs=3), progress=heard.append)
    assert len(heard) == 3
    assert watched == taught(tmp_path / "b", small(epochs=3))
    assert [entry.gradients for entry in heard] == [COUNT] * 3, "looking on is not charged"


# --- augmentation ----------------------------------------------------------------------------


def flipped(x: Tensor) -> Tensor:
    """Half of the images mirrored."""
    mirrored = torch.rand(len(x)) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def test_images_are_varied_before_they_are_attacked(tmp_path: Path) -> None:
    witness = Witness()
    made_by = small(loss=witness, inner=INNER, augment=flipped, epochs=1)
    first = taught(tmp_path / "a", made_by)
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    known = {bytes(image) for image in half.images}
    back = [(lesson.x * 255).round().to(torch.uint8).numpy() for lesson in witness.lessons]
    share = [bytes(image) in known for images in back for image in images]
    assert 0.4 < sum(share) / len(share) < 0.6
    assert all(BALL.contains(lesson.adv, lesson.x).all() for lesson in witness.lessons)
    torch.manual_seed(5)
    assert taught(tmp_path / "b", replace(made_by, loss=on_adv)) == first


@pytest.mark.parametrize("augment", [lambda x: x + 1, lambda x: x[:, :, 1:]], ids=["box", "shape"])
def test_augmentation_stays_in_the_box_and_in_shape(
    tmp_path: Path, augment: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(PluginError, match=r"the augmentation of pupil gave .*was expected"):
        taught(tmp_path, small(augment=augment))


# --- resuming --------------------------------------------------------------------------------

KILLED: dict[str, Recipe] = {
    "free": small(model=noisy, loss=on_adv, inner=FREE, epochs=3, augment=flipped),
    "watched": small(loss=spoiled(2), monitor=MONITOR, epochs=9),
    "fitted": replace(CENTRED, epochs=3),
    "long": small(model=noisy, loss=on_adv, inner=INNER, epochs=12, schedule="cyclic"),
}
LONG = KILLED["long"]
"""`watched` stops early; a resumed one has to know the best epoch of before the kill."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["free", "fitted"])
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, name: str) -> None:
    whole = taught(tmp_path / "whole", KILLED[name])
    for epoch in (1, 2):
        order = [
            sys.executable,
            "-m",
            "tests.training.test_recipe_options",
            str(tmp_path),
            name,
            str(epoch),
        ]
        assert subprocess.run(order, check=False, timeout=120).returncode == -9
    assert taught(tmp_path, KILLED[name]) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_training_killed_at_random_moments_goes_on_to_the_same_weights(
    tmp_path: Path, seed: int
) -> None:
    """Wherever it dies: inside an epoch, while it writes, before or after it was done."""
    whole = taught(tmp_path / "whole", LONG)
    draw = random.Random(seed)
    order = [
        sys.executable,
        "-u",
        "-m",
        "tests.training.test_recipe_options",
        str(tmp_path),
        "long",
        "0",
    ]
    for _ in range(4):
        with subprocess.Popen(order, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(draw.uniform(0.0, 0.4))
            child.kill()
    assert taught(tmp_path, LONG) == whole


def test_the_best_epoch_survives_an_interruption(tmp_path: Path) -> None:
    class InterruptedTrainingError(Exception):
        """Somebody pulled the plug."""

    def stop(progress: state.EpochReport) -> None:
        if progress.epoch == 2:
            raise InterruptedTrainingError

    calls = spoiled(3)
    made_by = small(loss=calls, monitor=MONITOR, epochs=9)
    with pytest.raises(InterruptedTrainingError):
        taught(tmp_path / "a", made_by, progress=stop)
    broken = taught(tmp_path / "a", made_by)
    assert broken == taught(tmp_path / "b", small(loss=spoiled(3), monitor=MONITOR, epochs=9))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, name, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def listen(progress: state.EpochReport) -> None:
        """Dies as power loss would."""
        if progress.epoch == last:
            os.kill(os.getpid(), signal.SIGKILL)

    print("ready")
    taught(place, KILLED[name], progress=listen)
