"""Checks of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.contract.check import DoesNotApply, checks_of
from bench.core.errors import UnavailableError
from bench.data import datasets
from bench.plugin import Dataset, Images


@dataclass(frozen=True)
class DatasetFixture:
    """A data set for its checks, read once."""

    dataset: Dataset

    @cached_property
    def images(self) -> Images:
        """Both halves, read with the checks of digest and record that every run makes."""
        return datasets.load_dataset(self.dataset)


def images_can_be_read(fixture: DatasetFixture) -> str:
    """Its images can be read on this machine.

    Raises UnavailableError where official files are not here.
    """
    try:
        return "" if len(fixture.images.test.labels) else "it has no test image."
    except UnavailableError as error:
        if fixture.dataset.local or fixture.dataset.problem:
            return f"{error}"
        raise


def digest_is_declared(fixture: DatasetFixture) -> str:
    """It declares the digest of its test half.

    Raises DoesNotApply for the user's own files.
    """
    if fixture.dataset.local and not fixture.dataset.digest:
        raise DoesNotApply(
            "its images are the user's own files; the key of each cell has their digest."
        )
    wrong = "no digest is declared; without it another copy of the data would pass unnoticed."
    return "" if fixture.dataset.digest else wrong


def digest_is_that_of_the_images(fixture: DatasetFixture) -> str:
    """The declared digests are those of the images that are read.

    Raises DoesNotApply where the data set cannot be read.
    """
    try:
        images = fixture.dataset.load(datasets.data_folder())
    except (OSError, RuntimeError, ValueError) as error:
        raise DoesNotApply(f"it cannot be read here: {error}") from error
    halves = [("test", fixture.dataset.digest, datasets.content_digest(*images.test, images.index))]
    if images.train is not None:
        halves.append(
            ("training", fixture.dataset.train_digest, datasets.content_digest(*images.train))
        )
    wrong = [half for half in halves if half[1] not in ("", half[2])]
    return " ".join(f"the {name} half has the digest {f}; {d} is declared." for name, d, f in wrong)


def it_is_what_its_record_says(fixture: DatasetFixture) -> str:
    """Size, shape, dtype and labels are those of the `Dataset` record."""
    found, wanted = fixture.images.test.images.shape, fixture.dataset.shape
    wrong = f"images are {list(found[1:])}; {list(wanted)} is declared."
    return "" if found[1:] == wanted else wrong


def reading_again_gives_the_same(fixture: DatasetFixture) -> str:
    """Reading a second time gives the same images, labels and order."""
    one, two = fixture.images, fixture.dataset.load(datasets.data_folder())
    first, second = (datasets.content_digest(*read.test, read.index) for read in (one, two))
    wrong = "reading a second time gave other images, labels or another order."
    return "" if first == second else wrong


def every_class_is_there(fixture: DatasetFixture) -> str:
    """Every class has a test image."""
    missing = set(range(len(fixture.dataset.classes))) - set(fixture.images.test.labels.tolist())
    return f"class {min(missing)} has no test image." if missing else ""


def first_examples_are_balanced(fixture: DatasetFixture) -> str:
    """Every class is among the first examples, ten per class."""
    classes = len(fixture.dataset.classes)
    first = fixture.images.test.labels[: 10 * classes]
    least = np.bincount(first, minlength=classes).min()
    return (
        ""
        if least or len(first) < 10 * classes
        else f"a class is missing among the first {len(first)} test images; mix the order."
    )


def pixels_use_their_range(fixture: DatasetFixture) -> str:
    """The brightest test pixel is above 127: pixels are 0 to 255, not 0 to 1."""
    top = int(fixture.images.test.images.max())
    return "" if top > 127 else f"the brightest pixel is {top} of 255; scale pixels to 0 to 255."


def training_and_test_are_apart(fixture: DatasetFixture) -> str:
    """At most one test image in a hundred is also a training image.

    Raises DoesNotApply where there is no training half.
    """
    train = fixture.images.train
    if train is None:
        raise DoesNotApply("it has no training half.")
    seen = {image.tobytes() for image in train.images}
    twice = sum(image.tobytes() in seen for image in fixture.images.test.images)
    share = twice / len(fixture.images.test.images)
    return "" if share <= 0.01 else f"{share:.1%} of the test images are training images."


DATASET_CHECKS = (
    *checks_of(images_can_be_read, decide=True),
    *checks_of(digest_is_declared, digest_is_that_of_the_images, stand_alone=True),
    *checks_of(
        it_is_what_its_record_says,
        reading_again_gives_the_same,
        every_class_is_there,
        first_examples_are_balanced,
        pixels_use_their_range,
        training_and_test_are_apart,
    ),
)
