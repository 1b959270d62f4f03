"""The exact verifier against enumeration, a grid, other certificates and attacks."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engine.problem import attack_once
from bench.plugin import L1, L2, Linf, PerturbationSet
from plugins.attacks.pgd import PGD
from plugins.certifiers import exact_milp
from plugins.certifiers._network_graph import UnsupportedModelError, read_network
from plugins.certifiers.dual_bound import DualBound
from plugins.certifiers.exact_milp import ExactMILP, make_program, verify
from plugins.certifiers.interval import Intervals, other_classes
from tests.fixtures.known_models import digits
from tests.plugins.certifiers.test_bounds import enumerated, frozen, images, shallow, tiny

SETS: list[PerturbationSet] = [Linf(Fraction(1, 8)), L1(Fraction(1, 5))]
both_norms = pytest.mark.parametrize("ball", SETS, ids=["Linf", "L1"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class DenseResidual(nn.Module):
    """Constants, two hidden layers with a sum around the second, a ReLU in front of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        for part in (self.first, self.second, self.last):
            nn.init.normal_(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(torch.flatten((x - 0.5) / 0.5, 1)))
        logits: Tensor = self.last(torch.relu(self.second(h) + h))
        return logits


@cache
def digits_network() -> nn.Module:
    """64-12-10, trained on digits; its seeds and its 300 full-batch steps are fixed."""
    x, y = digits(1297)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    optimiser = torch.optim.Adam([{"params": module.parameters()}], 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return frozen(module)


def unseen() -> tuple[Tensor, Tensor]:
    x, y = digits(1347)
    return x[1297:], y[1297:]


def checked(module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
    """The certificates [n], after a check that every other example has a true counterexample."""
    result = verify(module, x, y, ball)
    assert bool(ball.contains(result.counterexample, x).all())
    assert result.counterexample.dtype == torch.float32
    broken = module(result.counterexample).argmax(1) != y
    assert torch.equal(broken, result.found)
    assert not bool((result.certified & result.found).any())
    assert bool((result.certified | result.found).all()), "an example was not decided"
    return result.certified


@pytest.mark.row("V02")
def test_the_optimum_equals_the_enumeration_of_all_patterns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, ball = shallow(5), Linf(Fraction(1, 5))
    x, y = images(module, 4)
    network, open_programs = read_network(module), 0
    minima = torch.zeros(4, 2)
    for i in range(4):
        program = make_program(network, x[i : i + 1], y[i : i + 1], ball)
        open_programs += len(program.rivals)
        for place, rival in enumerate(other_classes(y, 3)[i].tolist()):
            cost = program.output.matrix[y[i]] - program.output.matrix[rival]
            constant = program.output.constant[y[i]] - program.output.constant[rival]
            found = program.minimum(cost)[0] + constant
            exact = enumerated(module, x[i : i + 1], int(y[i]), rival, ball)
            assert found == pytest.approx(exact, abs=1e-6)
            minima[i, place] = exact
    assert open_programs >= 1
    assert torch.equal(checked(module, x, y, ball), (minima > 0).all(1))
    monkeypatch.setattr(exact_milp, "SEARCH_STEPS", 0)
    assert torch.equal(checked(module, x, y, ball), (minima > 0).all(1))


def grid(x: Tensor, ball: PerturbationSet) -> Tensor:
    """The points [m, 1, 1, 2] of a fine grid that lie in the set around x [1, 1, 1, 2]."""
    line = torch.linspace(-1, 1, 161) * ball.radius
    points = (x + torch.cartesian_prod(line, line)[:, None, None]).clamp(0, 1)
    return points[ball.contains(points, x.expand_as(points))]


@pytest.mark.row("V02")
@both_norms
def test_a_grid_of_two_pixels_gives_the_same_answers(
    ball: PerturbationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_milp, "SEARCH_STEPS", 0)
    module = tiny(2, 8, 3)
    last = module.get_parameter("5.bias")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
        last.sub_(module(torch.rand(500, 1, 1, 2)).mean(0))
    x = torch.rand(40, 1, 1, 2)
    y = module(x).argmax(1)
    certified = checked(module, x, y, ball)
    assert 8 <= int(certified.sum()) <= 32
    for i in range(40):
        points = grid(x[i : i + 1], ball)
        assert len(points) > 1000
        assert bool((module(points).argmax(1) == y[i]).all()) >= bool(certified[i])


@pytest.mark.row("V02")
@both_norms
@pytest.mark.parametrize("build", [tiny, shallow, DenseResidual])
def test_interval_bound_dual_bound_verifier_and_attack_are_in_this_order(
    build: Callable[[], nn.Module], ball: PerturbationSet
) -> None:
    module = frozen(build())
    x, y = images(module, 24)
    certified = checked(module, x, y, ball)
    for other in (Intervals(), DualBound(reach=1)):
        assert bool((other.certify(module, x, y, ball) <= certified).all())
    adv = attack_once(PGD(), module, x, y, ball, seed=0, example=torch.arange(24))
    assert bool((certified <= (module(adv).argmax(1) == y)).all())


@pytest.mark.row("V02")
@pytest.mark.parametrize(
    ("ball", "beyond_the_dual_bound"), [(Linf(Fraction(1, 10)), 3), (L1(Fraction(1)), 1)]
)
def test_every_image_of_a_digits_network_is_decided(
    ball: PerturbationSet, beyond_the_dual_bound: int
) -> None:
    module = digits_network()
    x, y = unseen()
    certified = checked(module, x, y, ball)
    assert 5 <= int(certified.sum()) <= 45
    assert bool(certified[module(x).argmax(1) != y].any()) is False
    dual = DualBound(reach=1).certify(module, x, y, ball)
    assert bool((dual <= certified).all())
    assert int((certified & ~dual).sum()) >= beyond_the_dual_bound
    adv = attack_once(PGD(), module, x, y, ball, seed=0, example=torch.arange(len(x)))
    assert bool((certified <= (module(adv).argmax(1) == y)).all())


@both_norms
def test_the_radius_never_adds_a_certificate(ball: PerturbationSet) -> None:
    module = shallow()
    x, y = images(module, 12)
    y[0] = (y[0] + 1) % 3
    before = module(x).argmax(1) == y
    assert torch.equal(checked(module, x, y, ball.scaled(0)), before)
    for factor in (1, 2, 4):
        certified = checked(module, x, y, ball.scaled(factor))
        assert bool((certified <= before).all())
        before = certified
    assert int(before.sum()) < 6


def test_a_margin_below_the_rounding_of_float32_is_not_certified() -> None:
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [100.0]]))
        layer.bias.copy_(torch.tensor([60.0, 0.0]))
    module = frozen(nn.Sequential(nn.Flatten(), layer))
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    assert not bool(verify(module, x, y, Linf(Fraction(9999895, 10**8))).certified)
    assert bool(verify(module, x, y, Linf(Fraction(999, 10**4))).certified)


def test_every_class_that_the_dual_bound_leaves_open_is_decided() -> None:
    module, ball = shallow(5), Linf(Fraction(1, 8))
    x, y = images(module, 8)
    mixed = 0
    for i in range(8):
        program = make_program(read_network(module), x[i : i + 1], y[i : i + 1], ball)
        broken = {
            rival
            for rival in other_classes(y, 3)[i].tolist()
            if enumerated(module, x[i : i + 1], int(y[i]), rival, ball) <= 0
        }
        program.rivals = sorted(other_classes(y, 3)[i].tolist(), key=lambda k: k in broken)
        assert (program.counterexample(int(y[i])) is not None) == bool(broken)
        mixed += len(broken) == 1
    assert mixed >= 1


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.flatten(self.pool(x), 1))
        return logits


CNN = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
WIDE = nn.Sequential(nn.Flatten(), nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 3))
TANH = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh())


@pytest.mark.parametrize(
    ("module", "ball", "sentence"),
    [
        (tiny(), L2(Fraction(1)), "the norm is L2, no polyhedron; exact-milp takes Linf and L1."),
        (Pooled(), SETS[0], "the model has max pooling; exact-milp reads linear layers and ReLUs."),
        (CNN, SETS[0], "the model has convolutions; exact-milp reads linear layers and ReLUs."),
        (WIDE, SETS[1], "the linear layers have 515 units; exact-milp supports 512."),
        (
            TANH,
            SETS[0],
            "the model has a layer Tanh; exact-milp reads feed-forward ReLU networks.",
        ),
    ],
    ids=["norm", "pooling", "convolution", "width", "activation"],
)
def test_other_models_and_sets_are_declined(
    module: nn.Module, ball: PerturbationSet, sentence: str
) -> None:
    assert ExactMILP().refuses(frozen(module), ball) == sentence


@pytest.mark.parametrize("build", [tiny, shallow, DenseResidual])
@both_norms
def test_dense_networks_are_taken(build: Callable[[], nn.Module], ball: PerturbationSet) -> None:
    assert ExactMILP().refuses(frozen(build()), ball) == ""


def test_there_is_no_answer_with_too_many_open_signs() -> None:
    module = frozen(nn.Sequential(nn.Flatten(), nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 3)))
    x, y = images(module, 8)
    with pytest.raises(UnsupportedModelError, match=r"\d+ ReLUs of an example .* up to 60"):
        ExactMILP().certify(module, x, y, Linf(Fraction(1)))


def test_there_is_no_answer_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_milp, "SECONDS", 0.0)
    module = shallow()
    x, y = images(module, 12)
    with pytest.raises(UnsupportedModelError, match=r"open ReLUs was not solved in 0 seconds"):
        ExactMILP().certify(module, x, y, Linf(Fraction(1, 10)))


def test_the_model_is_left_as_it_was() -> None:
    module = shallow().requires_grad_(True)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    x, y = images(module, 6)
    kept = x.clone()
    ExactMILP().certify(module, x, y, SETS[0])
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
