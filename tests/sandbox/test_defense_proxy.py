"""A locked-in defense answers as it would in this process, to the bit; another one if it dies."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.plugin import Dataset, cross_entropy
from bench.registry.registry import Registry
from bench.sandbox.defense_proxy import DefenseProxy
from bench.training.defense_builder import DefenseBuilder
from tests.fixtures.known_models import digits
from tests.sandbox.isolated import PLAIN, entry, locked, none_left, opened

pytestmark = pytest.mark.usefixtures("walls")

NOISY = PLAIN.replace(
    "return self.layer(images.flatten(1))",
    "return self.layer((images + 0.1 * torch.randn_like(images)).flatten(1))",
).replace("build=build)", "build=build, randomness=Randomness(3))").replace(
    "import Defense", "import Randomness, Defense"
)  # fmt: skip
REJECTING = PLAIN.replace("nn.Linear(64, 10)", "nn.Linear(64, 11)").replace(
    "build=build)", "build=build, rejects=0.1)"
)
WINDING = PLAIN.replace(
    "return self.layer(images.flatten(1))",
    "return torch.tanh(self.layer(images.flatten(1).sin())).double()",
)
SOURCES = {"plain": PLAIN, "noisy": NOISY, "rejecting": REJECTING, "winding": WINDING}


def dataset(registry: Registry) -> Dataset:
    found: Dataset = registry.find("dataset", "digits").value
    return found


def built(registry: Registry, role: str = "build") -> nn.Module:
    module: nn.Module = getattr(DefenseBuilder(registry, "mine", dataset(registry)), role)()
    return module


def answers(module: nn.Module, rejects: bool, noisy: bool) -> list[Tensor]:
    """All that an attack may hear: logits, gradients, a Jacobian, and then all of it again."""
    x, y = digits(40)
    noise = SeededNoise(5, "play", torch.device("cpu")) if noisy else None
    target = ModelAccess(module, draws=3 if noisy else 1, noise=noise, rejects=rejects)
    classes = torch.arange(4).expand(40, 4)
    said = []
    for _ in range(2):
        said.append(target.logits(x))
        said += target.gradient(x, lambda logits: cross_entropy(logits, y))
        said += target.jacobian(x, classes, minus=y)
    return said


@pytest.mark.parametrize("kind", SOURCES)
def test_behind_walls_the_answers_are_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    entry(tmp_path, SOURCES[kind])
    inside, here = built(locked(tmp_path)), built(opened(tmp_path))
    assert isinstance(inside, DefenseProxy)
    assert not isinstance(here, DefenseProxy)
    how = (kind == "rejecting", kind == "noisy")
    for one, two in zip(answers(inside, *how), answers(here, *how), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    assert any(said.any() for said in answers(inside, *how)[1::6])


def test_a_slope_may_be_asked_when_other_questions_came_between(tmp_path: Path) -> None:
    entry(tmp_path, WINDING)
    inside, here = built(locked(tmp_path)), built(opened(tmp_path))
    x = digits(16)[0]
    slopes = []
    for module in (inside, here):
        leaves = [x.clone().requires_grad_(), (1 - x).requires_grad_()]
        first, second = (module(leaf) for leaf in leaves)
        with torch.no_grad():
            module(x * 0.5)
        (of_first,) = torch.autograd.grad(first[:, 0].sum(), leaves[0], retain_graph=True)
        (of_second,) = torch.autograd.grad(second[:, 1].sum(), leaves[1])
        (again,) = torch.autograd.grad(first[:, 0].sum(), leaves[0])
        assert torch.equal(of_first, again)
        slopes.append((of_first, of_second))
    assert torch.equal(slopes[0][0], slopes[1][0])
    assert torch.equal(slopes[0][1], slopes[1][1])
    assert not torch.equal(*slopes[0])


def test_a_slope_of_drawn_noise_is_of_the_noise_that_was_drawn(tmp_path: Path) -> None:
    source = PLAIN.replace(
        "return self.layer(images.flatten(1))",
        "return self.layer(images.flatten(1)) * torch.rand(1)",
    )
    entry(tmp_path, source)
    module = built(locked(tmp_path))
    leaf = digits(8)[0].requires_grad_()
    torch.manual_seed(1)
    logits = module(leaf)
    expected = torch.autograd.grad(logits.sum(), leaf, retain_graph=True)[0]
    for _ in range(3):
        with torch.no_grad():
            module(leaf)
    assert torch.equal(torch.autograd.grad(logits.sum(), leaf)[0], expected)


def test_a_module_that_draws_moves_this_generator_and_no_other_does(tmp_path: Path) -> None:
    entry(tmp_path / "still", PLAIN)
    entry(tmp_path / "noisy", NOISY)
    x = digits(8)[0]
    for name, drawn in (("still", False), ("noisy", True)):
        module = built(locked(tmp_path / name))
        torch.manual_seed(3)
        before = torch.get_rng_state()
        with torch.no_grad():
            one, two = module(x), module(x)
        assert torch.equal(torch.get_rng_state(), before) != drawn
        assert torch.equal(one, two) != drawn


def test_a_slope_of_a_slope_is_refused(tmp_path: Path) -> None:
    entry(tmp_path, WINDING)
    leaf = digits(8)[0].requires_grad_()
    answer = built(locked(tmp_path))(leaf)
    (slope,) = torch.autograd.grad(answer.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(slope.sum())


def test_the_stand_in_is_asked_for_slopes_and_never_for_answers(tmp_path: Path) -> None:
    source = PLAIN.replace(
        "build=build)", "build=lambda loader: Net(loader).requires_grad_(False), bpda=other)"
    )
    source = source.replace(
        "@hookimpl",
        "def other(loader):\n    return nn.Sequential(Net(loader), nn.Tanh())\n@hookimpl",
    )
    entry(tmp_path, source)
    registry = locked(tmp_path)
    module, bpda = built(registry), built(registry, "bpda")
    assert isinstance(bpda, DefenseProxy)
    x = digits(8)[0]
    assert not torch.equal(module(x), bpda(x))
    assert torch.equal(module(x), ModelAccess(module, bpda=bpda).logits(x))


def test_a_worker_that_has_died_is_replaced_by_one_that_answers_the_same(tmp_path: Path) -> None:
    entry(tmp_path, WINDING)
    module = built(locked(tmp_path))
    assert isinstance(module, DefenseProxy)
    leaf = digits(8)[0].requires_grad_()
    answer = module(leaf)
    expected = torch.autograd.grad(answer.sum(), leaf, retain_graph=True)[0]
    module.cage.close()
    assert torch.equal(torch.autograd.grad(answer.sum(), leaf)[0], expected)
    outside = module.cage.guardian.process
    for process in psutil.Process(outside.pid).children(recursive=True):
        process.kill()
    outside.wait(10)
    with pytest.raises(PluginError, match="died of SIGKILL"):
        module(leaf)
    assert torch.equal(module(leaf), answer)


def test_what_one_call_breaks_the_next_one_does_not_suffer(tmp_path: Path) -> None:
    source = PLAIN.replace(
        "return self.layer(images.flatten(1))",
        "if images.max() > 1.5:\n            raise ValueError('too bright')\n"
        "        return self.layer(images.flatten(1))",
    )
    entry(tmp_path, source)
    module = built(locked(tmp_path))
    assert isinstance(module, DefenseProxy)
    x, first = digits(8)[0], module.cage
    expected = module(x)
    with pytest.raises(PluginError, match=r"ValueError: too bright \(plugin.py, line \d+\)\.$"):
        module(x + 1)
    assert torch.equal(module(x), expected)
    assert module.cage is first


def test_a_question_that_is_interrupted_ends_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(tmp_path, PLAIN)
    module = built(locked(tmp_path))
    assert isinstance(module, DefenseProxy)
    x = digits(8)[0]
    expected, first = module(x), module.cage

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(first.channel, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module(x)
    assert not first.alive
    assert torch.equal(module(x), expected)


def test_a_module_that_nobody_holds_takes_its_worker_along(tmp_path: Path) -> None:
    entry(tmp_path, PLAIN)
    module = built(locked(tmp_path))
    assert isinstance(module, DefenseProxy)
    seen = Counter(alive=module.cage.running)
    del module
    gc.collect()
    assert seen["alive"]
    assert none_left()
