"""The training loop: the same weights on every run and after a kill; inner attacks; optimisers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError, UnavailableError
from bench.data import datasets
from bench.data.image_rows import to_float
from bench.plugin import (
    InnerAttack,
    Linf,
    RotationTranslation,
    TrainingBatch,
    cross_entropy,
)
from bench.training import loop, recipes, state, weights_cache
from tests.fixtures.small_defenses import (
    DIGITS,
    EPS,
    INNER,
    RESUMED,
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


# --- the same weights ------------------------------------------------------------------------


def test_training_twice_gives_the_same_weights(tmp_path: Path) -> None:
    recipe = small_recipe(model=noisy, loss=on_adv, inner=INNER, epochs=1)
    torch.manual_seed(1)
    first = train(tmp_path / "a", recipe)
    torch.manual_seed(2)
    assert train(tmp_path / "b", recipe) == first
    assert train(tmp_path / "c", replace(recipe, seed=1)) != first


@pytest.mark.parametrize(
    "epochs", [(1,), pytest.param((1, 2), marks=pytest.mark.slow)], ids=["once", "twice"]
)
def test_a_killed_training_resumes_to_the_same_weights(
    tmp_path: Path, epochs: tuple[int, ...]
) -> None:
    known = registry(defense("resumed", RESUMED))
    whole = loop.train_weights(known, "resumed", DIGITS, folder=tmp_path / "whole")
    place = tmp_path / "killed"
    for epoch in epochs:
        order = [sys.executable, "-m", "tests.fixtures.small_defenses", str(place), str(epoch)]
        assert subprocess.run(order, check=False, timeout=120).returncode == -9
        assert list((place / "training").glob("*.pt"))
        assert not (place / "weights").exists()
    reports: list[state.EpochReport] = []
    again = loop.train_weights(known, "resumed", DIGITS, folder=place, progress=reports.append)
    assert again == whole
    assert [progress.epoch for progress in reports] == [1, 2, 3]
    assert not list((place / "training").iterdir()), "the checkpoint was not deleted"


def test_a_finished_recipe_is_not_trained_again(tmp_path: Path) -> None:
    recorded = RecordingLoss(on_clean)
    first = train(tmp_path, small_recipe(loss=recorded))
    seen = len(recorded.batches)
    assert train(tmp_path, small_recipe(loss=recorded)) == first
    assert len(recorded.batches) == seen


def test_the_result_is_the_digest_of_the_weights_file(tmp_path: Path) -> None:
    recipe = small_recipe()
    known = registry(defense("student", recipe))
    found = loop.train_weights(known, "student", DIGITS, folder=tmp_path)
    files = weights_cache.WeightsFiles(tmp_path, recipes.recipe_digest(known, "student", DIGITS))
    record = json.loads(files.record.read_text())
    assert record["sha256"] == found
    assert len(record["history"]) == 2
    weights = safetensors.torch.load_file(files.weights)
    assert weights.keys() == linear(SHAPE, 10).state_dict().keys()


def test_the_global_random_state_is_restored_also_after_an_error(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    train(tmp_path, small_recipe(model=noisy, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(PluginError):
        train(tmp_path, small_recipe(loss=lambda batch: batch.x.sum(), model=noisy))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- trained models -------------------------------------------------------------------------


def test_a_linear_model_learns_the_digits(tmp_path: Path) -> None:
    known = registry(defense("student", small_recipe(epochs=10)))
    reports: list[state.EpochReport] = []
    loop.train_weights(known, "student", DIGITS, folder=tmp_path, progress=reports.append)
    assert reports[-1].loss < reports[0].loss / 3
    assert reports[-1].clean > 0.9
    assert reports[-1].robust is None
    files = weights_cache.WeightsFiles(tmp_path, recipes.recipe_digest(known, "student", DIGITS))
    model = linear(SHAPE, 10)
    model.load_state_dict(safetensors.torch.load_file(files.weights))
    examples = datasets.first_examples(DIGITS, 500)
    assert (model(examples.tensor()).argmax(1).numpy() == examples.labels).mean() > 0.9


def test_adversarial_training_is_more_robust_than_clean_training(tmp_path: Path) -> None:
    inner = InnerAttack("pgd", Linf(EPS), {"steps": 5, "rate": 0.5})
    robust: list[float] = []
    for name, loss in (("clean", on_clean), ("adv", on_adv)):
        reports: list[state.EpochReport] = []
        recipe = small_recipe(loss=loss, inner=inner, epochs=8)
        train(tmp_path / name, recipe, progress=reports.append)
        robust.append(sum(progress.robust or 0.0 for progress in reports[-3:]) / 3)
        assert robust[-1] < reports[-1].clean
    assert robust[1] > robust[0] + 0.1


@pytest.mark.row("D00")
def test_sgd_steps_along_the_gradient_of_the_mean_loss(tmp_path: Path) -> None:
    """One batch, SGD: the first step is -rate times the gradient of the mean loss."""
    known = registry(
        defense("student", small_recipe(epochs=1, batch=10_000, optimiser="sgd", rate=0.5))
    )
    loop.train_weights(known, "student", DIGITS, folder=tmp_path)
    files = weights_cache.WeightsFiles(tmp_path, recipes.recipe_digest(known, "student", DIGITS))
    after = safetensors.torch.load_file(files.weights)["1.weight"]
    with state.seeded_by_name("0 model", torch.device("cpu")):
        model = linear(SHAPE, 10)
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    weight = model.get_parameter("1.weight")
    x, y = to_float(torch.tensor(half.images)), torch.tensor(half.labels)
    cross_entropy(model(x), y).mean().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert torch.allclose(after, weight - 0.5 * weight.grad, atol=1e-6)


# --- order and learning rate ----------------------------------------------------------------


def test_each_epoch_has_every_image_once_in_its_own_order(tmp_path: Path) -> None:
    recorded = RecordingLoss(on_clean)
    train(tmp_path, small_recipe(loss=recorded, batch=100))
    labels = [batch.y for batch in recorded.batches]
    assert len(labels) == 2 * 13
    sizes = {len(part) for part in labels}
    assert sizes == {99, 100}
    first, second = torch.cat(labels[:13]), torch.cat(labels[13:])
    assert torch.equal(first.bincount(), second.bincount())
    assert not torch.equal(first, second)


@pytest.mark.row("D00", "M03")
def test_a_regularised_linear_model_reaches_the_optimum_that_another_solver_finds(
    tmp_path: Path,
) -> None:
    """Mean cross-entropy + strength / 2 ||W||^2, the bias free, as scikit-learn solves it."""
    from sklearn.linear_model import LogisticRegression

    strength = 0.01

    def loss(batch: TrainingBatch) -> Tensor:
        penalty = batch.model.get_parameter("1.weight").square().sum()
        return on_clean(batch).mean() + strength / 2 * penalty

    recipe = small_recipe(loss=loss, epochs=150, batch=10_000, rate=0.1, schedule="cosine")
    reports: list[state.EpochReport] = []
    train(tmp_path, recipe, progress=reports.append)
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    x, y = half.images.reshape(len(half.labels), -1) / 255, half.labels
    solver = LogisticRegression(C=1 / (strength * len(y)), tol=1e-6, solver="newton-cholesky")
    solver.fit(x, y)
    p = solver.predict_proba(x)[np.arange(len(y)), y]
    optimum = -np.log(p).mean() + strength / 2 * np.square(solver.coef_).sum()
    assert optimum - 1e-6 <= reports[-1].loss < optimum + 1e-3


@pytest.mark.row("D00")
def test_the_batch_order_is_a_permutation_keyed_by_seed_and_epoch() -> None:
    rows = torch.cat(loop.epoch_batches(small_recipe(), 0, 1000))
    assert torch.equal(rows.sort().values, torch.arange(1000))
    assert torch.equal(rows, torch.cat(loop.epoch_batches(small_recipe(), 0, 1000)))
    for other in (
        loop.epoch_batches(small_recipe(), 1, 1000),
        loop.epoch_batches(small_recipe(seed=1), 0, 1000),
    ):
        assert float((rows == torch.cat(other)).float().mean()) < 0.02


@pytest.mark.row("D18")
@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        ("cyclic", [0, 0.5, 1, 0.5, 0]),
        ("steps", [1, 1, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules_have_their_known_values(schedule: str, shares: list[float]) -> None:
    found = [loop.SCHEDULES[schedule](share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx(shares)


class OneParameter(nn.Module):
    """Logits that equal one parameter, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The parameter, ten times: [n, 10]."""
        return self.value.expand(len(x), 10)


def parameter_path(folder: Path, slope: float, **changes: Any) -> list[float]:
    """The parameter before each of 2 * 11 steps at rate 1 with a constant gradient `slope`."""
    path: list[float] = []

    def loss(batch: TrainingBatch) -> Tensor:
        value = batch.model.get_parameter("value")
        path.append(float(value.detach()))
        return slope * value

    train(
        folder,
        small_recipe(model=lambda shape, classes: OneParameter(), loss=loss, rate=1.0, **changes),
    )
    return path


@pytest.mark.row("D18")
def test_the_rate_follows_the_schedule_over_the_whole_training(tmp_path: Path) -> None:
    """Adam's step is the rate itself where the gradient never changes."""
    moves = np.diff(parameter_path(tmp_path, -1.0, schedule="cyclic"))
    assert moves == pytest.approx([1 - abs((i + 0.5) / 11 - 1) for i in range(21)], abs=1e-4)


def test_sgd_has_momentum_of_nine_tenths(tmp_path: Path) -> None:
    moves = np.diff(parameter_path(tmp_path, -1.0, optimiser="sgd"))
    assert moves[:3] == pytest.approx([1, 1.9, 2.71], abs=1e-5)


def test_weight_decay_shrinks_weights(tmp_path: Path) -> None:
    still = parameter_path(tmp_path / "a", 0.0, optimiser="sgd")
    assert still == [1.0] * 22
    shrunk = parameter_path(tmp_path / "b", 0.0, optimiser="sgd", weight_decay=0.25)
    assert shrunk[1] == pytest.approx(0.75)
    assert parameter_path(tmp_path / "c", 0.0, weight_decay=0.25)[1] < 0.5


def test_the_reported_loss_is_the_mean_over_the_epoch(tmp_path: Path) -> None:
    recorded = RecordingLoss(on_clean)
    reports: list[state.EpochReport] = []
    train(
        tmp_path,
        small_recipe(loss=recorded, rate=1e-9, batch=100, epochs=1),
        progress=reports.append,
    )
    with torch.no_grad():
        rows = torch.cat([on_clean(batch) for batch in recorded.batches])
    assert len(rows) == 1297
    assert reports[0].loss == pytest.approx(float(rows.mean()), abs=1e-5)


# --- the inner attack ------------------------------------------------------------------------


def test_adversarial_images_lie_in_perturbation_set_and_box_without_a_graph(tmp_path: Path) -> None:
    recorded = RecordingLoss()
    train(tmp_path, small_recipe(model=noisy, loss=recorded, inner=INNER, epochs=1))
    for batch in recorded.batches:
        assert not batch.adv.requires_grad
        assert bool(INNER.ball.contains(batch.adv, batch.x).all())
        assert bool((batch.adv != batch.x).flatten(1).any(1).all())


def test_the_inner_attack_of_one_step_is_the_sign_of_the_gradient(tmp_path: Path) -> None:
    """Differentiated at the image, clipped afterwards: saturated pixels keep their gradient."""
    inner = InnerAttack("one-step", Linf(EPS))
    seen: list[bool] = []

    def loss(batch: TrainingBatch) -> Tensor:
        leaf = batch.x.clone().requires_grad_()
        value = cross_entropy(batch.model(leaf), batch.y).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        expected = (batch.x + float(EPS) * gradient.sign()).clamp(0, 1)
        seen.append(torch.allclose(batch.adv, expected, atol=1e-7))
        moved = (batch.adv > batch.x)[batch.x == 0].float().mean()
        assert 0.2 < float(moved) < 0.8, "pixels at 0 or 1 lost their gradient"
        return on_adv(batch)

    train(tmp_path, small_recipe(loss=loss, inner=inner, epochs=1))
    assert all(seen)
    assert len(seen) == 11


def test_without_an_inner_attack_adv_is_x(tmp_path: Path) -> None:
    recorded = RecordingLoss()
    train(tmp_path, small_recipe(loss=recorded, epochs=1))
    assert all(batch.adv is batch.x for batch in recorded.batches)


def test_each_epoch_draws_new_starts(tmp_path: Path) -> None:
    frozen = RecordingLoss(lambda batch: on_clean(batch) * 0)
    train(tmp_path, small_recipe(loss=frozen, inner=INNER, batch=10_000))
    first, second = frozen.batches
    back = [batch.x.flatten(1).sum(1).argsort(stable=True) for batch in (first, second)]
    assert torch.equal(first.x[back[0]].sum(), second.x[back[1]].sum())
    noise = [(batch.adv - batch.x).abs().sum(0) for batch in (first, second)]
    assert not torch.allclose(noise[0], noise[1], rtol=1e-6)


def test_the_inner_attack_changes_no_mode_and_no_statistic(tmp_path: Path) -> None:
    recorded = RecordingLoss()
    train(tmp_path, small_recipe(model=noisy, loss=recorded, inner=INNER, epochs=1))
    model = recorded.batches[-1].model
    assert [part.training for part in model.children()] == [True, True, False, *[True] * 4]
    assert int(model.get_buffer("1.num_batches_tracked")) == len(recorded.batches)
    assert int(model.get_buffer("2.num_batches_tracked")) == 0
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"0.weight", "0.bias", "1.weight", "1.bias", "6.weight", "6.bias"}


def test_an_inner_attack_that_leaves_the_perturbation_set_ends_the_training(tmp_path: Path) -> None:
    inner = InnerAttack("one-step", Linf(EPS), {"projects": False})
    with pytest.raises(PluginError, match="one-step inside the training of student left"):
        train(tmp_path, small_recipe(inner=inner))
    far = InnerAttack("one-step", Linf(EPS), {"projects": False, "length": math.nan})
    with pytest.raises(PluginError, match=r"left the set or \[0, 1\] on \d+ of"):
        train(tmp_path, small_recipe(inner=far))


@pytest.mark.parametrize(("projects", "length"), [(True, 4.0), (False, 0.5), (False, 4.0)])
def test_an_inner_attack_on_parameters_is_checked_at_its_points(
    tmp_path: Path, projects: bool, length: float
) -> None:
    recorded = RecordingLoss()
    options = {"projects": projects, "length": length}
    inner = InnerAttack("one-step", RotationTranslation(degrees=20.0, pixels=1.0), options)
    recipe = small_recipe(loss=recorded, inner=inner, epochs=1)
    if not projects and length > 1:
        with pytest.raises(PluginError, match="one-step inside the training of student left"):
            train(tmp_path, recipe)
        return
    train(tmp_path, recipe)
    for batch in recorded.batches:
        assert batch.adv.shape == batch.x.shape and not torch.equal(batch.adv, batch.x)
        assert batch.adv.min() >= 0 and batch.adv.max() <= 1


# --- errors -------------------------------------------------------------------------


def test_a_data_set_without_training_half_is_an_error(tmp_path: Path) -> None:
    half = replace(DIGITS, load=lambda folder: replace(DIGITS.load(folder), train=None))
    with pytest.raises(UnavailableError, match="only the test half"):
        loop.train_weights(
            registry(defense("student", small_recipe())), "student", half, folder=tmp_path
        )


def test_a_loss_that_is_not_finite_or_has_no_gradient_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"became nan in epoch 1; a lower rate than 0\.01"):
        train(tmp_path, small_recipe(loss=lambda batch: on_clean(batch) * math.nan))
    with pytest.raises(PluginError, match="without a gradient"):
        train(tmp_path, small_recipe(loss=lambda batch: on_clean(batch).detach()))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_lease_can_be_extended_after_each_batch(tmp_path: Path) -> None:
    beats: list[int] = []
    train(tmp_path, small_recipe(), heartbeat=lambda: beats.append(1))
    assert len(beats) == 2 * 11


# --- devices ---------------------------------------------------------------------------------


@pytest.mark.row("D18")
def test_mixed_precision_learns_as_well(tmp_path: Path) -> None:
    reports: list[state.EpochReport] = []
    mixed = train(tmp_path / "a", small_recipe(epochs=4), mixed=True, progress=reports.append)
    assert reports[-1].clean > 0.8
    assert mixed != train(tmp_path / "b", small_recipe(epochs=4))


def test_mixed_precision_trains_against_an_inner_attack(tmp_path: Path) -> None:
    """The attack gets float32 logits; those under autocast are bfloat16."""
    reports: list[state.EpochReport] = []
    recipe = small_recipe(epochs=1, inner=InnerAttack("pgd", Linf(EPS), {"steps": 1}))
    train(tmp_path, recipe, mixed=True, progress=reports.append)
    assert reports[-1].robust is not None and reports[-1].gradients > 0


def test_a_missing_device_is_an_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UnavailableError, match="finds no CUDA device"):
        train(tmp_path, small_recipe(), device="cuda:0")


def test_cuda_learns_as_well(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    reports: list[state.EpochReport] = []
    recipe = small_recipe(model=noisy, loss=on_adv, inner=INNER, epochs=4)
    state = torch.cuda.get_rng_state()
    train(tmp_path, recipe, device="cuda", mixed=True, progress=reports.append)
    assert reports[-1].loss < reports[0].loss
    assert torch.equal(torch.cuda.get_rng_state(), state)
