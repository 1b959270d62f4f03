"""Contract checks of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.contract.check import DoesNotApply, checks_of
from bench.data import datasets
from bench.plugin import Dataset, Images


@dataclass(frozen=True)
class DatasetFixture:
    """A data set, read once."""

    dataset: Dataset

    @cached_property
    def images(self) -> Images:
        """Both halves, through the door that checks digest and record."""
        return datasets.load_dataset(self.dataset)


def digest_is_declared(pictures: DatasetFixture) -> str:
    """It declares the digest of its test half."""
    return "" if pictures.dataset.digest else "no digest: another copy would pass unnoticed."


def digest_is_that_of_the_images(pictures: DatasetFixture) -> str:
    """The declared digests are those of the images here."""
    try:
        images = pictures.dataset.load(datasets.data_folder())
    except (OSError, RuntimeError, ValueError) as error:
        raise DoesNotApply(f"it cannot be read here: {error}") from error
    halves = [
        ("test", pictures.dataset.digest, datasets.content_digest(*images.test, images.index))
    ]
    if images.train is not None:
        halves.append(
            ("training", pictures.dataset.train_digest, datasets.content_digest(*images.train))
        )
    wrong = [half for half in halves if half[1] not in ("", half[2])]
    return " ".join(f"the {name} half has the digest {f}, not {d}." for name, d, f in wrong)


def it_is_what_its_record_says(pictures: DatasetFixture) -> str:
    """Sizes, shapes, types and labels are those of its record."""
    found, wanted = pictures.images.test.images.shape, pictures.dataset.shape
    return "" if found[1:] == wanted else f"images are {list(found[1:])}, not {list(wanted)}."


def reading_again_gives_the_same(pictures: DatasetFixture) -> str:
    """A second read gives the same images, labels and order."""
    one, two = pictures.images, pictures.dataset.load(datasets.data_folder())
    same = datasets.content_digest(*one.test, one.index) == datasets.content_digest(
        *two.test, two.index
    )
    return "" if same else "a second read differs."


def every_class_is_there(pictures: DatasetFixture) -> str:
    """Every class has test images."""
    missing = set(range(len(pictures.dataset.classes))) - set(pictures.images.test.labels.tolist())
    return f"class {min(missing)} has no test image." if missing else ""


def first_examples_are_balanced(pictures: DatasetFixture) -> str:
    """The first examples hold every class about equally: no prefix is one class."""
    classes = len(pictures.dataset.classes)
    first = pictures.images.test.labels[: 10 * classes]
    least = np.bincount(first, minlength=classes).min()
    return "" if least or len(first) < 10 * classes else "a class is missing among the first."


def pixels_use_their_range(pictures: DatasetFixture) -> str:
    """Test images reach beyond 127 and stay not all bright: bytes, not fractions."""
    top = int(pictures.images.test.images.max())
    return "" if top > 127 else f"the brightest pixel is {top} of 255; scale grey levels to bytes."


def training_and_test_are_apart(pictures: DatasetFixture) -> str:
    """At most one test image in a hundred stands in the training half too."""
    train = pictures.images.train
    if train is None:
        raise DoesNotApply("it comes without its training half.")
    seen = {image.tobytes() for image in train.images}
    twice = sum(image.tobytes() in seen for image in pictures.images.test.images)
    share = twice / len(pictures.images.test.images)
    return "" if share <= 0.01 else f"{share:.1%} of the test images are training images."


DATASET_CHECKS = checks_of(
    digest_is_declared,
    digest_is_that_of_the_images,
    it_is_what_its_record_says,
    reading_again_gives_the_same,
    every_class_is_there,
    first_examples_are_balanced,
    pixels_use_their_range,
    training_and_test_are_apart,
)
