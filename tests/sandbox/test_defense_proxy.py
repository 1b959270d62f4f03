"""A sandboxed defense returns exactly what it returns in this process; a dead one is replaced.

Covers bench.sandbox.defense_worker too.
"""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import attack_once
from bench.plugin import AnswerWork, Dataset, cross_entropy
from bench.registry.registry import Registry
from bench.sandbox.defense_proxy import DefenseProxy, parsed_work
from bench.sandbox.protocol import Channel, Frame
from bench.training.defense_builder import DefenseBuilder
from plugins.attacks.pgd import PGD
from tests.engine.single_run import LINF
from tests.fixtures.known_models import digits
from tests.sandbox.isolated import PLAIN, no_process_left, sandboxed, unsandboxed, write_submission

pytestmark = pytest.mark.usefixtures("sandbox")

NOISY = PLAIN.replace(
    "return self.layer(images.flatten(1))",
    "return self.layer((images + 0.1 * torch.randn_like(images)).flatten(1))",
).replace("build=build)", "build=build, randomness=Randomness(3))").replace(
    "import Defense", "import Randomness, Defense"
)  # fmt: skip
REJECTING = PLAIN.replace("nn.Linear(64, 10)", "nn.Linear(64, 11)").replace(
    "build=build)", "build=build, rejects=0.1)"
)
NONLINEAR = PLAIN.replace(
    "return self.layer(images.flatten(1))",
    "return torch.tanh(self.layer(images.flatten(1).sin())).double()",
)
WRITING = PLAIN.replace(
    "return self.layer(images.flatten(1))",
    "images.data.clamp_(0.25, 0.75); return self.layer(images.flatten(1))",
)
SOURCES = {
    "plain": PLAIN, "noisy": NOISY, "rejecting": REJECTING, "nonlinear": NONLINEAR,
    "writing": WRITING,
}  # fmt: skip


def dataset(registry: Registry) -> Dataset:
    found: Dataset = registry.find("dataset", "digits").value
    return found


def built(registry: Registry, role: str = "build") -> nn.Module:
    module: nn.Module = getattr(DefenseBuilder(registry, "mine", dataset(registry)), role)()
    return module


def all_queries(module: nn.Module, rejects: bool, noisy: bool) -> list[Tensor]:
    """The answers to queries of each kind: logits, gradients, a Jacobian; all of them twice."""
    x, y = digits(40)
    noise = SeededNoise(5, "play", torch.device("cpu")) if noisy else None
    access = ModelAccess(module, draws=3 if noisy else 1, noise=noise, rejects=rejects)
    classes = torch.arange(4).expand(40, 4)
    found = []
    for _ in range(2):
        found.append(access.logits(x))
        found += access.gradient(x, lambda logits: cross_entropy(logits, y))
        found += access.jacobian(x, classes, minus=y)
    return found


@pytest.mark.parametrize("kind", SOURCES)
def test_a_sandboxed_defense_returns_the_same_bits(kind: str, tmp_path: Path) -> None:
    write_submission(tmp_path, SOURCES[kind])
    inside, here = built(sandboxed(tmp_path)), built(unsandboxed(tmp_path))
    assert isinstance(inside, DefenseProxy)
    assert not isinstance(here, DefenseProxy)
    how = (kind == "rejecting", kind == "noisy")
    for one, two in zip(all_queries(inside, *how), all_queries(here, *how), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    assert any(part.any() for part in all_queries(inside, *how)[1::6])


OPTIMISING = PLAIN.replace(
    "return self.layer(images.flatten(1))",
    """for _ in range(3):
            with torch.enable_grad():
                leaf = images.detach().requires_grad_()
                logits = self.layer(leaf.flatten(1)) + 0 * torch.rand(1)
                (slope,) = torch.autograd.grad(logits.logsumexp(1).sum(), leaf)
            images = (images + slope.sign() / 255).clamp(0, 1)
        return self.layer(images.flatten(1))""",
)


@pytest.mark.parametrize(
    ("source", "work"),
    [(PLAIN, AnswerWork(1, 0)), (NOISY, AnswerWork(1, 0)), (OPTIMISING, AnswerWork(4, 3))],
    ids=["plain", "noisy", "optimising"],
)
def test_the_work_of_an_answer_is_counted_in_the_sandbox(
    source: str, work: AnswerWork, tmp_path: Path
) -> None:
    write_submission(tmp_path, source)
    inside, x = built(sandboxed(tmp_path)), digits(8)[0]
    assert isinstance(inside, DefenseProxy)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(2)
    logits = inside(leaf)
    expected = torch.autograd.grad(logits.sum(), leaf, retain_graph=True)[0]
    assert inside.answer_work(x) == work
    assert torch.equal(torch.autograd.grad(logits.sum(), leaf)[0], expected)
    inside.process.close()
    assert inside.answer_work(x) == work


@pytest.mark.parametrize(
    "sent",
    [None, 3, [], {}, {"passes": 1}, {"passes": 1, "gradients": True},
     {"passes": 1, "gradients": -1}, {"passes": 2**31, "gradients": 0},
     {"passes": 1, "gradients": 0, "more": 0}, {"passes": "\x1b[31m", "gradients": 0}],
)  # fmt: skip
def test_another_work_of_an_answer_is_refused(sent: object) -> None:
    with pytest.raises(PluginError, match="mine violated the sandbox protocol: work") as caught:
        parsed_work("mine", Frame(1, {"work": sent}, bytearray()))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_images_reach_a_sandboxed_defense_as_copies(tmp_path: Path) -> None:
    write_submission(tmp_path, WRITING)
    module, (x, _) = built(sandboxed(tmp_path)), digits(16)
    given, leaf = x.clone(), x.clone().requires_grad_()
    with torch.no_grad():
        logits = module(given)
    module(leaf).sum().backward()
    assert torch.equal(given, x) and torch.equal(leaf.detach(), x)
    assert torch.equal(module(x.clamp(0.25, 0.75)), logits)


def test_a_gradient_can_be_computed_after_other_queries(tmp_path: Path) -> None:
    write_submission(tmp_path, NONLINEAR)
    inside, here = built(sandboxed(tmp_path)), built(unsandboxed(tmp_path))
    x = digits(16)[0]
    gradients = []
    for module in (inside, here):
        leaves = [x.clone().requires_grad_(), (1 - x).requires_grad_()]
        first, second = (module(leaf) for leaf in leaves)
        with torch.no_grad():
            module(x * 0.5)
        (of_first,) = torch.autograd.grad(first[:, 0].sum(), leaves[0], retain_graph=True)
        (of_second,) = torch.autograd.grad(second[:, 1].sum(), leaves[1])
        (again,) = torch.autograd.grad(first[:, 0].sum(), leaves[0])
        assert torch.equal(of_first, again)
        gradients.append((of_first, of_second))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert not torch.equal(*gradients[0])


def test_the_gradient_uses_the_random_numbers_of_its_forward_pass(tmp_path: Path) -> None:
    source = PLAIN.replace(
        "return self.layer(images.flatten(1))",
        "return self.layer(images.flatten(1)) * torch.rand(1)",
    )
    write_submission(tmp_path, source)
    module = built(sandboxed(tmp_path))
    leaf = digits(8)[0].requires_grad_()
    torch.manual_seed(1)
    logits = module(leaf)
    expected = torch.autograd.grad(logits.sum(), leaf, retain_graph=True)[0]
    for _ in range(3):
        with torch.no_grad():
            module(leaf)
    assert torch.equal(torch.autograd.grad(logits.sum(), leaf)[0], expected)


def test_only_a_model_that_draws_random_numbers_advances_the_generator(tmp_path: Path) -> None:
    write_submission(tmp_path / "deterministic", PLAIN)
    write_submission(tmp_path / "noisy", NOISY)
    x = digits(8)[0]
    for name, drawn in (("deterministic", False), ("noisy", True)):
        module = built(sandboxed(tmp_path / name))
        torch.manual_seed(3)
        before = torch.get_rng_state()
        with torch.no_grad():
            one, two = module(x), module(x)
        assert torch.equal(torch.get_rng_state(), before) != drawn
        assert torch.equal(one, two) != drawn


def test_an_attacked_defense_gets_images_and_weights_of_its_logits_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_submission(tmp_path, PLAIN)
    sent: list[tuple[str, list[str]]] = []
    send = Channel.send

    def recording(
        self: Channel, number: int, header: dict[str, Any], *parts: Any, **how: Any
    ) -> None:
        sent.append((header["method"], sorted(header.keys() | header.get("tensors", {}).keys())))
        send(self, number, header, *parts, **how)

    monkeypatch.setattr(Channel, "send", recording)
    module, (x, y) = built(sandboxed(tmp_path)), digits(20)
    sent.clear()
    adv = attack_once(PGD(), module, x, y, LINF, seed=0, example=torch.arange(20))
    assert not torch.equal(adv, x)
    assert sorted({(method, *names) for method, names in sent}) == [
        ("backward", "method", "tensors", "weight"),
        ("forward", "images", "keep", "method", "state", "tensors"),
    ]


def test_the_weight_of_a_gradient_shows_the_label_that_the_attack_avoids(tmp_path: Path) -> None:
    # This cannot be hidden from a white-box attack's copy; docs/howto/sandbox.md says so.
    write_submission(tmp_path, PLAIN)
    module, (x, y), sent = built(sandboxed(tmp_path)), digits(16), []
    evaluate = module.gradient
    module.gradient = lambda weight, shape: sent.append(weight) or evaluate(weight, shape)  # type: ignore[assignment, func-returns-value, operator]
    ModelAccess(module).gradient(x, lambda logits: cross_entropy(logits, y))
    assert torch.equal(sent[0].argmin(1), y)


def test_a_second_derivative_is_refused(tmp_path: Path) -> None:
    write_submission(tmp_path, NONLINEAR)
    leaf = digits(8)[0].requires_grad_()
    answer = built(sandboxed(tmp_path))(leaf)
    (gradient,) = torch.autograd.grad(answer.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(gradient.sum())


def test_the_bpda_approximation_is_used_for_gradients_only(tmp_path: Path) -> None:
    source = PLAIN.replace(
        "build=build)", "build=lambda loader: Net(loader).requires_grad_(False), bpda=other)"
    )
    source = source.replace(
        "@hookimpl",
        "def other(loader):\n    return nn.Sequential(Net(loader), nn.Tanh())\n@hookimpl",
    )
    write_submission(tmp_path, source)
    registry = sandboxed(tmp_path)
    module, bpda = built(registry), built(registry, "bpda")
    assert isinstance(bpda, DefenseProxy)
    x = digits(8)[0]
    assert not torch.equal(module(x), bpda(x))
    assert torch.equal(module(x), ModelAccess(module, bpda=bpda).logits(x))


def test_a_worker_that_has_died_is_replaced_by_an_equal_one(tmp_path: Path) -> None:
    write_submission(tmp_path, NONLINEAR)
    module = built(sandboxed(tmp_path))
    assert isinstance(module, DefenseProxy)
    leaf = digits(8)[0].requires_grad_()
    answer = module(leaf)
    expected = torch.autograd.grad(answer.sum(), leaf, retain_graph=True)[0]
    module.process.close()
    assert torch.equal(torch.autograd.grad(answer.sum(), leaf)[0], expected)
    outside = module.process.monitor.process
    for process in psutil.Process(outside.pid).children(recursive=True):
        process.kill()
    outside.wait(10)
    with pytest.raises(PluginError, match="was killed by SIGKILL"):
        module(leaf)
    assert torch.equal(module(leaf), answer)


def test_an_exception_in_one_call_does_not_affect_the_next(tmp_path: Path) -> None:
    source = PLAIN.replace(
        "return self.layer(images.flatten(1))",
        "if images.max() > 1.5:\n            raise ValueError('too bright')\n"
        "        return self.layer(images.flatten(1))",
    )
    write_submission(tmp_path, source)
    module = built(sandboxed(tmp_path))
    assert isinstance(module, DefenseProxy)
    x, first = digits(8)[0], module.process
    expected = module(x)
    with pytest.raises(PluginError, match=r"ValueError: too bright \(plugin.py, line \d+\)\.$"):
        module(x + 1)
    assert torch.equal(module(x), expected)
    assert module.process is first


def test_an_interrupted_call_ends_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_submission(tmp_path, PLAIN)
    module = built(sandboxed(tmp_path))
    assert isinstance(module, DefenseProxy)
    x = digits(8)[0]
    expected, first = module(x), module.process

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(first.channel, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module(x)
    assert not first.alive
    assert torch.equal(module(x), expected)


def test_deleting_the_module_ends_its_worker(tmp_path: Path) -> None:
    write_submission(tmp_path, PLAIN)
    module = built(sandboxed(tmp_path))
    assert isinstance(module, DefenseProxy)
    seen = Counter(alive=module.process.running)
    del module
    gc.collect()
    assert seen["alive"]
    assert no_process_left()
