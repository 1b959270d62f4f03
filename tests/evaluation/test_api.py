"""The Python interface: counts of the command line, wrong arguments, tables, figures, files.

The figures are those of bench.results.figures.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.errors import BenchError, UnavailableError
from bench.core.radii import exact_fraction
from bench.evaluation.attack_run import AttackRun
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.memory_plugins import memory_registry, module_digest
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Defense
from bench.registry.registration import Registration
from bench.results.evaluation_result import WORST_CASE, EvaluationResult
from bench.results.leaderboards import find_leaderboard
from bench.results.ranking import load_ranking
from bench.store import Store
from tests.fixtures.known_models import gaussian, linear

N, EPS = 60, Fraction(1, 20)
ATTACKS = ["fgsm", "pgd[steps=5,rate=0.5]"]


def two_classes() -> nn.Module:
    """A linear model with two classes of images [n, 1, 8, 8], against which FGSM is exact."""
    return linear(gaussian(2, 64, seed=3))


@pytest.fixture(scope="module")
def arrays() -> tuple[Tensor, Tensor]:
    """8-bit images [N, 1, 8, 8] that no attack moves to black or white; labels [N], some wrong."""
    levels = torch.randint(40, 216, (N, 1, 8, 8), generator=torch.Generator().manual_seed(5))
    x = levels.float() / 255
    with torch.no_grad():
        y = two_classes()(x).argmax(1)
    y[:7] = 1 - y[:7]
    return x, y


def exactly_robust(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """[n] bool: no perturbation of eps changes the label, in closed form."""
    weight = gaussian(2, 64, seed=3).double()
    flat = x.flatten(1).double()
    gap = (weight[y] - weight[1 - y]).mul(flat).sum(1)
    return gap > eps * (weight[0] - weight[1]).abs().sum()


@pytest.fixture(scope="module")
def curve(arrays: tuple[Tensor, Tensor]) -> EvaluationResult:
    return bench.evaluate(
        two_classes(), arrays, eps=[0.01, "1/20"], attacks=ATTACKS, progress=False
    )


def test_the_counts_are_those_of_the_closed_form(
    curve: EvaluationResult, arrays: tuple[Tensor, Tensor]
) -> None:
    x, y = arrays
    assert (curve.n, curve.clean.k) == (N, N - 7)
    for eps in (0.01, 0.05):
        exact = exactly_robust(x, y, eps)
        assert 0 < int(exact.sum()) < N - 7
        np.testing.assert_array_equal(curve.at(eps).result.robust(), exact.numpy())
        assert curve.at(eps).row.robust.k == int(exact.sum())


def test_each_radius_and_attack_has_a_row(curve: EvaluationResult) -> None:
    frame = curve.to_dataframe()
    assert list(zip(frame.eps, frame.attack, strict=True)) == [
        (eps, name) for eps in ("1/100", "1/20") for name in (*ATTACKS, WORST_CASE)
    ]
    worst = frame[frame.attack == WORST_CASE]
    assert worst.robust.tolist() == [curve.at(0.01).row.robust.k, curve.at(0.05).row.robust.k]
    assert (frame.low < frame.robust / frame.n).all() and (
        frame.robust / frame.n < frame.high
    ).all()


def test_several_radii_are_told_apart(curve: EvaluationResult) -> None:
    with pytest.raises(BenchError, match=r"several radii were evaluated: use result.at"):
        _ = curve.robust
    with pytest.raises(BenchError, match=r"eps 0.2 was not evaluated; there are 1/100, 1/20"):
        curve.at(0.2)


def test_tables_say_the_same_in_every_form(curve: EvaluationResult, tmp_path: Path) -> None:
    count = curve.at("1/20").row.robust
    figure = f"{100 * count.k / N:.1f}"
    assert f"{figure} % ({count.k}/{N})" in str(curve)
    assert f"| {WORST_CASE} | 1/20 | {figure} % ({count.k}/{N}) |" in curve.to_markdown()
    assert rf"{WORST_CASE} & 1/20 & {figure} \% ({count.k}/{N}) &" in curve.to_latex()
    assert f"<td>{figure} % ({count.k}/{N})</td>" in curve._repr_html_()
    curve.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == curve.to_csv()


def test_figures_are_drawn_with_the_counts(curve: EvaluationResult) -> None:
    import matplotlib

    matplotlib.use("agg")
    drawn_lines = {str(line.get_label()): line for line in curve.plot().get_lines()}
    lines = {name: line for name, line in drawn_lines.items() if name[0] != "_"}
    assert set(lines) == {*ATTACKS, WORST_CASE}
    shares = [100 * count.k / N for count in (curve.clean, *_worst(curve))]
    drawn = np.asarray(lines[WORST_CASE].get_xydata())
    np.testing.assert_allclose(drawn, list(zip([0, 0.01, 0.05], shares, strict=True)))


def _worst(curve: EvaluationResult) -> list[Any]:
    return [threat.row.robust for threat in curve.threats]


def test_a_saved_database_gives_the_same_report(curve: EvaluationResult, tmp_path: Path) -> None:
    path = curve.save(tmp_path / "run.db")
    with Store.open(f"sqlite:///{path}", read_only=True) as store:
        assert store.check() == []
        board = find_leaderboard(store, curve.at("1/20").leaderboard.name)
        (row,) = load_ranking(store, board)
    assert row == curve.at("1/20").row
    with pytest.raises(UnavailableError, match="exists already"):
        curve.save(path)


def test_a_radius_runs_autoattack_also_where_a_leaderboard_has_it() -> None:
    """The radius of `digits-linf`, whose protocol runs only where it is named."""
    model = linear(gaussian(10, 64, seed=3))
    result = bench.evaluate(model, ("digits", 8), eps="1/5", progress=False)
    attacks = {"apgd-ce", "apgd-t", "fab-t", "square-5000"}
    assert set(result.at().result.attacks) == attacks
    assert result.at().leaderboard.name == "digits-linf"


def test_a_named_threat_model_gives_the_outcomes_of_a_run(tmp_path: Path) -> None:
    """The same model as a registered defense, evaluated by the worker of `bench run`."""
    model = linear(gaussian(10, 64, seed=3))
    path = tmp_path / "a path%20with? signs#.db"
    found = bench.evaluate(
        model, ("digits", 40), threat_model="digits-linf", attacks=["pgd", "square"], db=path,
        progress=False,
    )  # fmt: skip
    registry = memory_registry()
    registry.diagnostics.clear()
    other = Defense("other", lambda loader: linear(gaussian(10, 64, seed=3)))
    registry.defenses["other"] = Registration(other, "built-in", "test", "")
    selection = Selection(("digits-linf",), ("other",), ("pgd", "square"), 40)
    with Store.open(f"sqlite:///{tmp_path / 'run.db'}") as store:
        settings = RunSettings(torch.device("cpu"))
        MatrixWorker(registry, store, selection, settings, certifiers="none").run()
        (row,) = load_ranking(store, find_leaderboard(store, "digits-linf"))
    assert row.robust == found.robust
    assert found.url == str(path) and path.exists()


def test_an_interrupted_database_is_not_evaluated_again(
    arrays: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"eps": EPS, "attacks": "fgsm", "db": tmp_path / "run.db"}
    first = bench.evaluate(two_classes(), arrays, progress=False, **settings)
    with Store.open(first.url, read_only=True) as store:
        before = [(row.key, row.updated) for row in store.cells()]
    again = bench.evaluate(two_classes(), arrays, progress=False, **settings)
    with Store.open(first.url, read_only=True) as store:
        assert [(row.key, row.updated) for row in store.cells()] == before
    assert again.robust == first.robust


def test_an_attack_returns_verified_images_in_order(arrays: tuple[Tensor, Tensor]) -> None:
    x, y = arrays
    run = bench.attack(two_classes(), x, y, "fgsm", eps=EPS)
    torch.testing.assert_close(~run.success, exactly_robust(x, y, 0.05))
    assert run.images.shape == x.shape and run.images.dtype == torch.float32
    assert (run.images - x).abs().max() <= 0.05 + 1e-6
    with torch.no_grad():
        changed = two_classes()(run.images).argmax(1) != y
    torch.testing.assert_close(changed, run.success)
    assert run.robust_accuracy == pytest.approx(float(exactly_robust(x, y, 0.05).double().mean()))


def test_an_attack_takes_any_floats_and_leaves_the_model_alone(
    arrays: tuple[Tensor, Tensor],
) -> None:
    x, y = arrays[0] * 0.9731 + 0.0123, arrays[1]
    model = nn.Sequential(nn.Dropout(0.5), two_classes()).train().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = x.clone()
    run = bench.attack(model, x, y, "pgd", eps="1/20", steps=3, rate=0.5)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, pixels)
    assert (run.images - x).abs().max() <= 0.05 + 1e-6
    assert int(run.gradients.max()) == 3


def test_targeted_attacks_reach_the_next_class() -> None:
    model = linear(gaussian(3, 64, seed=4))
    x = torch.full((9, 1, 8, 8), 0.5)
    y = torch.arange(9) % 3
    run = bench.attack(model, x, y, "pgd", eps=0.4, target_rule="next", steps=20)
    assert isinstance(run, AttackRun) and run.success.all()
    assert torch.equal(run.labels, (y + 1) % 3)


def arguments(**changes: Any) -> dict[str, Any]:
    x = torch.full((4, 1, 8, 8), 0.4)
    found = {"model": two_classes(), "data": (x, torch.zeros(4).long()), "eps": 0.1}
    return found | {"attacks": "fgsm", "progress": False} | changes


HALF = torch.full((4, 1, 8, 8), 0.4)
FOUR = torch.zeros(4).long()
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": lambda x: x}, "the model is function; a torch.nn.Module was expected"),
    ({"model": nn.Linear(3, 2)}, "the model does not answer images [4, 1, 8, 8]"),
    ({"model": nn.Flatten(0)}, "the model answers one image with [64]; logits [1, K]"),
    ({"data": "cifar-10"}, "no dataset named 'cifar-10'. Did you mean 'cifar10'"),
    ({"data": ("digits", 0)}, "use a number of images"),
    ({"data": (HALF,)}, "data is tuple; use the name of a data set"),
    ({"data": (HALF * 4, FOUR)}, "pixels from 1.6 to 1.6; [0, 1] was expected"),
    ({"data": (HALF * torch.nan, FOUR)}, "pixels from nan to nan; [0, 1] was expected"),
    ({"data": (HALF[:, 0], FOUR)}, "the images are torch.float32 [4, 8, 8]"),
    ({"data": (HALF, FOUR[:3])}, "the labels are torch.int64 [3]; class numbers [4]"),
    ({"data": (HALF, FOUR.float())}, "the labels are torch.float32 [4]"),
    ({"data": (HALF, FOUR + 2)}, "the labels go up to 2, and the model has 2 classes"),
    ({"data": (HALF + 1e-4, FOUR)}, "no multiple of 1/255"),
    ({"eps": None}, "name a threat_model or give eps, one of the two"),
    ({"threat_model": "digits-linf"}, "name a threat_model or give eps, one of the two"),
    ({"threat_model": "digits-linf", "eps": None}, "digits-linf is for digits and the data are"),
    ({"threat_model": "digits-lin", "eps": None}, "no threat named 'digits-lin'"),
    ({"eps": []}, "eps is empty"),
    ({"eps": "8/0"}, "eps is '8/0'; a number such as 8/255 was expected"),
    ({"eps": -0.1}, "it must not be negative"),
    ({"eps": float("inf")}, "eps is inf; a number such as 8/255 was expected"),
    ({"norm": "linf"}, "norm is 'linf'; use one of Linf, L2, L1"),
    ({"attacks": "pdg"}, "no attack named 'pdg'. Did you mean 'pgd'"),
    ({"name": "undefended"}, "name no registered defense"),
    ({"name": "my model"}, "the model's name came as 'my model'"),
    ({"device": "gpu"}, "--device came as 'gpu'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_a_wrong_argument_gets_one_sentence(changes: dict[str, Any], message: str) -> None:
    given = arguments(**changes)
    with pytest.raises(BenchError) as refused:
        bench.evaluate(given.pop("model"), given.pop("data"), **given)
    assert message in str(refused.value)


def test_an_attack_that_does_not_apply_says_why(arrays: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(BenchError, match="square works in Linf"):
        bench.attack(two_classes(), *arrays, "square", norm="L2", eps=1)


def test_a_model_that_fails_in_an_attack_ends_in_its_sentence(
    arrays: tuple[Tensor, Tensor],
) -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise RuntimeError("no gradient here")
            return torch.zeros(len(x), 2)

    with pytest.raises(BenchError, match="no gradient here"):
        bench.evaluate(Refuses(), arrays, eps=0.1, attacks="fgsm", progress=False)


def test_settings_of_torch_are_as_before(arrays: tuple[Tensor, Tensor]) -> None:
    model = two_classes()
    torch.set_num_threads(2)
    state = torch.random.get_rng_state()
    bench.attack(model, *arrays, "pgd", eps=0.1, steps=1)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.set_num_threads(1)


def test_the_digest_of_a_model_covers_layers_and_weights() -> None:
    one = two_classes()
    assert module_digest(one) == module_digest(two_classes())
    assert module_digest(one) != module_digest(linear(gaussian(2, 64, seed=4)))
    assert module_digest(nn.ReLU()) != module_digest(nn.ELU())
    assert module_digest(nn.Dropout(0.1)) != module_digest(nn.Dropout(0.2))
    assert module_digest(nn.Linear(2, 2).bfloat16())


@pytest.mark.parametrize("denominator", [1, 2, 10, 255, 1000])
def test_radii_are_the_simplest_fractions(denominator: int) -> None:
    for numerator in range(denominator + 1):
        exact = Fraction(numerator, denominator)
        assert exact_fraction(float(exact)) == exact == exact_fraction(str(exact))


def test_the_suite_fast_states_its_audit_beside_the_exact_count(
    arrays: tuple[Tensor, Tensor],
) -> None:
    """On a linear model with two classes its worst case is that of the closed form."""
    x, y = arrays
    result = bench.evaluate(two_classes(), arrays, eps=0.01, suite="fast", progress=False)
    assert result.robust.k == int(exactly_robust(x, y, 0.01).sum())
    (sentence,) = result.audits
    assert "suite fast, 0 of" in sentence
    assert sentence in " ".join(str(result).split())
    assert result.at().row.audit is not None


def test_the_suite_fast_runs_alone(arrays: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(BenchError, match="use --suite fast alone"):
        bench.evaluate(two_classes(), arrays, eps=0.01, attacks=["pgd"], suite="fast")
