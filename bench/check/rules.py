"""What every threat model and every data set promises: exact, known, and the same each time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bench import data
from bench.check.law import DoesNotApply, laws
from bench.kit import KeyedDraws, example_key
from bench.plugin import Attack, Dataset, Images, ThreatModel, Traits
from bench.registry import Registry


@dataclass(frozen=True)
class Rules:
    """A threat model among the attacks and data sets that are registered."""

    registry: Registry
    threat: ThreatModel

    @property
    def dataset(self) -> Dataset:
        """The one it names."""
        found: Dataset = self.registry.find("dataset", self.threat.dataset).value
        return found

    @cached_property
    def x(self) -> Tensor:
        """[32, C, H, W] random images with black and white pixels among them."""
        generator = torch.Generator().manual_seed(0)
        return (1.5 * torch.rand(32, *self.dataset.shape, generator=generator) - 0.25).clamp(0, 1)

    @cached_property
    def away(self) -> Tensor:
        """Points that are outside box and, mostly, ball."""
        generator = torch.Generator().manual_seed(1)
        return self.x + torch.randn(self.x.shape, generator=generator)


def radius_is_an_exact_fraction(rules: Rules) -> str:
    """The radius is an exact fraction above 0."""
    eps = rules.threat.ball.eps
    if isinstance(eps, Fraction) and eps > 0:
        return ""
    return f"eps came as {eps!r}; write a fraction, as in Fraction(8, 255)."


def data_set_is_known(rules: Rules) -> str:
    """Its data set is registered, and has as many test images as are asked for."""
    size, asked = rules.dataset.test_size, rules.threat.examples
    return "" if 1 <= asked <= size else f"it asks for {asked} examples of 1 to {size}."


def required_attacks_are_known(rules: Rules) -> str:
    """Every required attack is registered."""
    for name in rules.threat.required:
        rules.registry.find("attack", name)
    return ""


def required_attacks_may_play(rules: Rules) -> str:
    """Every required attack makes do with the access, and serves set and goal."""
    threat = rules.threat
    for name in threat.required:
        attack: Attack = rules.registry.find("attack", name).value
        traits = Traits.of(attack)
        if attack.needs > threat.access:
            return f"{name} needs {attack.needs.name}, {threat.access.name} is given."
        if traits.norms and threat.ball.name not in traits.norms:
            return f"{name} does not work in {threat.ball.name}."
        if traits.goals and threat.goal.kind not in traits.goals:
            return f"{name} does not serve the goal {threat.goal.kind}."
    return ""


def id_is_a_digest_of_the_rules(rules: Rules) -> str:
    """The id is the same again, and the rules are JSON."""
    return "" if rules.threat.id == rules.threat.id else "the id changes from look to look."


def projection_is_feasible_and_idempotent(rules: Rules) -> str:
    """`project` lands inside ball and box, and moves nothing a second time."""
    ball = rules.threat.ball
    once = ball.project(rules.away, rules.x)
    if not ball.contains(once.double(), rules.x.double()).all():
        return "project left points outside."
    again = float(ball.distance(ball.project(once, rules.x), once).max())
    return (
        "" if again <= ball.tolerance(once[0].numel()) else f"projecting again moved {again:.2g}."
    )


def clean_image_is_inside(rules: Rules) -> str:
    """The clean image is inside, at distance 0, and projects onto itself."""
    ball, x = rules.threat.ball, rules.x
    if not ball.contains(x, x).all() or float(ball.distance(x, x).abs().max()) > 0:
        return "the clean image is not inside at distance 0."
    return "" if torch.equal(ball.project(x, x), x) else "projecting the clean image moved it."


def samples_are_inside(rules: Rules) -> str:
    """`sample` gives points inside ball and box."""
    key = example_key(0, "check", torch.arange(32), torch.zeros(32, dtype=torch.int64))
    draws = KeyedDraws(key, torch.zeros(32, dtype=torch.int64))
    inside = rules.threat.ball.contains(rules.threat.ball.sample(rules.x, draws), rules.x)
    return "" if inside.all() else f"{int((~inside).sum())} of 32 samples are outside."


RULES = laws(
    radius_is_an_exact_fraction,
    data_set_is_known,
    required_attacks_are_known,
    required_attacks_may_play,
    id_is_a_digest_of_the_rules,
    projection_is_feasible_and_idempotent,
    clean_image_is_inside,
    samples_are_inside,
)


@dataclass(frozen=True)
class Pictures:
    """A data set, read once."""

    dataset: Dataset

    @cached_property
    def images(self) -> Images:
        """Both halves, through the door that checks digest and record."""
        return data.read(self.dataset)


def digest_is_declared(pictures: Pictures) -> str:
    """It declares the digest of its test half."""
    return "" if pictures.dataset.digest else "no digest: another copy would pass unnoticed."


def digest_is_that_of_the_images(pictures: Pictures) -> str:
    """The declared digests are those of the images here."""
    try:
        images = pictures.dataset.load(data.folder())
    except (OSError, RuntimeError, ValueError) as error:
        raise DoesNotApply(f"it cannot be read here: {error}") from error
    halves = [("test", pictures.dataset.digest, data.content(*images.test, images.index))]
    if images.train is not None:
        halves.append(("training", pictures.dataset.train_digest, data.content(*images.train)))
    wrong = [half for half in halves if half[1] not in ("", half[2])]
    return " ".join(f"the {name} half has the digest {f}, not {d}." for name, d, f in wrong)


def it_is_what_its_record_says(pictures: Pictures) -> str:
    """Sizes, shapes, types and labels are those of its record."""
    found, wanted = pictures.images.test.images.shape, pictures.dataset.shape
    return "" if found[1:] == wanted else f"images are {list(found[1:])}, not {list(wanted)}."


def reading_again_gives_the_same(pictures: Pictures) -> str:
    """A second read gives the same images, labels and order."""
    one, two = pictures.images, pictures.dataset.load(data.folder())
    same = data.content(*one.test, one.index) == data.content(*two.test, two.index)
    return "" if same else "a second read differs."


def every_class_is_there(pictures: Pictures) -> str:
    """Every class has test images."""
    missing = set(range(len(pictures.dataset.classes))) - set(pictures.images.test.labels.tolist())
    return f"class {min(missing)} has no test image." if missing else ""


def first_examples_are_balanced(pictures: Pictures) -> str:
    """The first examples hold every class about equally: no prefix is one class."""
    classes = len(pictures.dataset.classes)
    first = pictures.images.test.labels[: 10 * classes]
    least = np.bincount(first, minlength=classes).min()
    return "" if least or len(first) < 10 * classes else "a class is missing among the first."


def pixels_use_their_range(pictures: Pictures) -> str:
    """Test images reach beyond 127 and stay not all bright: bytes, not fractions."""
    top = int(pictures.images.test.images.max())
    return "" if top > 127 else f"the brightest pixel is {top} of 255; scale grey levels to bytes."


def training_and_test_are_apart(pictures: Pictures) -> str:
    """At most one test image in a hundred stands in the training half too."""
    train = pictures.images.train
    if train is None:
        raise DoesNotApply("it comes without its training half.")
    seen = {image.tobytes() for image in train.images}
    twice = sum(image.tobytes() in seen for image in pictures.images.test.images)
    share = twice / len(pictures.images.test.images)
    return "" if share <= 0.01 else f"{share:.1%} of the test images are training images."


PICTURES = laws(
    digest_is_declared,
    digest_is_that_of_the_images,
    it_is_what_its_record_says,
    reading_again_gives_the_same,
    every_class_is_there,
    first_examples_are_balanced,
    pixels_use_their_range,
    training_and_test_are_apart,
)
