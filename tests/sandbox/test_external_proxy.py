"""A sandboxed external attack runs bit for bit as in this process, with the same counts.

Covers bench.sandbox.external_worker too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from bench.contract.check import CheckOutcome
from bench.contract.runner import CHECKS, check_registration
from bench.core.errors import PluginError
from bench.plugin import Traits
from bench.registry.cards import attack_digest
from bench.registry.registry import Registry
from bench.sandbox import external_proxy
from bench.sandbox.external_proxy import ExternalAttackProxy
from bench.threats.access import Access, Budget
from bench.threats.threat_model import Goal
from tests.engine.single_run import NEAREST, NoisyModel, SingleRun
from tests.sandbox.isolated import sandboxed, write_submission
from tests.sandbox.test_attack_proxy import BALLS, BUILT_IN, LabelsOnlyRun, check_same, pair

pytestmark = pytest.mark.usefixtures("sandbox")

OWN = '''
"""An attack with a loop of its own, which draws from every generator."""

import random

import numpy as np
import torch
from torch.nn import functional

from bench.plugin import Access, hookimpl


class Own:
    name = "{name}"
    needs = Access.{needs}
    rows = {rows}

    def prepare(self):
        self.ready = torch.rand(1)

    def gradient(self, problem, adv):
        leaf = adv.detach().clone().requires_grad_()
        logits = problem.model(leaf)
        functional.cross_entropy(logits, problem.y, reduction="sum").backward()
        return leaf.grad

    def run(self, problem):
        x, radius = problem.x, problem.ball.radius * float(self.ready < 2)
        {run}


@hookimpl
def bench_attacks():
    yield Own()
'''
SIGN_STEPS = """
        keyed = problem.uniform("a", x.shape[1:])
        noise = torch.rand_like(x) + np.random.rand() + random.random() + keyed
        adv = problem.ball.project(x + radius * (noise - 2), x)
        for _ in range({steps}):
            adv = problem.ball.project(adv + radius / 4 * self.gradient(problem, adv).sign(), x)
        return adv
"""
SCORES = """
        adv, best = x.clone(), problem.model(x).gather(1, problem.y[:, None])[:, 0]
        for _ in range(6):
            near = problem.ball.project(adv + radius * torch.randn_like(x).sign(), x)
            found = problem.model(near).gather(1, problem.y[:, None])[:, 0]
            better = (found < best)[:, None, None, None]
            adv, best = torch.where(better, near, adv), torch.minimum(best, found)
        return adv
"""
SOME_ROWS = """
        rows = torch.arange(0, len(x), 2)
        with problem.model.for_rows(rows):
            leaf = x[rows].clone().requires_grad_()
            problem.model(leaf).logsumexp(1).sum().backward()
        adv = x.clone()
        adv[rows] = problem.ball.project(x[rows] + radius * leaf.grad.sign(), x[rows])
        return adv
"""
MANY_IMAGES = """
        noise = radius * torch.randn(40, *x.shape[1:]).sign()
        many = problem.ball.project(x + noise, x.expand(40, -1, -1, -1))
        logits = problem.model(many)
        return many[logits[:, problem.y[0]].argmin()][None]
"""
SECOND_DIRECTION = """
        leaf = x.clone().requires_grad_()
        logits = problem.model(leaf)
        true = logits.gather(1, problem.y[:, None]).sum()
        first, = torch.autograd.grad(true, leaf, retain_graph=True)
        second, = torch.autograd.grad(logits.logsumexp(1).sum(), leaf)
        with torch.no_grad():
            problem.model(leaf)
        return problem.ball.project(x + radius * (second - first).sign(), x)
"""


def source(run: str, needs: str = "GRADIENTS", rows: int = 64) -> str:
    """An attack with this body of `run`."""
    return (
        OWN.replace("{run}", run.strip()).replace("{needs}", needs).replace("{rows}", str(rows))
    )  # fmt: skip


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "draws of every generator": (source(SIGN_STEPS.format(steps=3)), {}),
    "a budget of gradients": (
        source(SIGN_STEPS.format(steps=4)), {"budget": Budget(gradients=2)}
    ),
    "a budget of queries": (source(SCORES, "SCORES"), {"budget": Budget(queries=4)}),
    "scores": (source(SCORES, "SCORES", rows=0), {}),
    "labels": (source(SCORES, "LABELS"), {}),
    "named rows": (source(SOME_ROWS), {}),
    "one example, many images": (source(MANY_IMAGES, "SCORES", rows=1), {"count": 12}),
    "two gradients of one answer": (source(SECOND_DIRECTION), {}),
    "a random defense": (
        source(SIGN_STEPS.format(steps=2)), {"model": NoisyModel(0.1), "random": True}
    ),
    "a targeted goal": (source(SIGN_STEPS.format(steps=2)), {"goal": Goal("targeted", "next")}),
    "the nearest success": (source(SIGN_STEPS.format(steps=2)), {"goal": NEAREST}),
}  # fmt: skip


QUICK = ("draws of every generator", "a budget of queries")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_it_gives_the_same_results_as_in_this_process(case: str, tmp_path: Path) -> None:
    text, rules = CASES[case]
    inside, here = pair(tmp_path, text)
    assert isinstance(inside.value, ExternalAttackProxy)
    assert attack_digest(inside) == attack_digest(here)
    assert Traits.of(inside.value) == Traits.of(here.value)
    check_same(inside, here, **rules)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["foolbox-ddn", "adv-lib-fmn-linf", "art-simba"])
def test_an_attack_of_a_library_gives_the_same_results_in_the_sandbox(
    name: str, tmp_path: Path
) -> None:
    known = Registry.without_submissions().attacks[name]
    text = BUILT_IN.replace("{module}", known.module).replace("{of}", name).replace("{most}", "{}")
    inside, here = pair(tmp_path, text)
    traits = Traits.of(here.value)
    goal = NEAREST if traits.minimises else Goal()
    rules = {"ball": BALLS[(traits.norms or ("Linf",))[0]], "goal": goal}
    check_same(inside, here, budget=Budget(gradients=60, queries=60), **rules)


@pytest.mark.slow
def test_its_card_is_the_same_as_in_this_process(tmp_path: Path) -> None:
    inside, here = pair(tmp_path, source(SCORES, "SCORES"))
    registry = sandboxed(tmp_path)
    assert registry.attack_card("mine").steps is None
    assert (inside.isolation, registry.problems) == ("sandboxed", [])
    assert not hasattr(inside.value, "start") and not hasattr(inside.value, "step")
    assert Traits.restart_count(inside.value, 10) == Traits.restart_count(here.value, 10) == 1


@pytest.mark.slow
def test_every_check_of_its_contract_can_be_run(tmp_path: Path) -> None:
    write_submission(tmp_path, source(SIGN_STEPS.format(steps=3)), kind="attack")
    registry = sandboxed(tmp_path)
    results = list(check_registration(registry, "attack", registry.find("attack", "mine")))
    assert len(results) == len(CHECKS["attack"])
    assert [r for r in results if r.outcome is CheckOutcome.FAIL] == []
    assert sum(r.outcome is CheckOutcome.PASS for r in results) > 10


@pytest.mark.slow
def test_a_run_that_was_stopped_keeps_its_process(tmp_path: Path) -> None:
    inside, _ = pair(tmp_path, source(SCORES, "SCORES", rows=1))
    attack = inside.value
    assert isinstance(attack, ExternalAttackProxy)
    SingleRun(attack, count=6, budget=Budget(queries=2)).run()
    process = attack.process
    assert process is not None and process.alive
    SingleRun(attack, count=6, budget=Budget(queries=2)).run()
    assert attack.process is process


RUNS = {
    "an image of another type": ("problem.model(x.double())", "float64 images; float32"),
    "an image of another shape": ("problem.model(x[:, :, 1:])", "was expected"),
    "more images than rows": ("problem.model(torch.cat([x, x]))", "rows are unknown"),
    "an unknown row": (
        "\n        with problem.model.for_rows(torch.tensor([len(x)])):"
        "\n            problem.model(x[:1])", "invalid query: ('rows'"
    ),
    "a row twice": (
        "\n        with problem.model.for_rows(torch.zeros(2, dtype=torch.int64)):"
        "\n            problem.model(x[:2])", "named a row twice"
    ),
    "no tensor": ("return x.numpy()", "run returned ndarray; a tensor of images"),
    "nothing": ("return None", "run returned NoneType"),
    "another dtype": ("return x.double()", "run returned"),
    "another shape": ("return x[1:]", "run returned"),
    "its own error": ("raise KeyError('mine')", "KeyError"),
    "an exit": ("import sys; sys.exit(3)", "SystemExit"),
    "the end of its process": ("import os; os._exit(0)", "gave no answer"),
    "a stop that the engine did not order": (
        "from bench.engine.external_model import AttackStopped; raise AttackStopped", "was stopped"
    ),
    "a released graph that is no number": (
        "problem.model._released.append([0]); problem.model(x)", "invalid query: ('released'"
    ),
    "a graph that is not there": (
        "problem.model.gradient(7, torch.zeros(len(x), 10))", "invalid query: ('backward', 7"
    ),
    "an unknown query": (
        "problem.model._answer({'request': 'labels'}, {})", "invalid query: ('labels'"
    ),
    "a message in place of a query": (
        "problem.model._channel.reply({'request': ['forward']}, {})", "invalid query"
    ),
}  # fmt: skip


@pytest.mark.slow
def test_what_a_run_may_not_do_is_the_plugin_s_fault(tmp_path: Path) -> None:
    cases = [run for run, _ in RUNS.values()]
    choice = "".join(
        f"if problem.budget.queries == {number}:\n            {run.strip()}\n        "
        for number, run in enumerate(map(indented, cases), 1000)
    )
    write_submission(tmp_path, source(f"{choice}return x"), kind="attack")
    inside = sandboxed(tmp_path).find("attack", "mine")
    for number, (case, (_, message)) in enumerate(RUNS.items(), 1000):
        with pytest.raises(PluginError) as raised:
            SingleRun(inside.value, count=32, budget=Budget(queries=number)).run()
        assert message in str(raised.value), case


def indented(run: str) -> str:
    """The same statements, four columns further to the right."""
    return run.replace("\n", "\n    ")


def test_an_invalid_query_is_the_plugin_s_fault(tmp_path: Path) -> None:
    run = "problem.model._released.append([0]); problem.model(x); return x"
    write_submission(tmp_path, source(run), kind="attack")
    inside = sandboxed(tmp_path).find("attack", "mine")
    with pytest.raises(PluginError, match=r"sent an invalid query: \('released', \[\[0\]\]\)"):
        SingleRun(inside.value, count=32).run()


@pytest.mark.slow
def test_gradients_need_access(tmp_path: Path) -> None:
    inside, here = pair(tmp_path, source(SIGN_STEPS.format(steps=2)))
    for offer in (inside, here):
        with pytest.raises(PluginError, match="does not require grad"):
            LabelsOnlyRun(offer.value, count=32).run()
    scores = source(SIGN_STEPS.format(steps=2), "SCORES")
    (tmp_path / "scores").mkdir()
    inside, _ = pair(tmp_path / "scores", scores)
    assert inside.value.needs is Access.SCORES
    with pytest.raises(PluginError, match="does not require grad"):
        SingleRun(inside.value, count=32).run()


@pytest.mark.slow
def test_graphs_that_no_tensor_needs_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_proxy, "MAX_GRAPHS", 4)
    inside, here = pair(tmp_path, source(SIGN_STEPS.format(steps=8)))
    check_same(inside, here)
    keeps = "kept = [problem.model(x.clone().requires_grad_()) for _ in range(9)]\n        return x"
    (tmp_path / "keeps").mkdir()
    inside, _ = pair(tmp_path / "keeps", source(keeps))
    with pytest.raises(PluginError, match="keeps the graphs of 4 answers"):
        SingleRun(inside.value, count=32).run()


@pytest.mark.slow
def test_a_run_beyond_its_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_submission(tmp_path, source("import time; time.sleep(30); return x"), kind="attack")
    offer = sandboxed(tmp_path).find("attack", "mine")
    process = cast(ExternalAttackProxy, offer.value).live_process()
    monkeypatch.setattr(process, "limits", replace(process.limits, call=0.01))
    with pytest.raises(PluginError, match=r"gave no answer within 0\.32 s"):
        SingleRun(offer.value, count=32).run()
