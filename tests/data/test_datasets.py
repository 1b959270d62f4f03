"""Data sets: fixed orders, checked digests, and messages where files are missing."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torchvision import datasets as torchvision_sets

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.data import datasets
from bench.data.image_rows import to_float
from bench.plugin import Dataset, Images, Split
from plugins.datasets import digits, torchvision_datasets
from plugins.datasets._balanced_order import balanced_order

DIGITS = next(iter(digits.bench_datasets()))
OFFICIAL = {dataset.name: dataset for dataset in torchvision_datasets.bench_datasets()}
PLACES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}


def found(name: str) -> Path:
    """The folder of an official data set; skips the test where it is missing."""
    place = Path(os.environ.get("BENCH_DATA", "")) / PLACES[name]
    if "BENCH_DATA" not in os.environ or not place.exists():
        pytest.skip(f"BENCH_DATA names no folder that holds {PLACES[name]}")
    return place


def linked(source: Path, target: Path, keep: Callable[[str], bool]) -> None:
    """Link some files of a folder into another one."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if keep(file.name):
            (target / file.name).symlink_to(file)


# --- the fixed order -------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.text("ab", max_size=3))
def test_the_order_is_a_permutation_that_alternates_between_classes(
    labels: list[int], name: str
) -> None:
    array = np.asarray(labels, dtype=np.int64)
    order = balanced_order(array, name)
    assert sorted(order.tolist()) == list(range(len(labels)))
    shown: dict[int, int] = {}
    turns: list[int] = []
    for label in array[order].tolist():
        turns.append(shown.get(label, 0))
        shown[label] = turns[-1] + 1
    assert turns == sorted(turns), "a class came again before another had its turn"


def test_the_order_depends_on_the_name_alone() -> None:
    labels = np.arange(1000, dtype=np.int64) % 10
    assert (balanced_order(labels, "a") == balanced_order(labels.copy(), "a")).all()
    assert (balanced_order(labels, "a") != balanced_order(labels, "b")).mean() > 0.9


def test_within_a_class_the_order_is_not_that_of_the_file() -> None:
    order = balanced_order(np.zeros(1000, dtype=np.int64), "a")
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


# --- the digits ------------------------------------------------------------------------------


def test_digits_are_sixteen_grey_levels_rounded_to_255ths() -> None:
    images = datasets.load_dataset(DIGITS)
    raw = load_digits()
    expected = [round(255 * level / 16) for level in range(17)]
    assert expected[8] == 128
    assert set(np.unique(images.test.images)) == set(expected)
    grey = raw.images[images.index].astype(int)
    assert (images.test.images[:, 0] == np.asarray(expected)[grey]).all()
    assert (images.test.labels == raw.target[images.index]).all()


def test_the_halves_of_digits_are_disjoint_and_complete() -> None:
    images = datasets.load_dataset(DIGITS)
    assert images.train is not None
    assert (len(images.train.labels), len(images.test.labels)) == (1297, 500)
    rest = np.setdiff1d(np.arange(1797), images.index)
    assert (images.train.labels == load_digits().target[rest]).all()
    assert (np.bincount(images.test.labels) == 50).all()


def test_the_index_list_of_digits_has_the_recorded_digest() -> None:
    assert datasets.load_dataset(DIGITS).index[:8].tolist() == [
        1271,
        690,
        305,
        369,
        1562,
        235,
        1311,
        605,
    ]


# --- examples --------------------------------------------------------------------------------


@given(st.integers(1, 499))
def test_fewer_examples_are_the_first_of_more(n: int) -> None:
    few, more = datasets.first_examples(DIGITS, n), datasets.first_examples(DIGITS, n + 1)
    assert (few.images == more.images[:n]).all()
    assert (few.labels == more.labels[:n]).all()
    assert few.digest != more.digest


@pytest.mark.parametrize("n", [0, -1, 501])
def test_more_examples_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(BenchError, match="use 1 to 500"):
        datasets.first_examples(DIGITS, n)


@given(st.integers(1, 499))
def test_examples_of_the_file_order_are_the_first_of_the_file(n: int) -> None:
    few, more = (datasets.first_examples(DIGITS, k, "file") for k in (n, n + 1))
    whole = datasets.load_dataset(DIGITS)
    places = np.sort(whole.index)[:n]
    raw = load_digits()
    assert (few.labels == raw.target[places]).all()
    assert (few.images[:, 0] == np.rint(255 * raw.images[places] / 16)).all()
    assert (few.images == more.images[:n]).all()
    assert few.order == "file"
    assert datasets.first_examples(DIGITS, n).order == "balanced"


@pytest.mark.parametrize("n", [1, 2, 64, 500])
def test_the_two_orders_have_different_digests(n: int) -> None:
    digests = {datasets.first_examples(DIGITS, n, order).digest for order in ("balanced", "file")}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("name", "labels"),
    [("cifar10", [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]), ("mnist", [7, 2, 1, 0, 4, 1, 4, 9, 5, 9])],
)
def test_the_file_order_is_that_of_the_official_file(name: str, labels: list[int]) -> None:
    found(name)
    assert datasets.first_examples(OFFICIAL[name], 10, "file").labels.tolist() == labels


def test_an_unknown_order_and_a_folder_without_one_are_refused() -> None:
    with pytest.raises(BenchError, match="--order is 'random'; use one of balanced, file"):
        datasets.first_examples(DIGITS, 4, "random")
    with pytest.raises(BenchError, match="has no official order; use --order balanced"):
        datasets.first_examples(replace(DIGITS, local=True), 4, "file")


def test_pixels_become_255ths_exactly() -> None:
    examples = datasets.first_examples(DIGITS, 500)
    tensor = examples.tensor()
    assert tensor.dtype == torch.float32
    expected = examples.images.astype(np.float32) / np.float32(255)
    assert (tensor.numpy() == expected).all()


def test_the_arrays_are_read_only() -> None:
    images = datasets.load_dataset(DIGITS)
    with pytest.raises(ValueError, match="read-only"):
        images.test.images[0] = 0
    datasets.first_examples(DIGITS, 4).tensor().zero_()
    assert datasets.first_examples(DIGITS, 4).images.any()


def test_a_data_set_is_read_once_a_process() -> None:
    reads: list[int] = []

    def load(folder: Path | None) -> Images:
        reads.append(1)
        return DIGITS.load(folder)

    counted = replace(DIGITS, load=load)
    assert datasets.load_dataset(counted) is datasets.load_dataset(counted)
    assert len(reads) == 1


# --- what is refused -------------------------------------------------------------------------


def altered(change: Callable[[Images], Images], **fields: object) -> Dataset:
    """The digits, changed after reading."""
    record = replace(DIGITS, load=lambda folder: change(digits.read(folder)))
    return replace(record, **fields)  # type: ignore[arg-type]


def one_pixel(images: Images) -> Images:
    pixels = images.test.images.copy()
    pixels[499, 0, 7, 7] ^= 1
    return replace(images, test=Split(pixels, images.test.labels))


def one_label(images: Images) -> Images:
    labels = images.test.labels.copy()
    labels[0] = (labels[0] + 1) % 10
    return replace(images, test=Split(images.test.images, labels))


def one_label_changed(images: Images) -> Images:
    assert images.train is not None
    labels = images.train.labels.copy()
    labels[0] = (labels[0] + 1) % 10
    return replace(images, train=Split(images.train.images, labels))


def two_places(images: Images) -> Images:
    index = images.index.copy()
    index[[0, 1]] = index[[1, 0]]
    return replace(images, index=index)


@pytest.mark.parametrize("change", [one_pixel, one_label, two_places])
def test_a_test_half_that_differs_in_one_place_is_refused(
    change: Callable[[Images], Images],
) -> None:
    with pytest.raises(UnavailableError, match="not the official files"):
        datasets.load_dataset(altered(change))


def test_a_training_half_that_is_not_the_declared_one_is_refused() -> None:
    with pytest.raises(
        UnavailableError, match=r"training half of digits .* is not the official one"
    ):
        datasets.load_dataset(altered(one_label_changed))
    images = datasets.load_dataset(altered(one_label_changed, train_digest=""))
    assert images.train is not None


DEVIATIONS: dict[str, tuple[Callable[[Images], Images], str]] = {
    "floats": (
        lambda i: replace(i, test=i.test._replace(images=i.test.images.astype(np.float32))),
        "has images float32 .* uint8",
    ),
    "channels": (
        lambda i: replace(i, train=i.train and i.train._replace(images=i.train.images[:, 0])),
        r"\[1297, 8, 8\]; uint8 \[1297, 1, 8, 8\]",
    ),
    "labels": (
        lambda i: replace(i, test=i.test._replace(labels=i.test.labels + 1)),
        "labels outside 0 to 9",
    ),
    "int32": (
        lambda i: replace(i, test=i.test._replace(labels=i.test.labels.astype(np.int32))),
        "labels int32",
    ),
    "twice": (lambda i: replace(i, index=np.zeros_like(i.index)), "its own position"),
    "fewer": (
        lambda i: replace(i, test=Split(i.test.images[:9], i.test.labels[:9])),
        "has 9 test images; its record declares 500",
    ),
}


@pytest.mark.parametrize("case", DEVIATIONS)
def test_images_that_do_not_fit_the_record_are_a_plugin_error(case: str) -> None:
    change, sentence = DEVIATIONS[case]
    with pytest.raises(PluginError, match=sentence):
        datasets.load_dataset(altered(change, digest=""))


def test_the_data_folder_is_that_of_the_variable_else_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    assert datasets.data_folder() == tmp_path
    monkeypatch.delenv("BENCH_DATA")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert datasets.data_folder() == tmp_path / "cache" / "gauntlet"
    assert not datasets.data_folder().exists()


# --- the official files ----------------------------------------------------------------------


@pytest.mark.row("M04")
@pytest.mark.parametrize("name", PLACES)
def test_official_files_have_the_declared_digest(name: str) -> None:
    found(name)
    images = datasets.load_dataset(OFFICIAL[name])
    counts = np.bincount(images.test.labels[:500])
    assert (counts == 500 // len(OFFICIAL[name].classes)).all()
    assert sorted(images.index.tolist()) == list(range(10_000))


def test_class_names_are_those_of_the_official_files() -> None:
    found("cifar100")
    root = os.environ["BENCH_DATA"]
    fine = torchvision_datasets.split_class(
        torchvision_datasets.Source("", "CIFAR100", ""), train=False
    )(root, train=False)
    assert tuple(fine.classes) == OFFICIAL["cifar100"].classes
    found("cifar10")
    coarse = torchvision_sets.CIFAR10(root, train=False)
    assert tuple(coarse.classes) == OFFICIAL["cifar10"].classes
    clothes = [name.lower() for name in torchvision_sets.FashionMNIST.classes]
    assert tuple(clothes) == ("t-shirt/top", *OFFICIAL["fashion-mnist"].classes[1:])


def test_the_test_half_alone_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    linked(found("mnist") / "raw", tmp_path / "MNIST" / "raw", lambda f: f.startswith("t10k"))
    linked(
        found("cifar10"),
        tmp_path / "cifar-10-batches-py",
        lambda f: f in ("test_batch", "batches.meta"),
    )
    whole = {
        name: datasets.first_examples(OFFICIAL[name], 50).digest for name in ("mnist", "cifar10")
    }
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    for name, digest in whole.items():
        assert datasets.load_dataset(OFFICIAL[name]).train is None
        assert datasets.first_examples(OFFICIAL[name], 50).digest == digest


def test_a_truncated_file_is_reported_and_not_downloaded_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = found("mnist") / "raw"
    linked(source, tmp_path / "MNIST" / "raw", lambda f: f == "t10k-labels-idx1-ubyte")
    cut = (source / "t10k-images-idx3-ubyte").read_bytes()[:1000]
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(cut)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(UnavailableError, match="mnist could not be read"):
        datasets.load_dataset(OFFICIAL["mnist"])


def test_a_training_half_that_is_not_official_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "MNIST" / "raw"
    labels = "train-labels-idx1-ubyte"
    linked(found("mnist") / "raw", place, lambda f: f != labels)
    content = bytearray((found("mnist") / "raw" / labels).read_bytes())
    content[-1] = (content[-1] + 1) % 10
    (place / labels).write_bytes(content)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"training half .* is not the official one"):
        datasets.load_dataset(OFFICIAL["mnist"])


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_without_files_and_network_the_message_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed = "http://127.0.0.1:9/"
    monkeypatch.setattr(torchvision_sets.MNIST, "mirrors", [closed])
    monkeypatch.setattr(torchvision_sets.CIFAR10, "url", closed + "cifar-10-python.tar.gz")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(
        UnavailableError, match=r"the download failed \(.*\); go online, or set BENCH_DA"
    ):
        datasets.load_dataset(OFFICIAL[name])
    assert not list(tmp_path.iterdir()), "a failed download left something behind"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without printing."""

    def log_message(self, *_: object, **__: object) -> None:
        """Print nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on a local port."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def test_missing_files_are_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packed = found("fashion-mnist") / "raw"
    if not list(packed.glob("*.gz")):
        pytest.skip("BENCH_DATA holds FashionMNIST without its packed files")
    expected = datasets.first_examples(OFFICIAL["fashion-mnist"], 100).digest
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "new"))
    with serving(packed) as address:
        monkeypatch.setattr(torchvision_sets.FashionMNIST, "mirrors", [address])
        assert datasets.first_examples(OFFICIAL["fashion-mnist"], 100).digest == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["FashionMNIST"]
    shutil.rmtree(tmp_path / "new")


def test_pixels_are_contiguous_for_any_memory_layout_of_the_input() -> None:
    """With other strides a convolution may take another path and give other last bits."""
    odd = torch.zeros(2, 8, 8, 1, dtype=torch.uint8).permute(0, 3, 1, 2)
    assert odd.stride() != (64, 64, 8, 1)
    assert to_float(odd).stride() == (64, 64, 8, 1)
