"""The training loop: same digest again and after a kill, honest inner attacks, plain refusals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.data import datasets
from bench.plugin import (
    FreeTraining,
    Images,
    InnerAttack,
    Linf,
    Recipe,
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


# --- the same weights ------------------------------------------------------------------------


def test_training_twice_gives_the_same_weights(tmp_path: Path) -> None:
    made_by = small(model=noisy, loss=on_adv, inner=INNER, epochs=1)
    torch.manual_seed(1)
    first = taught(tmp_path / "a", made_by)
    torch.manual_seed(2)
    assert taught(tmp_path / "b", made_by) == first
    assert taught(tmp_path / "c", replace(made_by, seed=1)) != first


@pytest.mark.parametrize(
    "epochs", [(1,), pytest.param((1, 2), marks=pytest.mark.slow)], ids=["once", "twice"]
)
def test_a_killed_training_goes_on_to_the_same_weights(
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
    heard: list[state.EpochReport] = []
    again = loop.train_weights(known, "resumed", DIGITS, folder=place, progress=heard.append)
    assert again == whole
    assert [progress.epoch for progress in heard] == [1, 2, 3]
    assert not list((place / "training").iterdir()), "the checkpoint outlived its training"


def test_a_finished_recipe_is_not_trained_again(tmp_path: Path) -> None:
    witness = Witness(on_clean)
    first = taught(tmp_path, small(loss=witness))
    seen = len(witness.lessons)
    assert taught(tmp_path, small(loss=witness)) == first
    assert len(witness.lessons) == seen


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    made_by = small()
    known = registry(defense("pupil", made_by))
    found = loop.train_weights(known, "pupil", DIGITS, folder=tmp_path)
    stock = weights_cache.WeightsFiles(tmp_path, recipes.recipe_digest(known, "pupil", DIGITS))
    record = json.loads(stock.record.read_text())
    assert record["sha256"] == found
    assert len(record["history"]) == 2
    weights = safetensors.torch.load_file(stock.weights)
    assert weights.keys() == linear(SHAPE, 10).state_dict().keys()


def test_global_randomness_is_as_before_also_after_an_error(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    taught(tmp_path, small(model=noisy, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(PluginError):
        taught(tmp_path, small(loss=lambda lesson: lesson.x.sum(), model=noisy))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- what is learned -------------------------------------------------------------------------


def test_a_linear_model_learns_the_digits(tmp_path: Path) -> None:
    known = registry(defense("pupil", small(epochs=10)))
    heard: list[state.EpochReport] = []
    loop.train_weights(known, "pupil", DIGITS, folder=tmp_path, progress=heard.append)
    assert heard[-1].loss < heard[0].loss / 3
    assert heard[-1].clean > 0.9
    assert heard[-1].robust is None
    stock = weights_cache.WeightsFiles(tmp_path, recipes.recipe_digest(known, "pupil", DIGITS))
    model = linear(SHAPE, 10)
    model.load_state_dict(safetensors.torch.load_file(stock.weights))
    examples = datasets.first_examples(DIGITS, 500)
    assert (model(examples.tensor()).argmax(1).numpy() == examples.labels).mean() > 0.9


def test_adversarial_training_holds_where_clean_training_falls(tmp_path: Path) -> None:
    inner = InnerAttack("pgd", Linf(EPS), {"steps": 5, "rate": 0.5})
    robust: list[float] = []
    for name, loss in (("clean", on_clean), ("adv", on_adv)):
        heard: list[state.EpochReport] = []
        made_by = small(loss=loss, inner=inner, epochs=8)
        taught(tmp_path / name, made_by, progress=heard.append)
        robust.append(sum(progress.robust or 0.0 for progress in heard[-3:]) / 3)
        assert robust[-1] < heard[-1].clean
    assert robust[1] > robust[0] + 0.1


@pytest.mark.row("D00")
def test_plain_gradient_descent_is_the_rule_of_the_book(tmp_path: Path) -> None:
    """One batch, SGD: the first step is -rate times the gradient of the mean loss."""
    known = registry(defense("pupil", small(epochs=1, batch=10_000, optimiser="sgd", rate=0.5)))
    loop.train_weights(known, "pupil", DIGITS, folder=tmp_path)
    stock = weights_cache.WeightsFiles(tmp_path, recipes.recipe_digest(known, "pupil", DIGITS))
    after = safetensors.torch.load_file(stock.weights)["1.weight"]
    with state.seeded_by_name("0 model", torch.device("cpu")):
        model = linear(SHAPE, 10)
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    weight = model.get_parameter("1.weight")
    x, y = datasets.to_float(torch.tensor(half.images)), torch.tensor(half.labels)
    cross_entropy(model(x), y).mean().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert torch.allclose(after, weight - 0.5 * weight.grad, atol=1e-6)


# --- order and rate --------------------------------------------------------------------------


def test_each_epoch_shows_every_image_once_in_its_own_order(tmp_path: Path) -> None:
    witness = Witness(on_clean)
    taught(tmp_path, small(loss=witness, batch=100))
    labels = [lesson.y for lesson in witness.lessons]
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

    def loss(lesson: TrainingBatch) -> Tensor:
        penalty = lesson.model.get_parameter("1.weight").square().sum()
        return on_clean(lesson).mean() + strength / 2 * penalty

    made_by = small(loss=loss, epochs=150, batch=10_000, rate=0.1, schedule="cosine")
    heard: list[state.EpochReport] = []
    taught(tmp_path, made_by, progress=heard.append)
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    x, y = half.images.reshape(len(half.labels), -1) / 255, half.labels
    solver = LogisticRegression(C=1 / (strength * len(y)), tol=1e-6, solver="newton-cholesky")
    solver.fit(x, y)
    p = solver.predict_proba(x)[np.arange(len(y)), y]
    optimum = -np.log(p).mean() + strength / 2 * np.square(solver.coef_).sum()
    assert optimum - 1e-6 <= heard[-1].loss < optimum + 1e-3


@pytest.mark.row("D00")
def test_the_order_is_a_permutation_keyed_by_seed_and_epoch() -> None:
    rows = torch.cat(loop.epoch_batches(small(), 0, 1000))
    assert torch.equal(rows.sort().values, torch.arange(1000))
    assert torch.equal(rows, torch.cat(loop.epoch_batches(small(), 0, 1000)))
    for other in (loop.epoch_batches(small(), 1, 1000), loop.epoch_batches(small(seed=1), 0, 1000)):
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
def test_schedules_pass_through_their_corners(schedule: str, shares: list[float]) -> None:
    found = [loop.SCHEDULES[schedule](share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx(shares)


class Walk(nn.Module):
    """A place, and logits that do not depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The place, ten times."""
        return self.place.expand(len(x), 10)


def walked(folder: Path, slope: float, **changes: Any) -> list[float]:
    """The places of a walk down a constant slope, two epochs of eleven steps at rate 1."""
    places: list[float] = []

    def loss(lesson: TrainingBatch) -> Tensor:
        place = lesson.model.get_parameter("place")
        places.append(float(place.detach()))
        return slope * place

    taught(folder, small(model=lambda shape, classes: Walk(), loss=loss, rate=1.0, **changes))
    return places


@pytest.mark.row("D18")
def test_the_rate_follows_the_schedule_over_the_whole_training(tmp_path: Path) -> None:
    """Adam's step is the rate itself where the gradient never changes."""
    moves = np.diff(walked(tmp_path, -1.0, schedule="cyclic"))
    assert moves == pytest.approx([1 - abs((i + 0.5) / 11 - 1) for i in range(21)], abs=1e-4)


def test_sgd_has_momentum_of_nine_tenths(tmp_path: Path) -> None:
    moves = np.diff(walked(tmp_path, -1.0, optimiser="sgd"))
    assert moves[:3] == pytest.approx([1, 1.9, 2.71], abs=1e-5)


def test_weight_decay_pulls_towards_zero(tmp_path: Path) -> None:
    still = walked(tmp_path / "a", 0.0, optimiser="sgd")
    assert still == [1.0] * 22
    pulled = walked(tmp_path / "b", 0.0, optimiser="sgd", weight_decay=0.25)
    assert pulled[1] == pytest.approx(0.75)
    assert walked(tmp_path / "c", 0.0, weight_decay=0.25)[1] < 0.5


def test_the_loss_that_is_told_is_the_mean_over_the_epoch(tmp_path: Path) -> None:
    witness = Witness(on_clean)
    heard: list[state.EpochReport] = []
    taught(tmp_path, small(loss=witness, rate=1e-9, batch=100, epochs=1), progress=heard.append)
    with torch.no_grad():
        rows = torch.cat([on_clean(lesson) for lesson in witness.lessons])
    assert len(rows) == 1297
    assert heard[0].loss == pytest.approx(float(rows.mean()), abs=1e-5)


# --- the inner attack ------------------------------------------------------------------------


def test_lessons_carry_images_of_ball_and_box_without_a_graph(tmp_path: Path) -> None:
    witness = Witness()
    taught(tmp_path, small(model=noisy, loss=witness, inner=INNER, epochs=1))
    for lesson in witness.lessons:
        assert not lesson.adv.requires_grad
        assert bool(INNER.ball.contains(lesson.adv, lesson.x).all())
        assert bool((lesson.adv != lesson.x).flatten(1).any(1).all())


def test_the_inner_attack_of_one_step_is_the_sign_of_the_gradient(tmp_path: Path) -> None:
    """Differentiated at the image, clipped afterwards: saturated pixels keep their gradient."""
    inner = InnerAttack("one-step", Linf(EPS))
    seen: list[bool] = []

    def loss(lesson: TrainingBatch) -> Tensor:
        leaf = lesson.x.clone().requires_grad_()
        value = cross_entropy(lesson.model(leaf), lesson.y).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        expected = (lesson.x + float(EPS) * gradient.sign()).clamp(0, 1)
        seen.append(torch.allclose(lesson.adv, expected, atol=1e-7))
        moved = (lesson.adv > lesson.x)[lesson.x == 0].float().mean()
        assert 0.2 < float(moved) < 0.8, "pixels at the edge of the box lost their gradient"
        return on_adv(lesson)

    taught(tmp_path, small(loss=loss, inner=inner, epochs=1))
    assert all(seen)
    assert len(seen) == 11


def test_without_an_inner_attack_adv_is_x(tmp_path: Path) -> None:
    witness = Witness()
    taught(tmp_path, small(loss=witness, epochs=1))
    assert all(lesson.adv is lesson.x for lesson in witness.lessons)


def test_each_epoch_draws_new_starts(tmp_path: Path) -> None:
    frozen = Witness(lambda lesson: on_clean(lesson) * 0)
    taught(tmp_path, small(loss=frozen, inner=INNER, batch=10_000))
    first, second = frozen.lessons
    back = [lesson.x.flatten(1).sum(1).argsort(stable=True) for lesson in (first, second)]
    assert torch.equal(first.x[back[0]].sum(), second.x[back[1]].sum())
    noise = [(lesson.adv - lesson.x).abs().sum(0) for lesson in (first, second)]
    assert not torch.allclose(noise[0], noise[1], rtol=1e-6)


def test_crafting_leaves_modes_and_statistics_alone(tmp_path: Path) -> None:
    witness = Witness()
    taught(tmp_path, small(model=noisy, loss=witness, inner=INNER, epochs=1))
    model = witness.lessons[-1].model
    assert [part.training for part in model.children()] == [True, True, False, *[True] * 4]
    assert int(model.get_buffer("1.num_batches_tracked")) == len(witness.lessons)
    assert int(model.get_buffer("2.num_batches_tracked")) == 0
    asked = {name for name, p in model.named_parameters() if p.requires_grad}
    assert asked == {"0.weight", "0.bias", "1.weight", "1.bias", "6.weight", "6.bias"}


def test_an_inner_attack_that_leaves_the_ball_ends_the_training(tmp_path: Path) -> None:
    inner = InnerAttack("one-step", Linf(EPS), {"projects": False})
    with pytest.raises(PluginError, match="one-step inside the training of pupil left ball or box"):
        taught(tmp_path, small(inner=inner))
    far = InnerAttack("one-step", Linf(EPS), {"projects": False, "length": math.nan})
    with pytest.raises(PluginError, match=r"left ball or box on \d+ of"):
        taught(tmp_path, small(inner=far))


# --- the digest of a recipe ------------------------------------------------------------------


def named(made_by: Recipe, **options: Any) -> str:
    """The recipe digest of a defense called pupil."""
    dataset = options.pop("dataset", DIGITS)
    known = registry(defense("pupil", made_by, **options), sources={"pupil": "source"})
    return recipes.recipe_digest(known, "pupil", dataset)


CHANGES: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 3},
    "batch": {"batch": 127},
    "rate": {"rate": 2e-2},
    "weight decay": {"weight_decay": 1e-4},
    "optimiser": {"optimiser": "sgd"},
    "schedule": {"schedule": "cosine"},
    "seed": {"seed": 1},
    "options": {"options": {"alpha": 0.5}},
    "no inner": {"inner": None},
    "another attack": {"inner": InnerAttack("one-step", INNER.ball)},
    "another step": {"inner": replace(INNER, options={"steps": 2, "rate": 0.5})},
    "another radius": {"inner": replace(INNER, ball=Linf(EPS / 2))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_number_of_a_recipe_is_in_its_digest(change: str) -> None:
    base = small(inner=INNER)
    assert named(base) == named(small(inner=INNER))
    assert named(replace(base, **CHANGES[change])) != named(base)


@dataclass(frozen=True)
class Patch(Linf):
    """A cube over some rows of pixels."""

    side: int = 1


@pytest.mark.parametrize(
    "inner",
    [InnerAttack("one-step", Patch(EPS)), FreeTraining(Patch(EPS), 2)],
    ids=["inner", "free"],
)
def test_every_parameter_of_the_set_trained_against_is_in_the_digest(
    inner: InnerAttack | FreeTraining,
) -> None:
    larger = replace(inner, ball=Patch(EPS, side=5))
    assert named(small(inner=inner)) == named(small(inner=replace(inner)))
    assert named(small(inner=inner)) != named(small(inner=larger))


def test_source_data_and_name_are_in_the_digest_and_words_are_not() -> None:
    base = small()
    one = registry(defense("a", base), defense("b", base), sources={"a": "source", "b": "source"})
    other = registry(defense("a", base), sources={"a": "changed"})
    found = {
        recipes.recipe_digest(one, "a", DIGITS),
        recipes.recipe_digest(one, "b", DIGITS),
        recipes.recipe_digest(other, "a", DIGITS),
        recipes.recipe_digest(one, "a", replace(DIGITS, digest="changed")),
        recipes.recipe_digest(one, "a", replace(DIGITS, shape=(1, 4, 16))),
    }
    assert len(found) == 5
    assert named(base, summary="a", cite="b") == named(base)


def mislabelled(folder: Path | None) -> Images:
    """The digits, each training label one too high."""
    images = DIGITS.load(folder)
    assert images.train is not None
    return replace(images, train=images.train._replace(labels=(images.train.labels + 1) % 10))


def test_weights_of_another_training_half_are_not_served(tmp_path: Path) -> None:
    known, own = registry(defense("pupil", small())), replace(DIGITS, train_digest="")
    wrong = loop.train_weights(known, "pupil", replace(own, load=mislabelled), folder=tmp_path)
    right = loop.train_weights(known, "pupil", own, folder=tmp_path)
    assert right != wrong
    assert right == loop.train_weights(known, "pupil", DIGITS, folder=tmp_path / "declared")


def test_a_declared_training_half_names_a_recipe_unread() -> None:
    def load(folder: Path | None) -> Images:
        raise OSError("read")

    unread = replace(DIGITS, load=load)
    assert named(small(), dataset=unread) == named(small())
    assert named(small(), dataset=replace(DIGITS, train_digest="")) == named(small())
    assert named(small(), dataset=replace(unread, train_digest="changed")) != named(small())
    with pytest.raises(UnavailableError, match="could not be read"):
        named(small(), dataset=replace(unread, train_digest=""))


def test_options_that_equal_the_attacks_own_fields_are_the_same_recipe() -> None:
    own = registry().attacks["pgd"].value
    same = replace(INNER, options={"steps": own.steps})
    assert named(small(inner=same)) == named(small(inner=replace(INNER, options={})))


# --- what is refused -------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimiser": "adamw"}, "asks for the optimiser 'adamw'; known: adam, sgd"),
    ({"schedule": "step"}, "known: constant, cosine, cyclic, steps"),
    ({"epochs": 0}, "0 epochs of batches of 128"),
    ({"inner": InnerAttack("pdg", INNER.ball)}, "Did you mean 'pgd'"),
    ({"inner": replace(INNER, options={"stepz": 1})}, "cannot take the options .*stepz"),
    ({"options": {"model": object()}}, "the recipe of pupil.*which has no digest"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_a_recipe_that_cannot_be_followed_gets_a_sentence(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=sentence):
        taught(tmp_path, small(**change))
    assert not list(tmp_path.iterdir())


def test_a_defense_without_a_recipe_is_not_trained(tmp_path: Path) -> None:
    known = registry(defense("pupil", build=lambda loader: linear(loader.shape, loader.classes)))
    with pytest.raises(BenchError, match="declares no recipe"):
        loop.train_weights(known, "pupil", DIGITS, folder=tmp_path)


def test_a_data_set_without_training_half_is_not_taught(tmp_path: Path) -> None:
    half = replace(DIGITS, load=lambda folder: replace(DIGITS.load(folder), train=None))
    with pytest.raises(UnavailableError, match="only the test half"):
        loop.train_weights(registry(defense("pupil", small())), "pupil", half, folder=tmp_path)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"became nan in epoch 1; a lower rate than 0\.01"):
        taught(tmp_path, small(loss=lambda lesson: on_clean(lesson) * math.nan))
    with pytest.raises(PluginError, match="without a gradient"):
        taught(tmp_path, small(loss=lambda lesson: on_clean(lesson).detach()))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_that_were_changed_behind_our_back_are_refused(tmp_path: Path) -> None:
    taught(tmp_path, small())
    (weights,) = tmp_path.rglob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BenchError, match="is not the file that training wrote"):
        taught(tmp_path, small())
    weights.unlink()
    taught(tmp_path, small())


def test_a_lease_can_be_extended_after_each_batch(tmp_path: Path) -> None:
    beats: list[int] = []
    taught(tmp_path, small(), heartbeat=lambda: beats.append(1))
    assert len(beats) == 2 * 11


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02K\x01."])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    known = registry(defense("pupil", small()))
    stock = weights_cache.WeightsFiles(tmp_path, recipes.recipe_digest(known, "pupil", DIGITS))
    stock.checkpoint.parent.mkdir(parents=True)
    stock.checkpoint.write_bytes(content)
    with pytest.raises(BenchError, match="delete it to begin that training again"):
        loop.train_weights(known, "pupil", DIGITS, folder=tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    state.write_atomically(path, lambda beside: beside.write_text("old"))

    def half(beside: Path) -> None:
        beside.write_text("ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        state.write_atomically(path, half)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# --- devices ---------------------------------------------------------------------------------


@pytest.mark.row("D18")
def test_mixed_precision_learns_as_well(tmp_path: Path) -> None:
    heard: list[state.EpochReport] = []
    mixed = taught(tmp_path / "a", small(epochs=4), mixed=True, progress=heard.append)
    assert heard[-1].clean > 0.8
    assert mixed != taught(tmp_path / "b", small(epochs=4))


class Stopped(Exception):  # noqa: N818 - somebody pressed a key
    """An end between two epochs."""


def stop(progress: state.EpochReport) -> None:
    """A listener that ends the training after its first epoch."""
    raise Stopped


@pytest.mark.parametrize(
    ("mixed", "sentence"),
    [(True, "bfloat16 on cpu, and float32 on cpu"), (False, "float32 on cpu, and bfloat16 on cpu")],
)
def test_an_unfinished_training_goes_on_in_the_precision_it_was_begun_in(
    tmp_path: Path, mixed: bool, sentence: str
) -> None:
    with pytest.raises(Stopped):
        taught(tmp_path, small(), mixed=mixed, progress=stop)
    with pytest.raises(BenchError, match=f"begun in {sentence} was asked for; .* delete it"):
        taught(tmp_path, small(), mixed=not mixed)
    whole = taught(tmp_path / "whole", small(), mixed=mixed)
    assert taught(tmp_path, small(), mixed=mixed) == whole


def test_an_unfinished_training_goes_on_on_the_kind_of_device_it_was_begun_on(
    tmp_path: Path,
) -> None:
    known = registry(defense("pupil", small()))
    begun = state.initial_state(known, "pupil", DIGITS, None, torch.device("cpu"), mixed=False)
    state.save_checkpoint(begun, tmp_path / "state.pt")
    state.load_checkpoint(begun, tmp_path / "state.pt")
    begun.device = torch.device("meta")
    with pytest.raises(BenchError, match="begun in float32 on cpu, and float32 on meta was asked"):
        state.load_checkpoint(begun, tmp_path / "state.pt")


def test_bfloat16_weights_are_not_served_where_float32_is_asked_for(tmp_path: Path) -> None:
    mixed = taught(tmp_path, small(), mixed=True)
    assert taught(tmp_path, small(), mixed=True) == mixed
    with pytest.raises(BenchError, match=r"pupil is trained already, in bfloat16; delete .*\.json"):
        taught(tmp_path, small())
    (record,) = tmp_path.rglob("*.json")
    record.unlink()
    whole = taught(tmp_path, small())
    assert whole == taught(tmp_path / "whole", small()) != mixed
    assert taught(tmp_path, small(), mixed=True) == whole, "float32 is never less than was asked"


def test_a_device_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UnavailableError, match="finds no CUDA device"):
        taught(tmp_path, small(), device="cuda:0")


def test_cuda_learns_as_well(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    heard: list[state.EpochReport] = []
    made_by = small(model=noisy, loss=on_adv, inner=INNER, epochs=4)
    state = torch.cuda.get_rng_state()
    taught(tmp_path, made_by, device="cuda", mixed=True, progress=heard.append)
    assert heard[-1].loss < heard[0].loss
    assert torch.equal(torch.cuda.get_rng_state(), state)
