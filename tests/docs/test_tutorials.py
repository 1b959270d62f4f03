"""The tutorials, followed to the letter: a defense and an attack reach the leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.sandbox import isolation
from bench.store import Store
from tests.docs.pages import blocks
from tests.docs.walk import Reader

pytestmark = pytest.mark.slow


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(tmp_path, monkeypatch)


def report(reader: Reader, threat: str = "digits-linf") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(reader.run(f"bench report --threat {threat} --json"))
    return document


def row(document: dict[str, Any], defense: str) -> dict[str, Any]:
    (found,) = [row for row in document["ranking"] if row["defense"] == defense]
    return dict(found)


def test_a_checkpoint_gets_a_row(reader: Reader) -> None:
    reader.follow("docs/tutorials/evaluate-a-model.md")
    found = row(report(reader), "my-net")
    assert found["clean"]["k"] >= 85 and found["clean"]["n"] == 100
    assert found["robust"]["k"] < found["clean"]["k"]
    assert found["coverage"]["done"] == found["coverage"]["required"]
    assert found["tier"] == ("unsandboxed" if isolation.why_unavailable() else "sandboxed")


def test_a_first_defense_and_a_first_attack_reach_the_leaderboard(reader: Reader) -> None:
    reader.follow("docs/tutorials/first-defense.md")
    assert row(report(reader), "two-shades")["robust"]["n"] == 100
    with Store.open(read_only=True) as store:
        (entry,) = [s for s in store.submissions() if s.name == "two-shades"]
    assert [step.state for step in entry.history] == ["received", "queued", "running", "finished"]
    reader.follow("docs/tutorials/first-attack.md")
    reader.run("bench run --threat digits-linf --defense two-shades --examples 100")
    document = report(reader)
    cells = {(cell["defense"], cell["attack"]): cell for cell in document["matrix"]}
    for defense in ("two-shades", "undefended"):
        cell = cells[defense, "heavy-ball"]
        assert cell["state"] == "done"
        assert cell["robust"]["k"] < row(document, defense)["clean"]["k"]
    assert listed_submissions(reader) == {"two-shades": "finished", "heavy-ball": "finished"}


def listed_submissions(reader: Reader) -> dict[str, str]:
    items = json.loads(reader.run("bench list submissions --json"))["items"]
    return {item["name"]: item["state"] for item in items}


def test_the_plugin_of_the_readme_is_the_one_of_the_tutorial() -> None:
    (in_readme,) = [b.text for b in blocks("README.md") if b.language == "python" and b.file]
    (in_tutorial,) = [b.text for b in blocks("docs/tutorials/first-attack.md") if b.file]
    assert in_readme == in_tutorial
