"""Two machines with different arithmetic and cold caches share one database."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from bench.results.json_report import json_report
from bench.store import Store
from bench.store.tables import WEIGHTS
from tests.store.chunks import same_bits
from tests.store.machines import on_machine

NATIVE = torch.backends.cpu.get_cpu_capability()


@pytest.mark.slow
@pytest.mark.skipif(NATIVE == "DEFAULT", reason="this processor has one arithmetic")
def test_two_machines_share_weights_and_cells_and_name_what_they_disagree_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_ARTIFACTS", str(tmp_path / "artifacts"))
    one, two = tmp_path / "one", tmp_path / "two"
    attacks = ("pgd", "pgd-margin", "fgsm")
    assert on_machine(one, "", "run", url, "undefended", *attacks[:2]) == [NATIVE]
    both = on_machine(two, "default", "run", url, "undefended", *attacks)
    assert both == sorted([NATIVE, "DEFAULT"])
    with Store.open(url) as store:
        with store.reading() as connection:
            weights = connection.execute(select(WEIGHTS.c.digest, WEIGHTS.c.machine)).all()
        assert len(weights) == 1 and NATIVE in weights[0].machine
        copies = [path.stem for path in two.rglob("weights/*.safetensors")]
        assert copies == [weights[0].digest], "loaded, not trained"
        cells = store.cells()
        assert len({row.cell.defense_digest for row in cells}) == 1
        twice = Counter((row.cell.threat, row.cell.attack) for row in cells)
        assert set(twice.values()) == {1}
        before = {row.key: store.outcomes(row.key) for row in cells}
    results = on_machine(two, "default", "reproduce", url)
    assert not results[-1]["same"], "a cell whose verdict depends on the arithmetic"
    with Store.open(url) as store:
        second = store.replications(before)
        for result in results:
            first, (stored,) = before[result["cell"]], second[result["cell"]]
            found = store.replicated_outcomes(stored)
            differ = first.item[first.verdict != found.verdict].tolist()
            assert result["differ"] == differ and stored.differ == len(differ)
            for told in result["differences"]:
                assert told["first"]["verdict"] != told["second"]["verdict"]
                assert (told["first"]["margin"] > 0) == (told["first"]["verdict"] == "broken")
                assert (told["second"]["margin"] > 0) == (told["second"]["verdict"] == "broken")
            if result["recorded_on"] == [result["machine"]]:
                assert same_bits(first, found), "one machine repeats itself exactly"
        assert all(same_bits(store.outcomes(key), first) for key, first in before.items())
        assert store.check() == []
        report = json_report(store, "digits-linf")
    told = {cell["attack"]: cell["second"] for cell in report["matrix"]}
    assert sum(second["differ"] > 0 for found in told.values() for second in found) == 1
