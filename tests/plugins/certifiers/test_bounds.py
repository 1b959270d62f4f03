"""Interval, dual and Lipschitz bounds on networks small enough to solve exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import Tensor, nn

from bench.core.errors import UnavailableError
from bench.data import datasets
from bench.engine.problem import attack_once
from bench.plugin import L1, L2, Certifier, KeyedRandomNumbers, Linf, PerturbationSet
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from plugins.certifiers import _spectral_norm
from plugins.certifiers._network_graph import Affine, Box, Network, propagate_boxes, read_network
from plugins.certifiers.dual_bound import DualBound, Region, dual_margins, refined_boxes
from plugins.certifiers.interval import Intervals, interval_margins, other_classes, perturbation_box
from plugins.certifiers.linear_exact import LinearExact, weight_and_bias, worst_margin
from plugins.certifiers.lipschitz_margin import (
    LipschitzMargin,
    lipschitz_constants,
    norm_1,
    norm_2,
    norm_inf,
)

Array = npt.NDArray[np.float64]
NORMS: list[Callable[[Fraction], PerturbationSet]] = [Linf, L2, L1]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=["Linf", "L2", "L1"])
RADIUS = {"Linf": Fraction(1, 100), "L2": Fraction(1, 20), "L1": Fraction(1, 10)}
CERTIFIERS: list[Certifier] = [Intervals(), DualBound(reach=1), LipschitzMargin()]
every_certifier = pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda tool: tool.name)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def tiny(inputs: int = 4, hidden: int = 5, classes: int = 3) -> nn.Module:
    """A network whose ReLUs can be enumerated; takes images [n, 1, 1, inputs]."""
    return frozen(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )
    )


class Residual(nn.Module):
    """Normalisation, convolution, a residual block with batch statistics, pooling, linear layer."""

    mean: Tensor

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3, 0.6]).view(1, 2, 1, 1))
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.pool = pool
        self.last = nn.Linear(16, 3)
        for numbers in (self.norm.running_mean, self.norm.bias):
            assert numbers is not None
            nn.init.normal_(numbers, std=0.3)
        assert self.norm.running_var is not None
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.uniform_(self.norm.weight, -1.5, 1.5)

    def forward(self, images: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first((images - self.mean) / 0.25)))
        h = (self.second(h) + h).relu()
        answer: Tensor = self.last(torch.flatten(self.pool(h), 1))
        return answer


def residual(pool: nn.Module | None = None) -> nn.Module:
    return frozen(Residual(nn.AvgPool2d(2) if pool is None else pool))


def images(module: nn.Module, rows: int) -> tuple[Tensor, Tensor]:
    """Random images, some pixels at the edges of the box, and the module's own labels."""
    shape = (2, 8, 8) if isinstance(module, Residual) else (1, 1, 4)
    x = (1.4 * torch.rand(rows, *shape) - 0.2).clamp(0, 1)
    return x, module(x).argmax(1)


def exact_gaps(module: nn.Module, adv: Tensor, y: Tensor) -> Tensor:
    """[n, K - 1] of float32's own logits: z_y - z_k."""
    logits: Tensor = module(adv).double()
    return logits.gather(1, y[:, None]) - logits.gather(1, other_classes(y, logits.shape[1]))


def dual_gaps(network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
    region = Region(x.double(), ball)
    return dual_margins(network, refined_boxes(network, region, 1.0), region, y)


def ibp_gaps(network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
    return interval_margins(network, propagate_boxes(network, perturbation_box(x, ball)), y)


def corners(x: Tensor, ball: PerturbationSet, count: int) -> Tensor:
    """[count, C, H, W] random allowed images of one x: points inside the set and on its edge."""
    many = x.expand(count, *x.shape[1:])
    draws = KeyedRandomNumbers(torch.arange(count), torch.zeros(count).long())
    inside = ball.sample(many, draws)
    far = ball.farthest(draws.normal("to", tuple(x.shape[1:])), many)
    return torch.where((torch.arange(count) % 2 == 0)[:, None, None, None], inside, far)


@pytest.mark.row("V04")
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)], ids=["mean", "max"])
def test_intervals_contain_ten_thousand_samples(pool: nn.Module) -> None:
    module = residual(pool)
    ball = Linf(Fraction(1, 20))
    x, _ = images(module, 10)
    for i in range(10):
        here = x[i : i + 1]
        box = propagate_boxes(read_network(module), perturbation_box(here, ball))[-1]
        logits = module(corners(here, ball, 1000)).double()
        assert ((box.lower <= logits) & (logits <= box.upper)).all()


@pytest.mark.row("V04")
def test_the_graph_computes_the_module_s_logits() -> None:
    module = residual()
    x, _ = images(module, 50)
    box = propagate_boxes(read_network(module), Box(x.double(), x.double()))[-1]
    exact = residual_copy(module)(x.double())
    middle = (box.lower + box.upper) / 2
    assert torch.allclose(middle, exact, atol=1e-12)
    assert ((box.lower < module(x)) & (module(x) < box.upper)).all()
    assert (box.upper - box.lower).amax() < 1e-3


def residual_copy(module: nn.Module) -> nn.Module:
    """The same weights in float64."""
    other = residual()
    other.load_state_dict(module.state_dict())
    return other.double()


@pytest.mark.row("V04")
def test_intervals_are_exact_for_one_linear_layer() -> None:
    module = frozen(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    x, y = images(module, 40)
    for ball in (Linf(Fraction(1, 10)), Linf(Fraction(1, 2))):
        found = ibp_gaps(read_network(module), x, y, ball).amin(1)
        assert torch.allclose(found, -worst_margin(module, x, y, ball), atol=1e-5)


@pytest.mark.row("V04")
def test_intervals_shrink_with_the_radius() -> None:
    module = residual()
    x, y = images(module, 20)
    network = read_network(module)
    before = exact_gaps(module, x, y) + 1e-3
    for eps in (Fraction(0), Fraction(1, 100), Fraction(1, 20), Fraction(1, 5)):
        found = ibp_gaps(network, x, y, Linf(eps))
        assert (found <= before).all()
        before = found


class Program(NamedTuple):
    """min z_y - z_k of a network with one hidden layer: variables are image, relu, side."""

    cost: Array
    rows: Array
    """rows @ variables <= limits."""
    limits: Array
    low: Array
    high: Array
    constant: float


def program(module: nn.Module, x: Tensor, label: int, rival: int, ball: PerturbationSet) -> Program:
    """Big-M with h = W x + b in [l, u]: relu >= h; relu >= 0; relu <= h - l (1 - a); relu <= u a.

    With a in {0, 1} that is the network (arXiv:1711.07356), with a in [0, 1] its convex outer
    polytope (arXiv:1711.00851).
    """
    boxes = propagate_boxes(read_network(module), perturbation_box(x, ball))
    pixels, hidden = boxes[0], boxes[2]
    first, last = (part for part in module.modules() if isinstance(part, nn.Linear))
    w, b = first.weight.double().numpy(), first.bias.double().numpy()
    out = (last.weight[label] - last.weight[rival]).double().numpy()
    units, inputs = w.shape
    below = hidden.lower[0].clamp_max(0).numpy()
    above = hidden.upper[0].clamp_min(0).numpy()
    eye, none = np.eye(units), np.zeros((units, units))
    return Program(
        cost=np.concatenate([np.zeros(inputs), out, np.zeros(units)]),
        rows=np.block([[w, -eye, none], [-w, eye, -np.diag(below)], [0 * w, eye, -np.diag(above)]]),
        limits=np.concatenate([-b, b - below, 0 * b]),
        low=np.concatenate([pixels.lower.flatten().numpy(), 0 * b, 0 * b]),
        high=np.concatenate([pixels.upper.flatten().numpy(), above, 0 * b + 1]),
        constant=float((last.bias[label] - last.bias[rival]).double()),
    )


def solved(made: Program, *, integral: bool) -> float:
    """The minimum by HiGHS, over the network itself or over its convex outer polytope."""
    sides = np.zeros(len(made.cost))
    sides[-int(len(made.limits) / 3) :] = integral
    answer = milp(
        made.cost,
        constraints=LinearConstraint(made.rows, -np.inf, made.limits),
        bounds=Bounds(made.low, made.high),
        integrality=sides,
        options={"mip_rel_gap": 0.0},
    )
    assert answer.success
    return float(answer.fun) + made.constant


def enumerated(
    module: nn.Module, x: Tensor, label: int, rival: int, ball: PerturbationSet
) -> float:
    """The same minimum as the smallest of one linear program for each pattern of signs."""
    pixels = perturbation_box(x, ball)
    first, last = (part for part in module.modules() if isinstance(part, nn.Linear))
    w, b = first.weight.double().numpy(), first.bias.double().numpy()
    out = (last.weight[label] - last.weight[rival]).double().numpy()
    edges = np.stack([pixels.lower.flatten().numpy(), pixels.upper.flatten().numpy()], 1)
    found = []
    for on in product((0.0, 1.0), repeat=len(b)):
        active, sign = np.array(on), 1 - 2 * np.array(on)
        answer = linprog((out * active) @ w, sign[:, None] * w, -sign * b, bounds=edges)
        if answer.success:
            found.append(answer.fun + (out * active) @ b)
    return float(min(found)) + float((last.bias[label] - last.bias[rival]).double())


def shallow(hidden: int = 6) -> nn.Module:
    """A network with one hidden layer of ReLUs with open signs that predicts all classes."""
    last = nn.Linear(hidden, 3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, hidden), nn.ReLU(), last)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        last.bias.sub_(module(torch.rand(500, 1, 1, 4)).mean(0))
    return frozen(module)


@pytest.mark.row("V02")
def test_the_milp_equals_the_enumeration_of_all_patterns() -> None:
    module, ball = shallow(), Linf(Fraction(1, 5))
    x, y = images(module, 4)
    for i in range(4):
        label, rival = int(y[i]), (int(y[i]) + 1) % 3
        case = (module, x[i : i + 1], label, rival, ball)
        assert solved(program(*case), integral=True) == pytest.approx(enumerated(*case), abs=1e-6)


@pytest.mark.row("V03")
def test_interval_bound_dual_bound_polytope_milp_and_images_are_in_this_order() -> None:
    module, ball = shallow(8), Linf(Fraction(1, 5))
    x, y = images(module, 12)
    network = read_network(module)
    interval, dual = ibp_gaps(network, x, y, ball), dual_gaps(network, x, y, ball)
    assert (dual >= interval - 1e-9).all() and (dual > interval + 0.1).double().mean() > 0.8
    nearer = 0
    for i in range(12):
        reached = exact_gaps(module, corners(x[i : i + 1], ball, 500), y[i].expand(500)).amin(0)
        for place, rival in enumerate(other_classes(y, 3)[i].tolist()):
            made = program(module, x[i : i + 1], int(y[i]), rival, ball)
            loose, exact = solved(made, integral=False), solved(made, integral=True)
            assert float(dual[i, place]) <= loose + 1e-6
            assert loose <= exact + 1e-6
            assert exact <= float(reached[place]) + 1e-4
            nearer += loose - float(dual[i, place]) < 0.1 * (loose - float(interval[i, place]))
    assert nearer >= 12, "half of the dual bounds come within a tenth of the polytope's optimum"


@pytest.mark.row("V03")
@every_norm
@pytest.mark.parametrize("build", [tiny, residual], ids=["dense", "residual"])
def test_no_allowed_image_has_a_margin_below_the_dual_bound(
    build: Callable[[], nn.Module], norm: Callable[[Fraction], PerturbationSet]
) -> None:
    module = build()
    ball = norm(RADIUS[norm(Fraction(0)).name])
    x, y = images(module, 8)
    found = dual_gaps(read_network(module), x, y, ball)
    tight = 0.0
    for i in range(8):
        adv = corners(x[i : i + 1], ball, 400)
        reached = exact_gaps(module, adv, y[i].expand(400)).amin(0)
        assert (reached >= found[i]).all()
        tight = max(tight, float((found[i] / reached).amax()))
    assert tight > 0.9, "the bound is no empty one"


@pytest.mark.row("V03")
@pytest.mark.parametrize("eps", [Fraction(1, 10), Fraction(2, 255), Fraction(8, 255)])
def test_only_the_linf_ball_is_a_box(eps: Fraction) -> None:
    x = torch.rand(64, 1, 8, 8, dtype=torch.float64)
    assert Region(x, Linf(eps)).is_box
    assert not Region(x, L2(eps)).is_box and not Region(x, L1(eps)).is_box


@pytest.mark.row("V03")
def test_without_a_relu_the_dual_bound_is_exact_in_every_norm() -> None:
    module = frozen(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    x, y = images(module, 40)
    for ball in (Linf(Fraction(1, 10)), L2(Fraction(1, 2)), L1(Fraction(1))):
        found = dual_gaps(read_network(module), x, y, ball).amin(1)
        assert torch.allclose(found, -worst_margin(module, x, y, ball), atol=1e-5)


@pytest.mark.row("V03")
def test_the_dual_bound_is_tighter_than_intervals_on_most_margins() -> None:
    module, ball = residual(), Linf(Fraction(1, 20))
    x, y = images(module, 30)
    network = read_network(module)
    better = dual_gaps(network, x, y, ball) >= ibp_gaps(network, x, y, ball)
    assert better.double().mean() > 0.95


@pytest.mark.row("V05")
@every_norm
def test_the_lipschitz_margin_is_exact_for_a_linear_model(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    module = frozen(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    x = 0.5 + 0.02 * torch.randn(1, 1, 1, 4)
    y = module(x).argmax(1)
    weight, bias = weight_and_bias(module)
    order = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}[norm(Fraction(0)).name]
    z = weight @ x.double().flatten() + bias
    radius = min(
        float((z[y] - z[k]) / torch.linalg.vector_norm(weight[y] - weight[k], order))
        for k in range(3)
        if k != int(y)
    )
    tool = LipschitzMargin()
    assert tool.certify(module, x, y, norm(Fraction(radius * 0.999))).all()
    assert not tool.certify(module, x, y, norm(Fraction(radius * 1.001))).any()


@pytest.mark.row("V05")
def test_the_lipschitz_radius_is_at_least_margin_over_root_two_times_the_product() -> None:
    module = tiny()
    x, y = images(module, 200)
    layers = [part.weight.double() for part in module.modules() if isinstance(part, nn.Linear)]
    product_ = math.prod(float(torch.linalg.matrix_norm(weight, 2)) for weight in layers)
    margin = exact_gaps(module, x, y).amin(1)
    for eps in (Fraction(1, 100), Fraction(1, 20), Fraction(1, 5)):
        due = margin / (math.sqrt(2) * product_) > 1.001 * float(eps) + 1e-4
        assert due.any()
        assert (LipschitzMargin().certify(module, x, y, L2(eps)) | ~due).all()


@pytest.mark.row("V05")
@every_norm
def test_no_output_changes_faster_than_its_lipschitz_constant(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    module, ball = residual(), norm(RADIUS[norm(Fraction(0)).name])
    order = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}[ball.name]
    x, _ = images(module, 4)
    network = read_network(module)
    boxes = propagate_boxes(network, perturbation_box(x, ball))
    gain = lipschitz_constants(network, boxes, order)[-1]
    for i in range(4):
        adv = corners(x[i : i + 1], ball, 200).double()
        moved = before_last(network, adv) - before_last(network, x[i : i + 1].double())
        far = torch.linalg.vector_norm(moved, order, dim=1)
        assert (far <= gain * ball.radius + 1e-9).all()


def before_last(network: Network, x: Tensor) -> Tensor:
    """The input of the last layer, of the exact network."""
    box = propagate_boxes(network, Box(x, x))[-2]
    return (box.lower + box.upper).flatten(1) / 2


CONVOLUTIONS = {
    "plain": nn.Conv2d(2, 3, 3, padding=1),
    "stride": nn.Conv2d(2, 3, 4, stride=2, padding=1),
    "dilated": nn.Conv2d(3, 2, 3, padding=2, dilation=2),
    "groups": nn.Conv2d(4, 2, 3, groups=2),
}


@pytest.mark.row("V05")
@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_the_norms_of_a_convolution_bound_those_of_its_matrix(layer: nn.Conv2d) -> None:
    ones = torch.ones(1, layer.in_channels, 6, 6, dtype=torch.float64)
    (step,) = read_network(frozen(nn.Sequential(layer))).steps
    op = step.op
    assert isinstance(op, Affine)
    units = torch.eye(ones.numel(), dtype=torch.float64).view(-1, *ones.shape[1:])
    matrix = (op.apply(units) - op.offset(ones)).flatten(1).T
    assert norm_inf(op, ones) == pytest.approx(float(matrix.abs().sum(1).amax()))
    assert norm_1(op, ones) == pytest.approx(float(matrix.abs().sum(0).amax()))
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    assert exact <= norm_2(op, ones) <= 2.5 * exact


@pytest.mark.row("V05")
def test_the_torus_is_larger_than_the_image() -> None:
    """An alternating kernel on an odd image: a torus of the image's size gives 1.902 < 1.932."""
    weight = torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64)
    units = torch.eye(5, dtype=torch.float64).view(-1, 1, 1, 5)
    exact = float(torch.linalg.matrix_norm(F.conv2d(units, weight, padding=(0, 1)).flatten(1), 2))
    assert exact == pytest.approx(2 * math.cos(math.pi / 12))
    assert _spectral_norm.convolution_norm(weight, (1, 1), 1, units.shape[1:]) >= exact


@pytest.mark.row("V05")
def test_the_bound_of_a_convolution_is_tight_for_large_images() -> None:
    weight = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    excess = []
    for side in (4, 8, 16):
        units = torch.eye(side * side, dtype=torch.float64).view(-1, 1, side, side)
        matrix = F.conv2d(units, weight, padding=1).flatten(1)
        exact = float(torch.linalg.matrix_norm(matrix, 2))
        excess.append(
            _spectral_norm.convolution_norm(weight, (1, 1), 1, units.shape[1:]) / exact - 1
        )
    assert excess[0] > excess[1] > excess[2] > 0
    assert excess[2] < 0.02


@pytest.mark.row("V09", "E22")
@every_certifier
@every_norm
def test_certificates_shrink_with_the_radius_and_start_at_clean_accuracy(
    certifier: Certifier, norm: Callable[[Fraction], PerturbationSet]
) -> None:
    module = tiny()
    x, y = images(module, 60)
    y = torch.where(torch.arange(60) % 5 == 0, (y + 1) % 3, y)
    before = module(x).argmax(1) == y
    clear = exact_gaps(module, x, y).amin(1) > 1e-3
    assert torch.equal(certifier.certify(module, x, y, norm(Fraction(0))) & clear, before & clear)
    some = 0
    for eps in (Fraction(1, 200), Fraction(1, 50), Fraction(1, 10), Fraction(1)):
        found = certifier.certify(module, x, y, norm(eps))
        assert not (found & ~before).any()
        before, some = found, some + int(found.any() and not found.all())
    assert some


@every_certifier
def test_certificates_do_not_depend_on_the_batch(certifier: Certifier) -> None:
    module, ball = shallow(), L2(Fraction(1, 40))
    x, y = images(module, 70)
    whole = certifier.certify(module, x, y, ball)
    assert 5 < int(whole.sum()) < 65
    order = torch.randperm(70)[:40]
    assert torch.equal(certifier.certify(module, x[order], y[order], ball), whole[order])


@pytest.mark.row("V03", "V04", "V05", "V09", "E22")
@every_certifier
def test_no_attack_breaks_a_certified_example(certifier: Certifier, registry: Registry) -> None:
    module, ball = shallow(), Linf(Fraction(1, 100))
    x, y = images(module, 300)
    certified = certifier.certify(module, x, y, ball)
    assert 30 < int(certified.sum()) < 300
    for attack in ("fgsm", "pgd", "pgd-margin"):
        found = registry.attacks[attack].value
        adv = attack_once(found, module, x, y, ball, seed=0, example=torch.arange(300))
        assert (module(adv).argmax(1) == y)[certified].all()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.load(tmp_path_factory.mktemp("submissions"))


class Hooked(nn.Sequential):
    """A linear model with a hook that reverses its logits."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(4, 3))
        self[1].register_forward_hook(lambda module, taken, answer: -answer)


class Symbolic(nn.Module):
    """A module that shows another network during tracing."""

    def __init__(self, shown: nn.Module, evaluated: nn.Module) -> None:
        super().__init__()
        self.shown, self.evaluated = shown, evaluated

    def forward(self, images: Tensor) -> Tensor:
        real = isinstance(images, Tensor)
        answer: Tensor = (self.evaluated if real else self.shown)(images)
        return answer


class Branching(nn.Module):
    """A module whose forward branches on values."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


class Squared(nn.Module):
    """A module that squares a computed value."""

    def forward(self, images: Tensor) -> Tensor:
        return images * images


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "hook": (Hooked(), "hooks"),
    "branch": (Branching(), "traced"),
    "square": (Squared(), "multiplies"),
    "softmax": (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1)), "Softmax"),
    "reflect": (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), "reflect"),
}


@every_certifier
@pytest.mark.parametrize(("module", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_other_models_are_refused_with_a_sentence(
    certifier: Certifier, module: nn.Module, word: str
) -> None:
    sentence = certifier.refuses(frozen(module), Linf(Fraction(1, 10)))
    assert word in sentence and sentence.endswith(".")


@every_certifier
def test_nothing_is_certified_of_a_model_that_shows_another_network(certifier: Certifier) -> None:
    shown, evaluated = tiny(), tiny()
    module = frozen(Symbolic(shown, evaluated))
    x, y = images(shown, 20)
    assert certifier.refuses(module, Linf(Fraction(0))) == ""
    assert certifier.certify(shown, x, y, Linf(Fraction(0))).any()
    assert not certifier.certify(module, x, y, Linf(Fraction(0))).any()


def test_only_intervals_support_max_pooling() -> None:
    module, ball = residual(nn.MaxPool2d(2)), Linf(Fraction(1, 10))
    assert Intervals().refuses(module, ball) == ""
    for tool in (DualBound(), LipschitzMargin()):
        assert "max pooling" in tool.refuses(module, ball)


def test_the_exact_linear_certificate_contains_all_others() -> None:
    module = frozen(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    x, y = images(module, 200)
    for ball in (Linf(Fraction(1, 20)), L2(Fraction(1, 10)), L1(Fraction(1, 5))):
        exact = LinearExact().certify(module, x, y, ball)
        for tool in CERTIFIERS:
            assert not (tool.certify(module, x, y, ball) & ~exact).any(), tool.name


@pytest.mark.row("V03")
def test_the_published_network_is_certified_as_published(registry: Registry) -> None:
    """At most 5.82 % of 10,000 images can be broken, so 94.18 % cannot (arXiv:1711.00851)."""
    dataset = registry.datasets["mnist"].value
    try:
        module = DefenseBuilder(registry, "convex-mnist", dataset).build()
        examples = datasets.first_examples(dataset, 32)
    except UnavailableError as error:
        pytest.skip(str(error))
    x, y = examples.tensor(), torch.tensor(examples.labels)
    certified = DualBound().certify(module, x, y, Linf(Fraction(1, 10)))
    assert int(certified.sum()) == 29
    assert not Intervals().certify(module, x, y, Linf(Fraction(1, 10))).any()
