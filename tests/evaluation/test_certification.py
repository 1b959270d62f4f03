"""Certifiers: a false certificate is detected, a failing certifier stops no run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from bench.evaluation.certification import why_not_certifiable
from bench.evaluation.events import Event, RunNotice
from bench.evaluation.launcher import MatrixRun, make_worker
from bench.evaluation.plan import Selection
from bench.plugin import Defense, ElasticField, ParametricSet, Patch, RotationTranslation
from bench.registry.registry import Registry
from bench.results import leaderboards, ranking
from bench.store import Store
from bench.threats.threat_model import ThreatModel
from tests.fixtures import planted_plugins
from tests.fixtures.known_models import small_cnn
from tests.fixtures.rejecting_defenses import (
    BALL,
)

SELECTION = Selection(threats=("digits-linf",), defenses=("linear",), attacks=("pgd",), examples=64)


CERTIFIERS = """
class CertifiesAll:
    name = "certifies-all"
    exact = False

    def refuses(self, module, ball):
        return ""

    def certify(self, module, x, y, ball):
        return y >= 0


class Failing(CertifiesAll):
    name = "failing"

    def certify(self, module, x, y, ball):
        raise ZeroDivisionError("division by zero")


class WrongType(CertifiesAll):
    name = "wrong-type"

    def certify(self, module, x, y, ball):
        return x


class Probabilistic(CertifiesAll):
    name = "probabilistic"
    error = 0.99


@hookimpl
def bench_certifiers():
    yield CertifiesAll()
    yield Failing()
    yield WrongType()
    yield Probabilistic()
"""


@pytest.mark.row("V09", "E22")
def test_a_false_certificate_is_detected_and_a_failing_certifier_stops_no_run(
    tmp_path: Path,
) -> None:
    registry = Registry.load(tmp_path / "none")
    registry.add_plugins([planted_plugins.planted_plugin(tmp_path, "certifiers", CERTIFIERS)])
    events: list[Event] = []
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    with Store.open(url) as store:
        make_worker(MatrixRun(SELECTION, url, quiet=True), store, registry, events.append).run()
        here = leaderboards.find_leaderboard(store, "digits-linf")
        known = {proof.certifier for proof in store.certificates(here.id, here.examples)}
        (row,) = ranking.load_ranking(store, here)
    assert known >= {"certifies-all", "probabilistic", "linear-exact"}
    assert not known & {"failing", "wrong-type"}
    notices = " ".join(event.text for event in events if isinstance(event, RunNotice))
    assert "failing gives no certificates for linear: ZeroDivisionError" in notices
    assert "bool [64] was expected" in notices
    (flag,) = [flag for flag in row.flags if flag.name == "soundness-error"]
    assert (row.verdict, flag.state) == ("invalid", "raised")
    assert "certified by certifies-all" in flag.evidence and "probabilistic" not in flag.evidence


def test_only_a_certifier_whose_code_changed_runs_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"

    def certified_counts(name: str, code: str) -> dict[str, int]:
        registry = Registry.load(tmp_path / "none")
        plugin = planted_plugins.planted_plugin(tmp_path, name, code)
        registry.add_plugins([replace(plugin, source=name)])
        with Store.open(url) as store:
            make_worker(
                MatrixRun(SELECTION, url, quiet=True), store, registry, lambda _: None
            ).run()
            here = leaderboards.find_leaderboard(store, "digits-linf")
            found = store.certificates(here.id, here.examples)
        return {proof.certifier: int(proof.certified.sum()) for proof in found}

    before = certified_counts("before", CERTIFIERS)
    after = certified_counts("after", CERTIFIERS.replace("return y >= 0", "return y < 0"))
    assert before["certifies-all"] == 64 and after["certifies-all"] == 0
    assert after["linear-exact"] == before["linear-exact"]


def test_no_certifier_applies_to_a_rejecting_defense() -> None:
    class Certain:
        def refuses(self, module: nn.Module, ball: object) -> str:
            return ""

    threat = ThreatModel("threat", "digits", BALL)
    record = Defense("guarded", lambda loader: small_cnn(), rejects=0.05)
    guarded: Any = SimpleNamespace(rejects=True, defense=record, module=None)
    plain: Any = SimpleNamespace(rejects=False, defense=record, module=None)
    certain: Any = Certain()
    assert "guarded rejects images" in why_not_certifiable(certain, guarded, threat)
    assert why_not_certifiable(certain, plain, threat) == ""


@pytest.mark.parametrize("ball", [RotationTranslation(), ElasticField(), Patch()])
def test_no_certifier_for_images_applies_to_parameters(ball: ParametricSet) -> None:
    registry = Registry.without_submissions()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    built: Any = SimpleNamespace(rejects=False, module=module)
    threat = ThreatModel("moved", "digits", ball)
    for found in registry.certifiers.values():
        why = why_not_certifiable(found.value, built, threat)
        assert why == f"{found.value.name} bounds images of norm balls; {ball.name} is none."
