"""bench doctor: reads the data sets that are present and reports damaged ones."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest

from bench.cli.doctor import DoctorFinding, examine_machine
from bench.data import datasets
from bench.registry.registry import Registry
from tests.plugins.datasets.test_image_folder import save

PLACES = ("MNIST", "FashionMNIST", "cifar-10-batches-py", "cifar-100-python")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("bench doctor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def found(name: str) -> DoctorFinding:
    return next(finding for finding in examine_machine(None) if finding.name == name)


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_with_damaged_files_is_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    (tmp_path / place / "raw").mkdir(parents=True)
    (tmp_path / place / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"junk")
    finding = found("data")
    assert not finding.fit
    assert f"{tmp_path / place} has no intact test half" in finding.sentence
    assert "read and checked: digits;" in finding.sentence


def test_an_empty_data_folder_is_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    assert found("data").fit
    assert list(tmp_path.iterdir()) == []


def test_data_sets_that_are_present_are_read_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = Registry.load().datasets
    there = [
        n
        for n, o in sets.items()
        if o.value.place and (datasets.data_folder() / o.value.place).exists()
    ]
    if not there:
        pytest.skip("no data set lies here")
    assert all(name in found("data").sentence for name in there)


def test_an_image_folder_is_listed_with_its_settings_and_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", str(tmp_path / "images"))
    monkeypatch.setenv("BENCH_IMAGE_SIZE", "7")
    missing = found("data")
    assert not missing.fit
    assert "images does not exist; name a folder" in missing.sentence
    save(tmp_path / "images" / "dogs" / "1.png")
    read = found("data")
    assert read.fit
    digest = datasets.first_examples(Registry.load().datasets["image-folder"].value, 1).digest
    sentence = f"image-folder (1 images of 1 classes in {tmp_path / 'images'}. 1 are read as "
    assert f"{sentence}7 x 7 pixels, digest {digest})" in read.sentence
