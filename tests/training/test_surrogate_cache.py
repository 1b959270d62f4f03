"""Learned surrogates in the weights cache: learned once, keyed by all that decides the weights."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.engine.model_access import SeededNoise
from bench.engine.problem import attack_once
from bench.plugin import L2, Images, Linf
from bench.training import surrogate_cache
from bench.training.label_surrogate import (
    LIGHT,
    RECIPES,
    STRONG,
    LabelSurrogateRecipe,
    LearnedSurrogate,
)
from bench.training.surrogate_cache import label_function, load_or_learn, surrogate_digest
from bench.training.tasks import build_trained
from bench.training.trained_weights import WeightsSource
from plugins.attacks.transfer import Transfer
from tests.fixtures.known_models import digits, gaussian, linear
from tests.fixtures.small_defenses import DIGITS, one_thread
from tests.fixtures.training_family import registry

__all__ = ["one_thread"]

BALL = Linf(Fraction(51, 255))
SHORT = LabelSurrogateRecipe("short", epochs=1)
MODEL = linear(gaussian(10, 64, seed=3))


def learned_in(
    folder: Path, recipe: LabelSurrogateRecipe = SHORT, defense: str = "one"
) -> tuple[LearnedSurrogate, int]:
    """The surrogate and the number of images whose labels were asked for in this call."""
    asked = []

    def labels(images: Tensor) -> Tensor:
        asked.append(len(images))
        return label_function(MODEL)(images)

    return load_or_learn(defense, labels, DIGITS, BALL, recipe, source=WeightsSource(folder)), sum(
        asked
    )


def test_a_second_call_loads_and_asks_nothing(tmp_path: Path) -> None:
    x, _ = digits(50)
    first, asked = learned_in(tmp_path)
    second, again = learned_in(tmp_path)
    assert (asked, again) == (1297, 0)
    assert first.queries == second.queries == 1297
    assert first.agreement == second.agreement
    assert first.digest == second.digest
    assert torch.equal(first.module(x), second.module(x))
    assert not second.module.training


def test_another_folder_gives_the_same_digest(tmp_path: Path) -> None:
    recipe = replace(SHORT, members=2)
    digests = {learned_in(tmp_path / name, recipe)[0].digest for name in "ab"}
    assert len(digests) == 1


def test_another_defense_is_learned_anew(tmp_path: Path) -> None:
    first, _ = learned_in(tmp_path)
    second, asked = learned_in(tmp_path, defense="two")
    assert asked == 1297
    assert first.digest != second.digest


def test_the_digest_names_all_that_decides_the_weights() -> None:
    other = L2(Fraction(1))
    digests = [
        surrogate_digest("defense", SHORT, "images", BALL),
        surrogate_digest("another", SHORT, "images", BALL),
        surrogate_digest("defense", SHORT, "other images", BALL),
        surrogate_digest("defense", replace(SHORT, epochs=2), "images", BALL),
        surrogate_digest("defense", replace(SHORT, seed=1), "images", BALL),
        surrogate_digest("defense", replace(SHORT, members=2), "images", BALL),
        surrogate_digest("defense", replace(SHORT, rounds=1), "images", BALL),
        surrogate_digest("defense", replace(SHORT, rounds=1), "images", other),
        surrogate_digest("defense", replace(SHORT, adversarial=True), "images", BALL),
        surrogate_digest("defense", replace(SHORT, adversarial=True), "images", other),
    ]
    assert len(set(digests)) == len(digests)
    assert surrogate_digest("defense", SHORT, "images", other) == digests[0]


def test_a_damaged_weights_file_is_refused(tmp_path: Path) -> None:
    learned_in(tmp_path)
    (file,) = (tmp_path / "weights").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BenchError, match="is not the file that training wrote"):
        learned_in(tmp_path)


def test_an_interrupted_call_leaves_nothing_behind(tmp_path: Path) -> None:
    def labels(images: Tensor) -> Tensor:
        raise PluginError("the defense failed.")

    with pytest.raises(PluginError, match="the defense failed"):
        load_or_learn("one", labels, DIGITS, BALL, SHORT, source=WeightsSource(tmp_path))
    assert list(tmp_path.rglob("*")) == []


def test_a_data_set_without_a_training_half_is_refused(tmp_path: Path) -> None:
    def test_half(folder: Path | None) -> Images:
        images = DIGITS.load(folder)
        return replace(images, train=None)

    alone = replace(DIGITS, load=test_half, train_digest="")
    with pytest.raises(UnavailableError, match="only the test half of digits is in"):
        load_or_learn(
            "one", label_function(MODEL), alone, BALL, SHORT, source=WeightsSource(tmp_path)
        )


def test_large_training_halves_are_cut_by_a_keyed_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = surrogate_cache.training_images(DIGITS)
    assert len(whole) == 1297
    monkeypatch.setattr(surrogate_cache, "MOST_IMAGES", 200)
    part = surrogate_cache.training_images(DIGITS)
    place = [int((whole == one).flatten(1).all(1).nonzero()[0, 0]) for one in part]
    assert place == sorted(place)
    assert len(set(place)) == 200
    assert max(place) > 1200 and min(place) < 100


class Switching(nn.Module):
    """A model that notes its training flag and answers at random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((torch.is_grad_enabled(), images.requires_grad))
        noise = torch.randn(len(images), 10)
        return noise.add(MODEL(images))


def test_labels_take_no_gradient_and_draw_from_the_seeded_noise() -> None:
    x, _ = digits(40)
    model = Switching().eval()
    state = torch.get_rng_state()
    labels = [
        label_function(model, SeededNoise(seed, "surrogate", torch.device("cpu")), 3)(x)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])
    assert set(model.calls) == {(False, False)}
    assert len(model.calls) == 9


@pytest.mark.parametrize("votes", [0, -1])
def test_votes_below_one_are_refused(votes: int) -> None:
    with pytest.raises(BenchError, match=f"{votes} votes were asked for; at least 1"):
        label_function(MODEL, votes=votes)


def test_the_model_that_answers_is_unchanged(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_or_learn("one", label_function(model), DIGITS, BALL, SHORT, source=WeightsSource(tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_recipes_by_source() -> None:
    assert RECIPES == {"learned": LIGHT, "learned-strong": STRONG}
    assert STRONG.adversarial and not LIGHT.adversarial


@pytest.mark.slow
@pytest.mark.row("A19")
@pytest.mark.parametrize(("recipe", "most"), [(LIGHT, 60), (STRONG, 25)], ids=["light", "strong"])
def test_transfer_from_the_surrogate_breaks_a_defense_without_gradients(
    recipe: LabelSurrogateRecipe, most: int, tmp_path: Path
) -> None:
    defense = build_trained(registry(), "argmax-only", DIGITS).build()
    learned = load_or_learn(
        "argmax", label_function(defense), DIGITS, BALL, recipe, source=WeightsSource(tmp_path)
    )
    x, y = digits(500)
    adv = attack_once(Transfer(), learned.module, x, y, BALL, seed=0, example=torch.arange(500))
    correct = (defense(x).argmax(1) == y) & (defense(adv).argmax(1) == y)
    assert bool(BALL.contains(adv, x).all())
    assert int(correct.sum()) <= most
    assert learned.agreement > 0.95
