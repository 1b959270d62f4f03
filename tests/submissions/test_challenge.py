"""`bench new challenge`: the package registers the organiser's images and no others."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.contract.check import CheckOutcome
from bench.contract.runner import check_registration
from bench.core.errors import BenchError, UnavailableError
from bench.data.datasets import first_examples
from bench.registry.discovery import Plugin
from bench.registry.registry import Registry
from bench.submissions.challenge import write_challenge
from tests.plugins.datasets.test_image_folder import save

ROOT = Path(__file__).parents[2]
NAME = "sea-birds.2"
CLASSES = ('gull "white"', "puffin", "tern {x}")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the challenge's images: two of each class, 24 x 16 pixels."""
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    for place, label in enumerate(CLASSES):
        for level in (10, 200):
            save(tmp_path / "data" / NAME / label / f"{level}.png", level + place, (24, 16))
    return tmp_path / "data" / NAME


def registered(place: Path) -> Registry:
    """The built-in plugins and those of the package."""
    registry = Registry.without_submissions()
    path = place / "bench_sea_birds_2.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    registry.add_plugins([Plugin(module, "package", str(path))])
    assert registry.problems == []
    return registry


def test_the_package_registers_the_images_of_the_folder(images: Path, tmp_path: Path) -> None:
    registry = registered(write_challenge(NAME, tmp_path / "work", 8, 1000))
    dataset = registry.find("dataset", NAME).value
    assert dataset.classes == CLASSES
    assert (dataset.shape, dataset.test_size) == ((3, 8, 8), 6)
    examples = first_examples(dataset, 6)
    assert examples.digest == dataset.digest
    assert sorted(examples.images.mean((1, 2, 3)) - examples.labels) == [10, 10, 10, 200, 200, 200]
    for norm, radius in (("linf", 8 / 255), ("l2", 0.5)):
        threat = registry.find("threat", f"{NAME}-{norm}").value
        assert (threat.dataset, float(threat.ball.eps), threat.examples) == (NAME, radius, 6)


def test_the_package_passes_the_contract(images: Path, tmp_path: Path) -> None:
    registry = registered(write_challenge(NAME, tmp_path / "work", 8, 1000))
    for kind, name in (("dataset", NAME), ("threat", f"{NAME}-linf"), ("threat", f"{NAME}-l2")):
        results = check_registration(registry, kind, registry.find(kind, name))
        failed = [r for r in results if r.outcome is CheckOutcome.FAIL]
        assert failed == []


def test_at_most_the_given_number_of_images_is_read(images: Path, tmp_path: Path) -> None:
    registry = registered(write_challenge(NAME, tmp_path / "work", 8, 4))
    assert registry.find("dataset", NAME).value.test_size == 4


@pytest.mark.parametrize("change", ["another image", "one more", "one less", "another class"])
def test_other_images_are_refused(images: Path, tmp_path: Path, change: str) -> None:
    dataset = registered(write_challenge(NAME, tmp_path, 8, 1000)).find("dataset", NAME).value
    if change == "one less":
        (images / "puffin" / "10.png").unlink()
    elif change == "another class":
        (images / "puffin").rename(images / "auk")
    else:
        save(
            images / "puffin" / ("10.png" if change == "another image" else "11.png"), 99, (24, 16)
        )
    with pytest.raises(BenchError):
        first_examples(dataset, 6)


def test_the_module_passes_the_linter(images: Path, tmp_path: Path) -> None:
    place = write_challenge(NAME, tmp_path / "work", 8, 1000)
    for tool in (["ruff", "check", "--no-cache"], ["ruff", "format", "--check", "--no-cache"]):
        config = ["--config", str(ROOT / "pyproject.toml")]
        command = [sys.executable, "-m", *tool, *config, str(place / "bench_sea_birds_2.py")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("none", "does not exist"), ("empty", "has no class folder"), ("a-file", "is a file")],
)
def test_images_that_cannot_be_read_are_refused_before_anything_is_written(
    images: Path, tmp_path: Path, name: str, sentence: str
) -> None:
    (images.parent / "empty").mkdir()
    (images.parent / "a-file").write_text("")
    with pytest.raises(UnavailableError, match=sentence) as caught:
        write_challenge(name, tmp_path / "work", 8, 1000)
    assert str(images.parent / name) in str(caught.value)
    assert not (tmp_path / "work").exists()


def test_an_image_that_cannot_be_decoded_is_named_before_anything_is_written(
    images: Path, tmp_path: Path
) -> None:
    (images / "puffin" / "10.png").write_bytes(b"no image")
    with pytest.raises(UnavailableError, match=r"puffin/10\.png"):
        write_challenge(NAME, tmp_path / "work", 8, 1000)
    assert not (tmp_path / "work").exists()


def test_the_command_writes_the_package_and_says_what_comes_next(
    images: Path, tmp_path: Path
) -> None:
    words = ["new", "challenge", NAME, "--folder", str(tmp_path), "--size", "8"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [str(tmp_path / NAME)]
    assert "uv pip install" in done.stderr
    assert sorted(path.name for path in (tmp_path / NAME).iterdir()) == [
        "README.md",
        "bench_sea_birds_2.py",
        "pyproject.toml",
    ]


def test_options_of_a_challenge_are_refused_for_other_kinds(tmp_path: Path) -> None:
    words = ["new", "attack", "mine", "--folder", str(tmp_path), "--size", "8"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, BenchError)
    assert list(tmp_path.iterdir()) == []
