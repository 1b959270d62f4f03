"""The organiser's tutorial: 20 zip files of which 5 are broken, PostgreSQL, two workers, a site."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.store import Store
from tests.docs.pages import blocks
from tests.docs.walk import Reader
from tests.store.conftest import postgres as postgres
from tests.store.conftest import server as server

PAGE = "docs/tutorials/run-a-challenge.md"
ENTRY = "nearest-mean"
GOOD = 15
ACCEPTED = [ENTRY, *(f"mean-{number:02d}" for number in range(1, GOOD))]


@pytest.mark.slow
def test_an_organiser_takes_in_a_folder_of_zip_files_and_publishes_a_leaderboard(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path, monkeypatch, server)
    for block in blocks(PAGE):
        if "bench submit entries" in block.text:
            hand_in(tmp_path)
        reader.do(block)
    with Store.open(read_only=True) as store:
        states = {entry.name: entry.state for entry in store.submissions()}
    assert [name for name in sorted(states) if states[name] == "finished"] == sorted(ACCEPTED)
    assert len([state for state in states.values() if state == "rejected"]) == len(BROKEN)
    document = json.loads(reader.run("bench report --threat pen-strokes-linf --json"))
    rows = {row["defense"]: row for row in document["ranking"]}
    assert set(rows) == set(ACCEPTED)
    for row in rows.values():
        assert row["coverage"] == {"done": 4, "required": 4}
        assert row["clean"]["n"] == 100 and row["robust"]["k"] <= row["clean"]["k"]
    assert rows[ENTRY]["clean"]["k"] > 75
    assert rows["mean-14"]["clean"]["k"] < rows[ENTRY]["clean"]["k"]
    assert (tmp_path / "site" / f"defense-{ENTRY}.html").is_file()
    assert not list(tmp_path.glob("*.db"))


def hand_in(folder: Path) -> None:
    """Add 14 entries whose class means are noisy, and one broken file of each kind."""
    for number, name in enumerate(ACCEPTED[1:], 1):
        pack(folder, name, number * 0.1)
    for number, break_ in enumerate(BROKEN):
        break_(folder, f"broken-{number}")


def pack(folder: Path, name: str, noise: float = 0.0) -> Path:
    """Write the zip file of an entry with the tutorial's code and noisy weights."""
    place = folder / "participants" / name
    shutil.copytree(folder / ENTRY, place)
    means = load_file(place / "weights.safetensors")["means"]
    means += noise * torch.randn(means.shape, generator=torch.Generator().manual_seed(0))
    save_file({"means": means}, place / "weights.safetensors")
    old = hashlib.sha256((folder / ENTRY / "weights.safetensors").read_bytes()).hexdigest()
    new = hashlib.sha256((place / "weights.safetensors").read_bytes()).hexdigest()
    for file in ("card.toml", "plugin.py"):
        text = (place / file).read_text().replace(ENTRY, name).replace(old, new)
        (place / file).write_text(text)
    return zipped(folder, place)


def zipped(folder: Path, place: Path) -> Path:
    """Pack an entry's folder into the organiser's folder."""
    archive = folder / "entries" / place.name
    return Path(shutil.make_archive(str(archive), "zip", place.parent, place.name))


def not_a_zip_file(folder: Path, name: str) -> None:
    (folder / "entries" / f"{name}.zip").write_text("not a zip file")


def other_weights_than_its_card_names(folder: Path, name: str) -> None:
    pack(folder, name)
    place = folder / "participants" / name
    save_file({"means": torch.zeros(10, 3 * 16 * 16)}, place / "weights.safetensors")
    zipped(folder, place)


def no_valid_python(folder: Path, name: str) -> None:
    pack(folder, name)
    place = folder / "participants" / name
    (place / "plugin.py").write_text("def build(:\n")
    zipped(folder, place)


def a_path_outside(folder: Path, name: str) -> None:
    with zipfile.ZipFile(pack(folder, name), "a") as archive:
        archive.writestr("../outside.py", "")


def the_name_of_another(folder: Path, name: str) -> None:
    """Other weights under the name of the tutorial's entry, in a file that comes later."""
    pack(folder, name, noise=0.5)
    place = folder / "participants" / name
    for file in ("card.toml", "plugin.py"):
        (place / file).write_text((place / file).read_text().replace(name, ENTRY))
    (folder / "entries" / f"{name}.zip").unlink()
    zipped(folder, place.rename(place.with_name(f"z-{name}")))


BROKEN: tuple[Callable[[Path, str], None], ...] = (
    not_a_zip_file, other_weights_than_its_card_names, no_valid_python, a_path_outside,
    the_name_of_another,
)  # fmt: skip
