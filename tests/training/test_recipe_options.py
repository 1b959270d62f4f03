"""Recipe options: Free training, fitted buffers, monitoring attack, augmentation."""

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
from bench.data.image_rows import to_float
from bench.plugin import FreeTraining, InnerAttack, Linf, Recipe, TrainingBatch, cross_entropy
from bench.registry.registry import Registry
from bench.training import loop, recipes, state, weights_cache
from tests.fixtures.small_defenses import (
    DIGITS,
    EPS,
    INNER,
    SHAPE,
    RecordingLoss,
    defense,
    linear,
    noisy,
    on_adv,
    on_clean,
    one_thread,
    registry,
    small_recipe,
    train,
)

__all__ = ["one_thread"]

BALL = Linf(EPS)
FREE = FreeTraining(BALL, replays=3, rate=0.5)
COUNT = 1297  # digits in the training half


def weights(folder: Path, recipe: Recipe, known: Registry | None = None) -> dict[str, Tensor]:
    """The trained weights in `folder`."""
    known = known or registry(defense("student", recipe))
    files = weights_cache.WeightsFiles(folder, recipes.recipe_digest(known, "student", DIGITS))
    return safetensors.torch.load_file(files.weights)


# --- Free training (arXiv:1904.12843) --------------------------------------------------------


@pytest.mark.row("D16", "RP05")
@pytest.mark.parametrize(
    ("inner", "each"),
    [(None, 1), (InnerAttack("one-step", BALL), 2), (INNER, 3),
     (InnerAttack("pgd", BALL, {"steps": 7, "rate": 0.36}), 8),
     (FREE, 3), (FreeTraining(BALL, 8), 8)],
    ids=["standard", "one step", "pgd-2", "pgd-7", "free-3", "free-8"],
)  # fmt: skip
def test_gradient_evaluations_of_an_epoch(
    tmp_path: Path, inner: InnerAttack | FreeTraining | None, each: int
) -> None:
    """k + 1 per image for k attack steps; one per replay in Free training."""
    reports: list[state.EpochReport] = []
    train(tmp_path, small_recipe(loss=on_adv, inner=inner), progress=reports.append)
    assert [entry.gradients for entry in reports] == [each * COUNT] * 2


def test_free_training_with_step_zero_is_standard_training_per_replay(tmp_path: Path) -> None:
    without_step = small_recipe(loss=on_adv, inner=FreeTraining(BALL, replays=1, rate=0.0))
    plain = small_recipe(loss=on_clean)
    assert train(tmp_path / "a", without_step) == train(tmp_path / "b", plain)
    thrice = small_recipe(loss=on_adv, inner=FreeTraining(BALL, replays=3, rate=0.0))
    assert train(tmp_path / "c", thrice) != train(tmp_path / "b", plain)


def test_free_training_carries_its_perturbation_over_replays_and_batches(
    tmp_path: Path,
) -> None:
    recorded = RecordingLoss()
    train(tmp_path, small_recipe(loss=recorded, inner=FREE, epochs=1))
    moves = [(batch.adv.detach() - batch.x) for batch in recorded.batches]
    assert not moves[0].any(), "the perturbation starts at zero"
    assert len(moves) == 11 * FREE.replays
    eps = float(EPS)
    for first, second in zip(recorded.batches[:-1], recorded.batches[1:], strict=True):
        assert first.adv.grad is not None
        before = first.adv.detach()
        stepped = before + FREE.rate * eps * first.adv.grad.sign()
        carried = BALL.project(stepped, first.x) - first.x
        rows = min(len(first.x), len(second.x))
        expected = BALL.project(second.x[:rows] + carried[:rows], second.x[:rows])
        assert torch.equal(second.adv.detach()[:rows], expected)
        assert BALL.contains(second.adv.detach(), second.x).all()


@pytest.mark.row("D16")
def test_free_training_has_gradients_where_pixels_are_at_their_bound(tmp_path: Path) -> None:
    """A clamp inside the graph would give most digits pixels, which are 0, no gradient."""
    recorded = RecordingLoss()
    train(tmp_path, small_recipe(loss=recorded, inner=FREE, epochs=1))
    batch = recorded.batches[4]
    at_bound = (batch.adv.detach() == 0) | (batch.adv.detach() == 1)
    assert at_bound.float().mean() > 0.1
    assert batch.adv.grad is not None
    assert (batch.adv.grad[at_bound] != 0).float().mean() > 0.9


def test_free_training_needs_a_loss_that_depends_on_the_perturbation(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"student does not depend on batch\.adv"):
        train(tmp_path, small_recipe(loss=on_clean, inner=FREE))


def test_free_training_without_replays_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="replays a batch 0 times; at least 1"):
        train(tmp_path, small_recipe(loss=on_adv, inner=FreeTraining(BALL, replays=0)))


# --- fitted buffers --------------------------------------------------------------------------


class Centred(nn.Module):
    """A linear model of the image minus a mean image."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = linear(SHAPE, 10)
        self.register_buffer("mean", torch.zeros(SHAPE))

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, *SHAPE] to logits [n, 10]."""
        logits: Tensor = self.head(x - self.mean)
        return logits


def centre(batch: TrainingBatch) -> None:
    """Fill the buffer with the mean image of a batch [n, C, H, W]."""
    assert not batch.model.training
    batch.model.get_buffer("mean").copy_(batch.x.mean(0))


CENTRED = small_recipe(model=lambda shape, classes: Centred(), fit=centre)


def test_fitted_buffers_are_part_of_the_weights(tmp_path: Path) -> None:
    first = train(tmp_path / "a", CENTRED)
    assert train(tmp_path / "b", CENTRED) == first
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    found = weights(tmp_path / "a", CENTRED)["mean"]
    expected = to_float(torch.tensor(half.images)).mean(0)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_recipe_that_only_fits_needs_no_loss(tmp_path: Path) -> None:
    train(tmp_path, replace(CENTRED, loss=None, epochs=0))
    assert weights(tmp_path, replace(CENTRED, loss=None, epochs=0))["mean"].any()
    with pytest.raises(BenchError, match="asks for 2 epochs and declares no loss"):
        train(tmp_path, small_recipe(loss=None))
    with pytest.raises(BenchError, match="asks for 0 epochs"):
        train(tmp_path, small_recipe(epochs=0))


def test_the_loss_of_a_recipe_that_only_fits_is_an_error() -> None:
    known = registry(defense("student", replace(CENTRED, loss=None, epochs=0)))
    begun = state.initial_state(known, "student", DIGITS, None, torch.device("cpu"), mixed=False)
    with pytest.raises(PluginError, match=r"^student declares no loss\.$"):
        _ = begun.loss


def test_fit_receives_one_batch_of_at_most_2048_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainingBatch] = []
    train(tmp_path / "a", replace(CENTRED, inner=INNER, loss=on_adv, fit=seen.append))
    monkeypatch.setattr(loop, "FIT_IMAGES", 100)
    train(tmp_path / "b", replace(CENTRED, fit=seen.append))
    assert [len(batch.x) for batch in seen] == [COUNT, 100]
    assert BALL.contains(seen[0].adv, seen[0].x).all()
    assert not torch.equal(seen[0].adv, seen[0].x)


# --- monitoring attack --------------------------------------------------------------------------


def reversed_from(epoch: int) -> Callable[[TrainingBatch], Tensor]:
    """Cross-entropy, with the sign reversed from this epoch (of eleven batches) on."""
    calls = 0

    def loss(batch: TrainingBatch) -> Tensor:
        nonlocal calls
        calls += 1
        sign = 1 if calls <= 11 * (epoch - 1) else -3
        return sign * cross_entropy(batch.model(batch.x), batch.y)

    return loss


MONITOR = InnerAttack("pgd", BALL, {"steps": 3, "rate": 0.01})


@pytest.mark.row("D17")
def test_training_stops_where_robustness_collapses_and_keeps_the_best_epoch(
    tmp_path: Path,
) -> None:
    reports: list[state.EpochReport] = []
    recipe = small_recipe(loss=reversed_from(4), monitor=MONITOR, epochs=20)
    train(tmp_path / "a", recipe, progress=reports.append)
    shares = [entry.monitored or 0.0 for entry in reports]
    assert 4 <= len(reports) < 20
    assert shares[-1] < max(shares) - state.OVERFITTING_DROP
    assert all(
        share >= max(shares[:i]) - state.OVERFITTING_DROP
        for i, share in enumerate(shares[:-1])
        if i
    )
    best = max(range(len(shares)), key=lambda i: (shares[i], i)) + 1
    train(tmp_path / "b", small_recipe(epochs=best))
    kept, plain = (
        weights(tmp_path / "a", recipe),
        weights(tmp_path / "b", small_recipe(epochs=best)),
    )
    assert all(torch.equal(kept[key], plain[key]) for key in plain)


def test_without_overfitting_the_monitoring_attack_changes_nothing(tmp_path: Path) -> None:
    reports: list[state.EpochReport] = []
    monitored = train(
        tmp_path / "a", small_recipe(monitor=MONITOR, epochs=3), progress=reports.append
    )
    assert len(reports) == 3
    assert monitored == train(tmp_path / "b", small_recipe(epochs=3))
    assert [entry.gradients for entry in reports] == [COUNT] * 3, (
        "the monitoring attack is not counted"
    )


# --- augmentation ----------------------------------------------------------------------------


def flipped(x: Tensor) -> Tensor:
    """Half of the images mirrored."""
    mirrored = torch.rand(len(x)) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def test_images_are_augmented_before_they_are_attacked(tmp_path: Path) -> None:
    recorded = RecordingLoss()
    recipe = small_recipe(loss=recorded, inner=INNER, augment=flipped, epochs=1)
    first = train(tmp_path / "a", recipe)
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    known = {bytes(image) for image in half.images}
    back = [(batch.x * 255).round().to(torch.uint8).numpy() for batch in recorded.batches]
    share = [bytes(image) in known for images in back for image in images]
    assert 0.4 < sum(share) / len(share) < 0.6
    assert all(BALL.contains(batch.adv, batch.x).all() for batch in recorded.batches)
    torch.manual_seed(5)
    assert train(tmp_path / "b", replace(recipe, loss=on_adv)) == first


@pytest.mark.parametrize("augment", [lambda x: x + 1, lambda x: x[:, :, 1:]], ids=["box", "shape"])
def test_an_augmentation_that_leaves_box_or_shape_is_an_error(
    tmp_path: Path, augment: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(PluginError, match=r"the augmentation of student gave .*was expected"):
        train(tmp_path, small_recipe(augment=augment))


# --- resuming --------------------------------------------------------------------------------

KILLED: dict[str, Recipe] = {
    "free": small_recipe(model=noisy, loss=on_adv, inner=FREE, epochs=3, augment=flipped),
    "monitored": small_recipe(loss=reversed_from(2), monitor=MONITOR, epochs=9),
    "fitted": replace(CENTRED, epochs=3),
    "long": small_recipe(model=noisy, loss=on_adv, inner=INNER, epochs=12, schedule="cyclic"),
}
LONG = KILLED["long"]
"""`monitored` stops early; after a resume it still has the best epoch before the kill."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["free", "fitted"])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path, name: str) -> None:
    whole = train(tmp_path / "whole", KILLED[name])
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
    assert train(tmp_path, KILLED[name]) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_training_killed_at_random_moments_resumes_to_the_same_weights(
    tmp_path: Path, seed: int
) -> None:
    """Killed inside an epoch, while writing, before or after the end."""
    whole = train(tmp_path / "whole", LONG)
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
    assert train(tmp_path, LONG) == whole


def test_the_best_epoch_survives_an_interruption(tmp_path: Path) -> None:
    class InterruptedTrainingError(Exception):
        """Ends a training as an interrupt would."""

    def stop(report: state.EpochReport) -> None:
        if report.epoch == 2:
            raise InterruptedTrainingError

    calls = reversed_from(3)
    recipe = small_recipe(loss=calls, monitor=MONITOR, epochs=9)
    with pytest.raises(InterruptedTrainingError):
        train(tmp_path / "a", recipe, progress=stop)
    resumed = train(tmp_path / "a", recipe)
    assert resumed == train(
        tmp_path / "b", small_recipe(loss=reversed_from(3), monitor=MONITOR, epochs=9)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, name, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def listen(report: state.EpochReport) -> None:
        """Kill this process, as a power failure would."""
        if report.epoch == last:
            os.kill(os.getpid(), signal.SIGKILL)

    print("ready")
    train(place, KILLED[name], progress=listen)
