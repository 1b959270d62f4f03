"""A sandboxed attack runs bit for bit as in this process, and sends permitted queries only.

Covers bench.sandbox.attack_worker too.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.contract.check import CheckOutcome
from bench.contract.runner import CHECKS, check_registration
from bench.core.errors import PluginError
from bench.core.outcomes import Outcomes
from bench.engine.cell_spec import CellSpec
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.plugin import Attack, Traits
from bench.registry.cards import attack_digest
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.sandbox import isolation
from bench.sandbox.attack_proxy import SENT_ROWS, AttackProxy
from bench.store import Store
from bench.submissions.intake import accept_submission
from bench.threats.access import Access, Budget
from bench.threats.fingerprint import parameters_of
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.sparse import L0
from bench.threats.spatial import RotationTranslation
from bench.threats.threat_model import Goal
from tests.engine.single_run import LINF, NEAREST, NoisyModel, SingleRun
from tests.sandbox.isolated import PLAIN, sandboxed, unsandboxed, write_submission

pytestmark = pytest.mark.usefixtures("sandbox")

BUILT_IN = '''
"""A built-in attack under another name."""

import dataclasses
import importlib

from bench.plugin import hookimpl


@hookimpl
def bench_attacks():
    for attack in importlib.import_module("{module}").bench_attacks():
        if attack.name == "{of}":
            kind = type(attack)
            fields = getattr(kind, "__dataclass_fields__", {})
            for field, most in {most}.items():
                if field in fields and getattr(attack, field) > most:
                    attack = dataclasses.replace(attack, **{field: most})
            if "name" in fields:
                yield dataclasses.replace(attack, name="{name}")
            else:
                renamed = type(kind.__name__, (kind,), {"name": "{name}"})
                object.__setattr__(attack, "__class__", renamed)
                yield attack
'''
OWN = '''
"""An attack with a state of two fields."""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import cross_entropy
from bench.plugin import Access, hookimpl


class State(NamedTuple):
    adv: Tensor
    sum: Tensor


def loss(logits, label):
    return cross_entropy(logits, label)


class Own:
    name = "{name}"
    needs = Access.GRADIENTS
    steps = 4

    def start(self, problem):
        return State(problem.ball.sample(problem.x, problem), 0 * problem.x)

    def step(self, problem, state):
        adv = state.adv
        gradient = problem.gradient(adv, loss).gradient
        sum = state.sum + gradient
        return State(problem.ball.ascend(adv, sum, 0.3, problem.x), sum)


@hookimpl
def bench_attacks():
    yield Own()
'''
QUICK = ("apgd-t", "fgsm-targeted", "square")
MOST = {
    "steps": 100, "rounds": 3, "targets": 3, "restarts": 3, "population": 30, "generations": 3,
    "angles": 7,
}  # fmt: skip
"""Largest value of these parameters in the sandbox, where a step costs a millisecond and more."""
BALLS: dict[str, PerturbationSet] = {
    "Linf": LINF, "L2": L2(Fraction(1)), "L1": L1(Fraction(2)), "L0": L0(Fraction(1)),
    "rotation-translation": RotationTranslation(20.0, 1.0),
}  # fmt: skip


def built_in() -> list[Any]:
    """Every built-in attack that can be sandboxed; of those that differ in length alone, one."""
    offers = list(Registry.load(Path("no-submissions")).attacks.items())
    names = {
        _code(o): n
        for n, o in reversed(offers)
        if o.module.startswith("plugins.")
        and Traits.has_steps(o.value)
        and not Traits.of(o.value).source
        and not Traits.of(o.value).joint  # other defenses
        and Traits.of(o.value).norms != ("corruption",)  # its name says what it does
    }
    slow = pytest.mark.slow
    return [pytest.param(n, marks=() if n in QUICK else slow) for n in names.values()]


def _code(offer: Registration[Attack]) -> str:
    """What of an attack's code may differ in the sandbox: all but how long and on what it runs."""
    apart = {"name", "summary", "examples", *MOST}
    values = {k: v for k, v in parameters_of(offer.value).items() if k not in apart}
    return f"{offer.module} {type(offer.value).__name__} {values}"


def pair(
    folder: Path, source: str, name: str = "mine"
) -> tuple[Registration[Attack], Registration[Attack]]:
    """A sandboxed attack, and the same one in this process."""
    write_submission(folder, source, name, kind="attack")
    inside = sandboxed(folder)
    assert inside.reasons_not_imported == {}
    return inside.find("attack", name), unsandboxed(folder).find("attack", name)


def check_same(inside: Registration[Attack], here: Registration[Attack], **rules: Any) -> None:
    """Both have the same outcomes, images and costs."""
    rules = {"count": 96, **rules}
    one, two = (SingleRun(offer.value, **rules).run() for offer in (inside, here))
    assert torch.equal(one.images, two.images)
    for name in Outcomes._fields:
        first, second = (getattr(run.outcomes, name) for run in (one, two))
        assert np.array_equal(first, second, equal_nan=first.dtype.kind == "f"), name


@pytest.mark.parametrize("name", built_in())
def test_every_attack_gives_the_same_results_in_the_sandbox(name: str, tmp_path: Path) -> None:
    known = Registry.load(Path("no-submissions")).attacks[name]
    source = BUILT_IN.replace("{module}", known.module).replace("{of}", name)
    inside, here = pair(tmp_path, source.replace("{most}", repr({} if name in QUICK else MOST)))
    assert isinstance(inside.value, AttackProxy)
    assert attack_digest(inside) == attack_digest(here)
    assert Traits.of(inside.value) == Traits.of(here.value)
    traits = Traits.of(here.value)
    goal = NEAREST if traits.minimises else Goal()
    if traits.goals == ("targeted",):
        goal = Goal("targeted", "next")
    check_same(inside, here, ball=BALLS[(traits.norms or ("Linf",))[0]], goal=goal)


def test_an_attack_that_fits_a_point_is_refused(tmp_path: Path) -> None:
    source = BUILT_IN.replace("{module}", "plugins.attacks.shared_gradient").replace("{most}", "{}")
    write_submission(tmp_path, source.replace("{of}", "shared-random"), kind="attack")
    (why,) = sandboxed(tmp_path).reasons_not_imported.values()
    assert "fits one point for all images, which a sandboxed process does not offer" in why
    assert why.endswith("run it with --allow-unsandboxed")


def test_its_card_is_the_same_as_in_this_process(tmp_path: Path) -> None:
    write_submission(tmp_path, OWN, kind="attack")
    inside, here = sandboxed(tmp_path), unsandboxed(tmp_path)
    assert inside.attack_card("mine") == here.attack_card("mine")
    assert (inside.find("attack", "mine").isolation, inside.problems) == ("sandboxed", [])


def test_draws_and_budgets_are_the_same_as_in_this_process(tmp_path: Path) -> None:
    inside, here = pair(tmp_path, OWN)
    check_same(inside, here, model=NoisyModel(0.1), random=True)
    check_same(inside, here, budget=Budget(gradients=2))
    check_same(inside, here, goal=Goal("targeted", "next"))


def test_a_loss_may_be_any_function_with_one_value_per_row(tmp_path: Path) -> None:
    changed = OWN.replace(
        "return cross_entropy(logits, label)",
        "return (logits.double().logsumexp(1) - logits.gather(1, label[:, None])[:, 0]).tanh()",
    )
    inside, here = pair(tmp_path, changed)
    check_same(inside, here)


class LabelsOnlyRun(SingleRun):
    """A run whose model access reveals labels only."""

    def spec(self, slots: int = 64) -> CellSpec:
        spec = super().spec(slots)
        spec.model_access.access = Access.LABELS
        return spec


STEPS = {
    "labels only": ("problem.gradient(adv, loss)", "gradients"),
    "images of another shape": (
        "problem.logits(adv[:, :, 1:])", "sent a query with adv of torch.float32"
    ),
    "images of another type": (
        "problem.logits(adv.double())", "sent a query with adv of torch.float64"
    ),
    "fewer images": ("problem.logits(adv[1:])", "which does not fit 64 images of 10 classes"),
    "a mask of another type": (
        "problem.logits(adv, problem.t)", "sent a query with where of torch.int64"
    ),
    "classes beyond": (
        "problem.jacobian(adv, problem.y[:, None] + 5)", "sent a query with classes of torch.int64"
    ),
    "classes below": (
        "problem.jacobian(adv, problem.y[:, None] - 9)", "sent a query with classes of"
    ),
    "no classes": (
        "problem.jacobian(adv, problem.y[:, None][:, :0])", "sent a query with classes of"
    ),
    "a mask of two columns": (
        "problem.logits(adv, (problem.t > 0)[:, None])", r"where of torch.bool \[64, 1\]"
    ),
    "a loss for all": (
        "problem.gradient(adv, lambda logits, label: logits.sum())", r"a loss \[\] of logits"
    ),
    "a loss that raises": (
        "problem.gradient(adv, lambda logits, label: 1 / 0)", "failed: ZeroDivisionError"
    ),
    "a loss without a gradient": (
        "problem.gradient(adv, lambda logits, label: logits.argmax(1).float())", ""
    ),
    "an unknown query": (
        "problem._request('weights', {'adv': adv})", "sent an invalid query: .'weights'"
    ),
    "a query without images": (
        "problem._request('logits', {})", "sent an invalid query: .'logits', "
    ),
    "a query with an unknown tensor": (
        "problem._request('logits', {'adv': adv, 'x': adv})", "sent a query with x of torch.float32"
    ),
    "one row too few": (
        "State(adv[1:], state.sum)", r"a state of \[\(63,\), \(64,\)\] rows; 64 were expected"
    ),
    "tensors of no kind": (
        "problem.channel.channel.send(problem.channel.number, {'tensors': 5})",
        "without their descriptions",
    ),
    "fields without names": (
        "problem.channel.reply({}, {'1': adv, '': adv})",
        "returned a state with invalid field names",
    ),
    "no state": ("State(adv, None)", "failed: TypeError: field sum of its state is no tensor"),
    "None": ("None", "failed: AttributeError"),
    "an exit": ("__import__('os')._exit(3)", "its process exited with status 3"),
    "an endless loop": (
        "exec('while True: pass')", "gave no answer within 2 s; its process was ended"
    ),
    "an error": ("1 / 0", r"failed: ZeroDivisionError: division by zero \(plugin.py, line \d+\)"),
    "not a number": ("State(adv * float('nan'), state.sum)", ""),
    "far outside": ("State(adv + 7, state.sum)", ""),
}  # fmt: skip
"""Code in a step -> the expected message; empty where the referee judges the result."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", STEPS)
def test_invalid_steps_are_reported(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "LIMITS", isolation.Limits(call=2.0))
    code, message = STEPS[kind]
    inside, _ = pair(tmp_path, OWN.replace("        gradient = ", f"        wrong = {code}\n"
                     "        if isinstance(wrong, State) or wrong is None: return wrong\n"
                     "        gradient = "))  # fmt: skip
    run = (LabelsOnlyRun if kind == "labels only" else SingleRun)(inside.value)
    if not message:
        assert len(run.run().outcomes.item) == run.count
        return
    with pytest.raises(PluginError, match=message) as raised:
        run.run()
    assert str(raised.value).isprintable()


def test_start_cannot_query_the_defense(tmp_path: Path) -> None:
    source = OWN.replace("return State(problem.ball", "problem.logits(problem.x)\n        "
                         "return State(problem.ball")  # fmt: skip
    inside, _ = pair(tmp_path, source)
    with pytest.raises(PluginError, match=r"mine .*in start"):
        SingleRun(inside.value).run()


def test_clean_logits_need_access_to_scores(tmp_path: Path) -> None:
    source = OWN.replace(
        "return State(problem.ball",
        "assert (problem.clean_logits.argmax(1) != problem.other_classes[:, 0]).any()\n"
        "        assert problem.other_classes.shape == (len(problem.x), 9)\n        "
        "return State(problem.ball",
    )
    inside, here = pair(tmp_path, source)
    check_same(inside, here)
    with pytest.raises(PluginError, match=r"mine .*in start"):
        LabelsOnlyRun(inside.value).run()


def test_an_attack_sees_its_rows_but_no_example_indices_and_no_defense(tmp_path: Path) -> None:
    source = OWN.replace(
        "        gradient = ",
        "        import gc\n"
        "        assert not problem.example.any() and problem.model_access is None\n"
        "        nets = [o for o in gc.get_objects() if isinstance(o, torch.nn.Module)]\n"
        "        assert nets == [], nets\n"
        "        gradient = ",
    )
    inside, _ = pair(tmp_path, source)
    assert (SingleRun(inside.value).run().outcomes.verdict == 1).any()


def test_perturbation_sets_of_plugins_are_refused(tmp_path: Path) -> None:
    class Ring(Linf):
        """A set of a plugin."""

    inside, _ = pair(tmp_path, OWN)
    with pytest.raises(PluginError, match=r"supports the sets Linf, .* only; Linf is a set of a"):
        SingleRun(inside.value, ball=Ring(Fraction(1, 5))).run()


def test_only_the_attack_that_was_used_last_has_a_worker(tmp_path: Path) -> None:
    write_submission(tmp_path, OWN, "one", kind="attack")
    write_submission(tmp_path, OWN, "two", kind="attack")
    registry = sandboxed(tmp_path)
    one, two = (registry.find("attack", name).value for name in ("one", "two"))
    outcomes = [SingleRun(attack, count=32).run().images for attack in (one, two, one)]
    assert one.process.alive
    assert not two.process.alive
    assert torch.equal(outcomes[0], outcomes[2])
    assert not torch.equal(outcomes[0], outcomes[1])


def test_only_changed_tensors_of_the_rows_are_sent(tmp_path: Path) -> None:
    inside, _ = pair(tmp_path, OWN)
    attack: Any = inside.value
    sent: list[list[str]] = []
    changed_rows: Callable[[Any], dict[str, Tensor]] = attack._changed_rows

    def recorded(rows: Any) -> dict[str, Tensor]:
        found = changed_rows(rows)
        sent.append(sorted(found))
        return found

    attack._changed_rows = recorded
    SingleRun(attack).run()
    every = ["active", "key", "restart", "t", "target", "x", "y"]
    assert sent[0] == every
    assert every in sent[1:]
    assert ["t"] in sent
    rows: Any = SimpleNamespace(**{name: torch.zeros(2) for name in SENT_ROWS})
    assert (sorted(changed_rows(rows)), changed_rows(rows)) == (every, {})
    rows.restart.add_(1)
    assert list(changed_rows(rows)) == ["restart"]


def test_the_contract_of_a_sandboxed_attack_is_checked(tmp_path: Path) -> None:
    write_submission(tmp_path, OWN, kind="attack")
    registry = sandboxed(tmp_path)
    results = list(check_registration(registry, "attack", registry.find("attack", "mine")))
    assert len(results) == len(CHECKS["attack"])
    assert [r for r in results if r.outcome is CheckOutcome.FAIL] == []
    assert sum(r.outcome is CheckOutcome.PASS for r in results) > 20


def test_submit_and_run_accept_sandboxed_attacks_and_defenses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    attack, defense = (
        write_submission(tmp_path, OWN, "own", kind="attack"),
        write_submission(tmp_path, PLAIN, "net"),
    )
    url = f"sqlite:///{tmp_path / 'b.db'}"
    with Store.open(url) as store:
        assert accept_submission(attack, store).checked
        with pytest.raises(Exception, match="better-than-chance"):
            accept_submission(defense, store)
    chosen = Selection(("digits-linf",), ("undefended",), ("own", "fgsm"), 64)
    assert MatrixRun(chosen, url, quiet=True).run() == 0
    with Store.open(url) as store:
        tiers = {row.cell.attack: row.tier for row in store.cells()}
        states = {e.name: e.history[-1].state for e in store.submissions()}
    assert tiers == {"clean": "in-process", "own": "sandboxed", "fgsm": "in-process"}
    assert states == {"own": "finished", "net": "rejected"}
