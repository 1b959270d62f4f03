"""A locked-in entry is a defense like any other: its card, its weights, its digest, its cells."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from bench.cli import app, doctor
from bench.contract.check import CheckOutcome
from bench.contract.runner import CHECKS, check_registration
from bench.core.errors import BenchError, PluginError
from bench.evaluation import launcher
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.evaluation.reproduce import reproduce
from bench.plugin import Dataset
from bench.registry.discovery import REVIEWED_SUBMISSIONS
from bench.registry.registry import Registry
from bench.sandbox import isolation
from bench.store import Store
from bench.submissions import templates
from bench.submissions.intake import accept_submission
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from tests.fixtures.known_models import digits
from tests.sandbox.isolated import PLAIN, sandboxed, unsandboxed, write_submission

pytestmark = pytest.mark.usefixtures("sandbox")

SHADES = '''
"""The undefended network, seen through few shades."""

from bench.plugin import Claim, Defense, hookimpl
from torch import Tensor, nn


class Shades(nn.Module):
    def __init__(self, loader, see):
        super().__init__()
        self.classifier, self.see = loader.defense("undefended"), see

    def forward(self, images):
        return self.classifier(self.see(images))


@hookimpl
def bench_defenses():
    yield Defense(
        name="{name}", build=lambda loader: Shades(loader, Tensor.round),
        bpda=lambda loader: Shades(loader, Tensor.tanh), cite="arXiv:1704.01155",
        summary="Few shades.", claims=(Claim("digits-linf", 0.5),), forwards=2,
    )
'''
WEIGHTED = PLAIN.replace(
    "return Net(loader)", "return loader.weights(Net(loader), 'weights.safetensors')"
)


def dataset(registry: Registry) -> Dataset:
    found: Dataset = registry.find("dataset", "digits").value
    return found


def loader(registry: Registry, folder: Path | None = None) -> DefenseBuilder:
    return DefenseBuilder(registry, "mine", dataset(registry), folder)


def test_what_it_says_of_itself_is_what_it_would_say_here(tmp_path: Path) -> None:
    write_submission(tmp_path, SHADES)
    inside, here = sandboxed(tmp_path), unsandboxed(tmp_path)
    assert inside.defense_card("mine") == here.defense_card("mine")
    assert inside.problems == inside.not_imported() == []
    assert (inside.find("defense", "mine").isolation, here.find("defense", "mine").isolation) == (
        "sandboxed", "unsandboxed",
    )  # fmt: skip


def test_its_digest_is_the_one_it_has_here(tmp_path: Path) -> None:
    place = write_submission(tmp_path, WEIGHTED)
    save_file({"layer.weight": torch.ones(10, 64), "layer.bias": torch.arange(10.0)},
              place / "weights.safetensors")  # fmt: skip
    found = hashlib.sha256((place / "weights.safetensors").read_bytes()).hexdigest()
    card = (place / "card.toml").read_text().replace('weights = ""', f'weights = "{found}"')
    (place / "card.toml").write_text(card)
    inside, here = loader(sandboxed(tmp_path)), loader(unsandboxed(tmp_path))
    x = digits(8)[0]
    assert torch.equal(inside.build()(x), here.build()(x))
    assert inside.digest == here.digest
    save_file({"layer.weight": torch.zeros(9, 64)}, place / "weights.safetensors")
    with pytest.raises(BenchError, match=r"'layer\.bias' is missing"):
        inside.build()


def test_what_lies_below_it_is_trained_first_and_part_of_its_digest(tmp_path: Path) -> None:
    write_submission(tmp_path / "in", SHADES)
    registry = sandboxed(tmp_path / "in")
    with pytest.raises(NeedsTraining, match="undefended has no weights for digits yet") as need:
        loader(registry, tmp_path / "empty").build()
    assert need.value.name == "undefended"
    assert loader(registry).digest == loader(unsandboxed(tmp_path / "in")).digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (PLAIN.replace('"{name}"', '"another"'), "its card names the defense 'mine'; the code off"),
        (PLAIN.replace("yield", "yield 5\n    yield"), "what it offers as defense is 5, not a Def"),
        (PLAIN.replace("@hookimpl", "@hookimpl\ndef bench_attack():\n    ...\n@hookimpl"),
         "answers 'bench_attack', which no hook asks"),
        (PLAIN.replace("build=build", "build=build, forwards=0"), "forwards: Input should be gre"),
        (PLAIN.replace("build=build", "build=build, summary='x' * 5000"), "summary: String should"),
        (PLAIN.replace("build=build", "build=build, datasets=('y' * 70000,)"), "was announced"),
        (PLAIN.replace("build=build", "build=build, rejects=2.0"), "has rejects = 2.0"),
    ],
)  # fmt: skip
def test_what_no_defense_says_is_refused_by_name(
    source: str, sentence: str, tmp_path: Path
) -> None:
    write_submission(tmp_path, source)
    registry = sandboxed(tmp_path)
    assert registry.not_imported() == ["mine"]
    assert sentence in registry.why_not_imported("mine")
    with pytest.raises(BenchError, match="the defense 'mine' is a submission: submission mine"):
        registry.find("defense", "mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ("loader.defense('nobody')", "no defense named 'nobody'"),
        ("loader.defense('mine')", "mine builds on mine, which is no built-in defense"),
        ("loader.defense('gaussian-noise')", "no defense named 'gaussian-noise'"),
        ("loader.weights(Net(loader), '../other/weights.safetensors')", "name a .safetensors file"),
        ("loader.weights(Net(loader), 'none.safetensors')", "needs the weights none.safetensors"),
        ("loader.trained(Net(loader))", "mine declares no recipe"),
        ("loader.line.wish({'ask': 'labels', 'of': ['mine']})", "asked the loader for labels"),
        ("loader.line.wish({'ask': 'trained', 'of': ['undefended']})", "builds nothing here"),
        ("loader.line.wish({'ask': 'trained', 'of': {'x': 1}})", "builds nothing here"),
        ("loader.line.wish({'ask': 'built', 'of': ['mine'], 'name': ['x']})", "no defense named"),
    ],
)
def test_the_shelf_lends_what_a_defense_may_have(wish: str, sentence: str, tmp_path: Path) -> None:
    write_submission(tmp_path, PLAIN.replace("return Net(loader)", f"return {wish}"))
    with pytest.raises(BenchError, match=sentence):
        loader(sandboxed(tmp_path)).build()


def test_a_recipe_of_its_own_is_not_trained_behind_walls(tmp_path: Path) -> None:
    source = PLAIN.replace("import Defense", "import Defense, Recipe").replace(
        "build=build)",
        "build=lambda loader: loader.trained(Net(loader)), recipe=Recipe(Net, lambda lesson: 0))",
    )
    write_submission(tmp_path, source)
    with pytest.raises(PluginError, match="a recipe of its own, which the sandbox does not do"):
        loader(sandboxed(tmp_path)).build()


def test_a_threat_model_waits_and_what_was_reviewed_needs_no_walls(tmp_path: Path) -> None:
    place = templates.write_template("threat", "mine", tmp_path)
    registry = sandboxed(place.parent)
    assert registry.why_not_imported("mine").startswith(
        "no threat is locked in so far; --allow-unsand"
    )
    shipped = sandboxed(Path(__file__).parents[2] / "submissions")
    assert {shipped.find("defense", name).isolation for name in REVIEWED_SUBMISSIONS} == {
        "in-process"
    }


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SHADES, played on one board behind walls; the folder of its database."""
    write_submission(tmp_path / "in", SHADES)
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    assert _campaign(tmp_path, "walls.db").run() == 0
    return tmp_path


def _campaign(folder: Path, name: str, *, here: bool = False) -> MatrixRun:
    chosen = Selection(("digits-linf",), ("mine",), ("pgd", "fgsm"), 64)
    url = f"sqlite:///{folder / name}"
    return MatrixRun(chosen, url, quiet=True, allow_unsandboxed=here)


def test_a_run_behind_walls_is_the_run_without(played: Path) -> None:
    assert _campaign(played, "none.db", here=True).run() == 0
    rows = []
    for name in ("walls.db", "none.db"):
        with Store.open(f"sqlite:///{played / name}") as store:
            cells = sorted(store.cells(), key=lambda row: row.key)
            rows.append([(c.key, c.tier, store.outcomes(c.key).verdict.tolist()) for c in cells])
    walls, none = rows
    assert [(key, said) for key, _, said in walls] == [(key, said) for key, _, said in none]
    assert {tier for _, tier, _ in walls} == {"sandboxed"}
    assert {tier for _, tier, _ in none} == {"unsandboxed"}


def test_a_cell_behind_walls_is_reproduced(played: Path) -> None:
    url = f"sqlite:///{played / 'walls.db'}"
    with Store.open(url) as store:
        key = next(row.key for row in store.cells() if row.cell.attack == "pgd")
    assert reproduce(key, url, "cpu", allow_unsandboxed=False)["same"]


def test_what_dies_in_a_cell_fails_that_cell_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FGSM's images are all at the ball's corners: there are few grey levels between.
    source = SHADES.replace(
        "return self.classifier(self.see(images))",
        "if images.requires_grad and (images * 255 % 1 != 0).any():\n"
        "            __import__('os').abort()\n"
        "        return self.classifier(self.see(images))",
    ).replace("bpda=lambda loader: Shades(loader, Tensor.tanh), ", "")  # fmt: skip
    write_submission(tmp_path / "in", source)
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    assert _campaign(tmp_path, "b.db").run() == 1
    with Store.open(f"sqlite:///{tmp_path / 'b.db'}") as store:
        told = {row.cell.attack: (str(row.state), row.reason) for row in store.cells()}
    assert told["fgsm"][0] == "done"
    assert told["pgd"][0] == "failed"
    assert "died of SIGABRT" in told["pgd"][1]


def test_without_walls_the_run_says_what_waits_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_submission(tmp_path / "in", PLAIN)
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    for room in (isolation,):
        monkeypatch.setattr(room, "refusal", lambda: "bubblewrap is not installed; install it")
    done = CliRunner().invoke(
        app, ["run", "--defense", "mine", "--db", str(tmp_path / "b.db"), "--quiet"]
    )
    assert isinstance(done.exception, BenchError)
    assert str(done.exception) == (
        "the defense 'mine' is a submission: bubblewrap is not installed; install it, or run its "
        "code with --allow-unsandboxed."
    )
    assert "waits for that" in doctor._isolation(None).sentence


def test_the_doctor_puts_walls_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._isolation(None)
    assert found.fit
    assert "a worker stood behind walls within" in found.sentence
    monkeypatch.setattr(isolation, "program", list)
    broken = [look(None) for look in doctor.LOOKS if look.__closure__][-1]
    assert not broken.fit
    assert broken.sentence.startswith("the sandbox did not start: ")


def test_the_contract_is_checked_behind_walls(tmp_path: Path) -> None:
    write_submission(tmp_path, SHADES)
    registry = sandboxed(tmp_path)
    results = list(check_registration(registry, "defense", registry.find("defense", "mine")))
    told = {result.check: (result.outcome, result.sentence) for result in results}
    assert len(told) == len(CHECKS["defense"])
    assert [name for name, (outcome, _) in told.items() if outcome is CheckOutcome.FAIL] == []
    hidden = {n for n, (_, said) in told.items() if "behind the walls" in said}
    assert hidden == {"eval-mode-is-kept", "weights-are-left-alone", "saved-is-loaded"}


def test_submit_checks_a_defense_and_runs_no_line_of_it_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    told = f"import os; print('inside' if os.getpid() != {os.getpid()} else 1 / 0)\n"
    good = write_submission(tmp_path, SHADES.replace("from torch", f"{told}from torch", 1))
    vague = write_submission(
        tmp_path, SHADES.replace("self.see(images)", "images + images.mean()"), name="vague"
    )
    with Store.open(f"sqlite:///{tmp_path / 'b.db'}") as store:
        assert accept_submission(good, store).checked
        with pytest.raises(BenchError, match="companions-do-not-matter: logits moved by"):
            accept_submission(vague, store)
        states = {e.name: e.history[-1].state for e in store.submissions()}
    assert states == {"mine": "queued", "vague": "rejected"}
    assert not (tmp_path / "in" / "vague").exists()


def test_workers_are_started_for_whom_the_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_submission(tmp_path, PLAIN.replace("build=build", "build=build, surrogate='second'"), "first")
    for name in ("second", "third"):
        write_submission(tmp_path, PLAIN, name)
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path))
    registry = launcher.load_registry(False, Selection(defenses=("first",)))
    assert registry.not_imported() == ["third"]
    assert registry.reasons_not_imported == {}
    with pytest.raises(BenchError, match="Did you mean 'third'"):
        registry.find("defense", "thrid")
    assert launcher.load_registry(False, Selection(defenses=("all",))).not_imported() == []


def test_a_list_starts_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_submission(tmp_path, "raise SystemExit('this ran')")
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path))
    monkeypatch.setattr(
        launcher, "isolate_submissions", lambda registry: pytest.fail("it was locked in")
    )
    done = CliRunner().invoke(app, ["list", "defenses", "--json"])
    names = {item["name"] for item in json.loads(done.stdout)["items"]}
    assert "mine" in names
