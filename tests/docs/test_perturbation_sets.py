"""The how-to on perturbation sets, followed to the letter: a set of a stranger reaches a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.store import Store
from tests.docs.pages import blocks
from tests.docs.walk import Reader

PAGE = "docs/howto/perturbation-sets.md"


def test_the_plugin_has_at_most_30_lines_of_code() -> None:
    (plugin,) = [block.text for block in blocks(PAGE) if block.file]
    assert len([line for line in plugin.splitlines() if line.strip()]) <= 30


@pytest.mark.slow
@pytest.mark.row("G10")
def test_a_set_from_the_page_goes_through_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path, monkeypatch)
    reader.follow(PAGE)
    text = reader.run("bench report --threat colour-shift --json")
    document = json.loads(text)
    assert {row["rank"] for row in document["ranking"]} == {None}
    robust = {(c["defense"], c["attack"]): c["robust"]["k"] for c in document["matrix"]}
    for defense in ("linear", "undefended"):
        assert robust[defense, "apgd-ce"] < robust[defense, "random"]
    with Store.open(read_only=True) as store:
        assert store.check() == []
        for row in store.cells():
            if row.cell.threat == "digits-universal-linf":
                assert store.fit(row.key) is not None
                continue
            found = store.points(row.key)
            assert (found is None) == (row.cell.attack == "clean")
            if found is not None:
                items, points = found
                assert items.tolist() == list(range(100)) and points.shape == (100, 2, 1)
                assert torch.from_numpy(points).abs().max() <= 1 + 1e-6
