"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 from torchvision's files or downloads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.plugin import Dataset, Images, Split, hookimpl
from plugins.datasets._balanced_order import balanced_order


@dataclass(frozen=True)
class Source:
    """One of torchvision's data sets."""

    name: str
    kind: str
    """The class in torchvision.datasets."""
    place: str
    """Its folder inside the data folder."""


def read(source: Source, folder: Path | None) -> Images:
    """The test half in its fixed order, and the training half where its files are present.

    Where the data set's folder is missing, it is downloaded into `folder`. The test half alone is
    enough. Raises FileNotFoundError where neither works.
    """
    if folder is None:
        raise FileNotFoundError("the data set needs a data folder; set BENCH_DATA to one.")
    if not (folder / source.place).exists():
        download(source, folder)
    test = read_split(source, folder, train=False)
    if test is None:
        raise FileNotFoundError(
            f"{folder / source.place} has no intact test half; delete that folder to "
            "have it downloaded again."
        )
    train = read_split(source, folder, train=True)
    order = balanced_order(test.labels, source.name)
    return Images(train, Split(test.images[order], test.labels[order]), order)


def read_split(source: Source, folder: Path, *, train: bool) -> Split | None:
    """One half as torchvision reads it; None where its files are missing."""
    try:
        found = split_class(source, train=train)(folder, train=train)
    except RuntimeError:
        return None
    images = np.asarray(found.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(images), np.asarray(found.targets, dtype=np.int64))


def split_class(source: Source, *, train: bool) -> Any:
    """The torchvision class, changed to require the files of one half only."""
    kind = dataset_class(source)
    if hasattr(kind, "resources"):  # images and labels of the training half, then of the test half
        wanted = {"resources": kind.resources[:2] if train else kind.resources[2:]}
    else:
        wanted = {"test_list" if train else "train_list": []}
    # The name is kept: torchvision derives the folder from it.
    return type(kind.__name__, (kind,), wanted)


def dataset_class(source: Source) -> Any:
    """The class in torchvision.datasets."""
    from torchvision import datasets  # imported here: it takes seconds

    return getattr(datasets, source.kind)


def download(source: Source, folder: Path) -> None:
    """Download into a temporary folder, then rename it.

    An interrupted download therefore leaves no data set behind. Raises FileNotFoundError where the
    download fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            dataset_class(source)(temporary, download=True)
            if not (folder / source.place).exists():
                (Path(temporary) / source.place).rename(folder / source.place)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileNotFoundError(
            f"no data set in {folder}, and the download failed ({reason}); go online, or set "
            f"BENCH_DATA to a folder that contains torchvision's {source.place}."
        ) from error


NUMERALS = tuple("0123456789")
CLOTHING = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR100_CLASSES = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl
boy bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"""


@hookimpl
def bench_datasets() -> Iterator[Dataset]:
    """Register the four; their files are read when an evaluation needs them."""
    yield Dataset(
        name="mnist",
        classes=NUMERALS,
        shape=(1, 28, 28),
        load=partial(read, Source("mnist", "MNIST", "MNIST")),
        test_size=10_000,
        digest="0996a7b031a4ac107a7f0464b8174cb09115d32ea9d50dd539e89a88a08ee806",
        train_digest="4f6a85d712059264fcc6f54fc3c78d6585fd93e3d0ea46069810d0f7dc9924df",
        place="MNIST",
        cite="http://yann.lecun.com/exdb/mnist/",
        summary="70,000 handwritten digits, 28 x 28 grey levels.",
    )
    yield Dataset(
        name="fashion-mnist",
        classes=CLOTHING,
        shape=(1, 28, 28),
        load=partial(read, Source("fashion-mnist", "FashionMNIST", "FashionMNIST")),
        test_size=10_000,
        digest="fa3d372795daa6e21f96e7800b7ce732c00bab9cd1b7dbb8f2cd8ec6748ff722",
        train_digest="985707f37b4d02cf4a51e0684c872cf1226c7b7e3af17128e1cb4af4244c3a29",
        place="FashionMNIST",
        cite="arXiv:1708.07747",
        summary="70,000 pieces of clothing, 28 x 28 grey levels.",
    )
    yield Dataset(
        name="cifar10",
        classes=CIFAR10_CLASSES,
        shape=(3, 32, 32),
        load=partial(read, Source("cifar10", "CIFAR10", "cifar-10-batches-py")),
        test_size=10_000,
        digest="417cd263e2b73b6644c658222ddd544d2c27ee0fe24d0769638c53cf9c04a439",
        train_digest="fc3ac726863fba99843028b00ec7397c8a5bafccc8dd22bbef70eecc9473fb2b",
        place="cifar-10-batches-py",
        cite="https://www.cs.toronto.edu/~kriz/cifar.html",
        summary="60,000 photographs of animals and vehicles, 32 x 32 in colour.",
    )
    yield Dataset(
        name="cifar100",
        classes=tuple(CIFAR100_CLASSES.split()),
        shape=(3, 32, 32),
        load=partial(read, Source("cifar100", "CIFAR100", "cifar-100-python")),
        test_size=10_000,
        digest="a64063d5819dce3275299631718fb1936d047b8a2fd16bf7069ea838bbbe2756",
        place="cifar-100-python",
        cite="https://www.cs.toronto.edu/~kriz/cifar.html",
        summary="60,000 photographs of a hundred kinds of things, 32 x 32 in colour.",
    )
