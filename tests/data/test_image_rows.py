"""Clean images in windows: the same outcomes, and memory that does not grow with their number."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.core.errors import PluginError
from bench.core.outcomes import Chunk, Outcomes, Verdict
from bench.data import image_rows
from bench.data.datasets import Examples
from bench.data.image_rows import ImageRows, blocks, clean_images, selected, windows
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.certification import certificates_of
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.pixel_guard import PixelGuard
from bench.evaluation.plan import Selection, single_pair
from bench.registry.registry import Registry
from plugins.datasets import image_folder

CPU = RunSettings(torch.device("cpu"), 64)
N = 150
SIZE = 224
PROGRAM = """
import json, resource, sys, torch
from torch import nn
import bench
net = nn.Sequential(nn.AvgPool2d(224), nn.Flatten(), nn.Linear(3, 2))
net[2].weight.data = torch.tensor([[-1.0] * 3, [1.0] * 3])
net[2].bias.data = torch.tensor([3.0, -3.0]) * 79.5 / 255  # the mean of the dark images
found = bench.evaluate(net, ("image-folder", int(sys.argv[1])), eps="1/255",
                       attacks=["pgd[steps=2]"], progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([peak, found.n, found.clean.k, found.robust.k]))
"""


def images(n: int = 20) -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (n, 1, 8, 8), np.uint8)


def test_rows_are_those_of_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clean_images(images(), "cpu")
    monkeypatch.setattr(image_rows, "WHOLE_BYTES", 0)
    rows = clean_images(images(), "cpu")
    assert isinstance(whole, torch.Tensor) and isinstance(rows, ImageRows)
    assert rows.shape == whole.shape and len(rows) == 20 and rows.device == whole.device
    some = torch.tensor([3, 0, 3])
    for at in (slice(2, 7), some, 5, slice(18, 40), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(rows[at], whole[at])
    chosen = selected(rows, some)
    assert isinstance(chosen, ImageRows) and torch.equal(chosen[:], whole[some])
    assert torch.equal(selected(chosen, torch.tensor([1]))[:], whole[:1])
    monkeypatch.setattr(image_rows, "WINDOW", 8)
    for parts in (list(windows(rows)), list(blocks(rows, 8)), list(blocks(whole, 8))):
        assert [len(part) for part in parts] == [8, 8, 4]
        assert torch.equal(torch.cat(parts), whole)


def played(attack: str, defense: str, threat: str) -> tuple[Outcomes, list[Chunk]]:
    registry = Registry.without_submissions()
    selection = Selection((threat,), (defense,), (attack,), examples=N)
    cache = DefenseCache(registry=registry, selection=selection, settings=CPU)
    pair = single_pair(registry, selection, "a test")
    built = cache.defense(pair.defense, pair.threat)
    assert isinstance(built.x, ImageRows) == (image_rows.WHOLE_BYTES == 0)
    with torch.random.fork_rng([]):
        chunks = list(CellPlayer("all").chunks(pair, built, cache.surrogate(pair)))
    return Outcomes.concatenate([chunk.outcomes for chunk in chunks]), chunks


@pytest.mark.parametrize(
    ("attack", "defense", "threat"),
    [
        ("pgd[steps=3,rate=0.5]", "linear", "digits-linf"),
        ("square", "naive-bayes", "digits-linf"),
        ("deepfool", "linear", "digits-l2"),
        ("pgd-restarts[steps=4,restarts=3]", "linear", "digits-linf"),
    ],
)
def test_outcomes_and_images_are_the_same_in_windows(
    attack: str, defense: str, threat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, chunks = played(attack, defense, threat)
    monkeypatch.setattr(image_rows, "WHOLE_BYTES", 0)
    after, others = played(attack, defense, threat)
    assert 0 < (before.verdict == Verdict.BROKEN).sum() < N
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)
    for chunk, same in zip(chunks, others, strict=True):
        assert chunk.exact is not None and same.exact is not None
        np.testing.assert_array_equal(chunk.exact[1], same.exact[1])
        for mine, other in zip(chunk.images, same.images, strict=True):
            np.testing.assert_array_equal(mine.original, other.original)
            np.testing.assert_array_equal(mine.adversarial, other.adversarial)


def test_misclassified_images_are_judged_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is misclassified at once where the labels are wrong."""
    registry = Registry.without_submissions()
    selection = Selection(("digits-linf",), ("linear",), ("fgsm",), examples=N)
    cache = DefenseCache(registry=registry, selection=selection, settings=CPU)
    pair = single_pair(registry, selection, "a test")
    built = cache.defense(pair.defense, pair.threat)
    labels = (built.examples.labels + 1) % 10
    built.examples = Examples(built.dataset.name, built.examples.images, labels, "wrong labels")
    chunks = list(CellPlayer().chunks(pair, built))
    whole = Outcomes.concatenate([chunk.outcomes for chunk in chunks])
    assert sorted(whole.item.tolist()) == list(range(N))
    assert max(len(chunk.outcomes.item) for chunk in chunks) <= 64 + 64
    broken = whole.verdict == Verdict.BROKEN
    assert broken.sum() > 0.9 * N and (whole.forwards[broken] == 0).sum() > 0.9 * N


def test_certificates_are_the_same_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.without_submissions()
    selection = Selection(("digits-linf-half",), ("linear",), ("fgsm",), examples=N)
    pair = single_pair(registry, selection, "a test")
    certifier = registry.certifiers["linear-exact"].value
    found = []
    for limit in (image_rows.WHOLE_BYTES, 0):
        monkeypatch.setattr(image_rows, "WHOLE_BYTES", limit)
        cache = DefenseCache(registry=registry, selection=selection, settings=CPU)
        built = cache.defense(pair.defense, pair.threat)
        certified = certificates_of(certifier, built, pair.threat)
        assert certified is not None and 0 < certified.sum() < N
        found.append(certified)
    assert torch.equal(*found)


def test_a_write_into_images_in_windows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_rows, "WHOLE_BYTES", 0)
    pixels, labels = images(), np.zeros(20, np.int64)
    guard = PixelGuard(Examples("d", pixels, labels, ""), torch.device("cpu"))
    guard.check("a plugin")
    pixels[7, 0, 3, 3] ^= 1
    guard.check("a plugin", np.array([6, 8]))
    for rows in (None, np.array([7])):
        with pytest.raises(PluginError, match="a plugin changed 1 of"):
            guard.check("a plugin", rows)


def folder(place: Path, count: int) -> Path:
    """Small images of two classes, which are scaled to SIZE when they are read."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (place / name).mkdir(parents=True)
        for number in range(count // 2):
            pixels = draw.integers(80 * label, 80 * label + 160, (48, 48, 3), np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number:05}.bmp")
    return place


def test_a_large_folder_is_mapped_and_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder(tmp_path / "images", 12)
    small = image_folder.folder_images(place, 32, 12, "d")
    monkeypatch.setattr(image_folder, "IN_MEMORY", 0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    large = image_folder.folder_images(place, 32, 12, "d")
    assert isinstance(large.test.images, np.memmap) and not isinstance(small.test.images, np.memmap)
    np.testing.assert_array_equal(large.test.images, small.test.images)
    np.testing.assert_array_equal(large.index, small.index)
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        large.test.images.flags.writeable = True
        large.test.images[0] = 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"], "the file has no name"
    del large
    gc.collect()


def peak(place: Path, n: int) -> list[int]:
    """Peak memory in bytes, examples, right ones and robust ones of PGD-2 on n images."""
    more = {"BENCH_IMAGE_FOLDER": str(place), "BENCH_IMAGE_SIZE": str(SIZE),
            "BENCH_IMAGE_EXAMPLES": str(n), "TMPDIR": str(place.parent)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(n)], env={**os.environ, **more}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    found: list[int] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """2,000 images of 3 x 224 x 224 take at most 1.5 GB above 200; their floats are 1.2 GB."""
    place = folder(tmp_path / "images", 2000)
    (few, *_), (many, n, clean, robust) = peak(place, 200), peak(place, 2000)
    assert many - few <= 1.5e9, f"{(many - few) / 1e9:.2f} GB"
    assert n == 2000 and 1000 <= robust < clean < 2000, "half of the images are near the boundary"
