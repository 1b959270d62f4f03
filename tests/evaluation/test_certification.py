"""Certificates on the board: who lies is caught, and every curve stays under what attacks left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.evaluation.events import Event
from bench.evaluation.launcher import MatrixRun, make_worker
from bench.evaluation.plan import Selection
from bench.registry.registry import Registry
from bench.results import leaderboards, ranking
from bench.store import Store
from tests.fixtures import planted_plugins

SELECTION = Selection(threats=("digits-linf",), defenses=("linear",), attacks=("pgd",), examples=64)


LIARS = """
class Liar:
    name = "liar"
    exact = False

    def refuses(self, module, ball):
        return ""

    def certify(self, module, x, y, ball):
        return y >= 0


class Broken(Liar):
    name = "broken"

    def certify(self, module, x, y, ball):
        raise ZeroDivisionError("nobody divides by me")


class Mumbling(Liar):
    name = "mumbling"

    def certify(self, module, x, y, ball):
        return x


class Guessing(Liar):
    name = "guessing"
    error = 0.99


@hookimpl
def bench_certifiers():
    yield Liar()
    yield Broken()
    yield Mumbling()
    yield Guessing()
"""


@pytest.mark.row("V09")
def test_a_lying_certifier_is_caught_and_a_broken_one_stops_nobody(tmp_path: Path) -> None:
    registry = Registry.load(tmp_path / "none")
    registry.add_plugins([planted_plugins.module(tmp_path, "liars", LIARS)])
    told: list[Event] = []
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    with Store.open(url) as store:
        make_worker(MatrixRun(SELECTION, url, quiet=True), store, registry, told.append).run()
        here = leaderboards.find_leaderboard(store, "digits-linf")
        known = {proof.certifier for proof in store.certificates(here.id, here.examples)}
        (row,) = ranking.ranking(store, here)
    assert known >= {"liar", "guessing", "linear-exact"} and not known & {"broken", "mumbling"}
    odd = " ".join(event.text for event in told if event.kind == "odd")
    assert "broken proves nothing of linear: ZeroDivisionError" in odd
    assert "bool [64] is due" in odd
    (flag,) = [flag for flag in row.flags if flag.name == "soundness-error"]
    assert (row.verdict, flag.state) == ("invalid", "raised")
    assert "proved by liar" in flag.evidence and "guessing" not in flag.evidence


def test_whose_code_changed_is_asked_again_and_nobody_else(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"

    def proved(name: str, code: str) -> dict[str, int]:
        registry = Registry.load(tmp_path / "none")
        plugin = planted_plugins.module(tmp_path, name, code)
        registry.add_plugins([replace(plugin, source=name)])
        with Store.open(url) as store:
            make_worker(
                MatrixRun(SELECTION, url, quiet=True), store, registry, lambda _: None
            ).run()
            here = leaderboards.find_leaderboard(store, "digits-linf")
            found = store.certificates(here.id, here.examples)
        return {proof.certifier: int(proof.certified.sum()) for proof in found}

    before = proved("before", LIARS)
    after = proved("after", LIARS.replace("return y >= 0", "return y < 0"))
    assert before["liar"] == 64 and after["liar"] == 0
    assert after["linear-exact"] == before["linear-exact"]
