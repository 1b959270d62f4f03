"""Every check of data sets can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.contract.check import CheckOutcome
from bench.plugin import Images, Split
from bench.registry.registry import Registry
from tests.contract.planted import run_named_check

READS = 0


def shuffled(images: Images) -> Images:
    global READS
    READS += 1
    return replace(images, test=Split(np.roll(images.test.images, READS, 0), images.test.labels))


def one_class_less(images: Images) -> Images:
    kept = images.test.labels != 3
    test = Split(images.test.images[kept], images.test.labels[kept])
    return Images(images.train, test, images.index[kept])


def sorted_by_class(images: Images) -> Images:
    order = np.argsort(images.test.labels, kind="stable")
    test = Split(images.test.images[order], images.test.labels[order])
    return Images(images.train, test, images.index[order])


def darkened(images: Images) -> Images:
    return replace(images, test=Split(images.test.images // 16, images.test.labels))


def train_is_test(images: Images) -> Images:
    return replace(images, train=images.test)


def too_small(images: Images) -> Images:
    return replace(images, test=Split(images.test.images[:, :, :7], images.test.labels))


DATASETS: list[tuple[str, Callable[[Images], Images] | None, dict[str, Any]]] = [
    ("images-can-be-read", None, {"problem": "the folder is empty."}),
    ("images-can-be-read", None, {"local": True, "digest": "0" * 64}),
    ("digest-is-declared", None, {"digest": ""}),
    ("digest-is-that-of-the-images", None, {"digest": "0" * 64}),
    ("digest-is-that-of-the-images", None, {"train_digest": "0" * 64}),
    ("it-is-what-its-record-says", too_small, {}),
    ("reading-again-gives-the-same", shuffled, {}),
    ("every-class-is-there", one_class_less, {"test_size": 450}),
    ("first-examples-are-balanced", sorted_by_class, {}),
    ("pixels-use-their-range", darkened, {}),
    ("training-and-test-are-apart", train_is_test, {}),
]


@pytest.mark.parametrize(("check", "spoil", "record"), DATASETS)
def test_a_check_fails_on_a_data_set_made_to_fail_it(
    registry: Registry, check: str, spoil: Callable[[Images], Images] | None, record: dict[str, Any]
) -> None:
    good = registry.datasets["digits"].value
    if spoil is not None:
        record = {
            "digest": "",
            "train_digest": "",
            **record,
            "load": lambda folder: spoil(good.load(folder)),
        }
    bad = replace(good, name="planted", **record)
    assert run_named_check(registry, "dataset", bad, check).outcome is CheckOutcome.FAIL
    assert run_named_check(registry, "dataset", good, check).outcome is CheckOutcome.PASS


def test_no_digest_is_asked_for_of_files_that_are_the_users_own(registry: Registry) -> None:
    own = replace(registry.datasets["digits"].value, digest="", local=True)
    outcome = run_named_check(registry, "dataset", own, "digest-is-declared").outcome
    assert outcome is CheckOutcome.NOT_APPLICABLE
