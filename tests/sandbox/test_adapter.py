"""Sandboxed submissions: the same cards, weights, digests and outcomes as in this process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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
from bench.sandbox import adapter, isolation
from bench.sandbox.process import SandboxProcess
from bench.store import Store
from bench.submissions import templates
from bench.submissions.intake import accept_submission
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from tests.fixtures.known_models import digits
from tests.sandbox.isolated import PLAIN, sandboxed, unsandboxed, write_submission

pytestmark = pytest.mark.usefixtures("sandbox")

ROUNDING = '''
"""The undefended network on images of few grey levels."""

from bench.plugin import Claim, Defense, hookimpl
from torch import Tensor, nn


class Rounding(nn.Module):
    def __init__(self, loader, see):
        super().__init__()
        self.classifier, self.see = loader.defense("undefended"), see

    def forward(self, images):
        return self.classifier(self.see(images))


@hookimpl
def bench_defenses():
    yield Defense(
        name="{name}", build=lambda loader: Rounding(loader, Tensor.round),
        bpda=lambda loader: Rounding(loader, Tensor.tanh), cite="arXiv:1704.01155",
        summary="Few grey levels.", claims=(Claim("digits-linf", 0.5),), forwards=2,
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


def test_its_card_is_the_same_as_in_this_process(tmp_path: Path) -> None:
    write_submission(tmp_path, ROUNDING)
    inside, here = sandboxed(tmp_path), unsandboxed(tmp_path)
    assert inside.defense_card("mine") == here.defense_card("mine")
    assert inside.problems == inside.not_imported() == []
    assert (inside.find("defense", "mine").isolation, here.find("defense", "mine").isolation) == (
        "sandboxed", "unsandboxed",
    )  # fmt: skip


def test_its_digest_is_the_same_as_in_this_process(tmp_path: Path) -> None:
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


def test_the_defense_it_builds_on_is_trained_first_and_part_of_its_digest(tmp_path: Path) -> None:
    write_submission(tmp_path / "in", ROUNDING)
    registry = sandboxed(tmp_path / "in")
    with pytest.raises(NeedsTraining, match="undefended has no weights for digits yet") as need:
        loader(registry, tmp_path / "empty").build()
    assert need.value.name == "undefended"
    assert loader(registry).digest == loader(unsandboxed(tmp_path / "in")).digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PLAIN.replace('"{name}"', '"another"'), "its card names the defense 'mine'; the code reg"),
        (PLAIN.replace("yield", "yield 5\n    yield"), "defense is 5, not a Def"),
        (PLAIN.replace("@hookimpl", "@hookimpl\ndef bench_attack():\n    ...\n@hookimpl"),
         "implements 'bench_attack', which is not a hook"),
        (PLAIN.replace("build=build", "build=build, forwards=0"), "forwards: Input should be gre"),
        (PLAIN.replace("build=build", "build=build, summary='x' * 5000"), "summary: String should"),
        (PLAIN.replace("build=build", "build=build, datasets=('y' * 70000,)"), "was announced"),
        (PLAIN.replace("build=build", "build=build, rejects=2.0"), "has rejects = 2.0"),
    ],
)  # fmt: skip
def test_invalid_declarations_are_refused_by_name(
    source: str, message: str, tmp_path: Path
) -> None:
    write_submission(tmp_path, source)
    registry = sandboxed(tmp_path)
    assert registry.not_imported() == ["mine"]
    assert message in registry.why_not_imported("mine")
    with pytest.raises(BenchError, match="the defense 'mine' is a submission: submission mine"):
        registry.find("defense", "mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("loader.defense('missing')", "no defense named 'missing'"),
        (
            "loader.defense('mine')",
            "mine builds on mine; a sandboxed defense can build on built-in",
        ),
        ("loader.defense('gaussian-noise')", "no defense named 'gaussian-noise'"),
        ("loader.weights(Net(loader), '../other/weights.safetensors')", "name a .safetensors file"),
        ("loader.weights(Net(loader), 'none.safetensors')", "needs the weights none.safetensors"),
        ("loader.trained(Net(loader))", "mine declares no recipe"),
        (
            "loader.channel.request({'request': 'labels', 'of': ['mine']})",
            "sent the unknown request labels",
        ),
        (
            "loader.channel.request({'request': 'trained', 'of': ['undefended']})",
            "submission mine requested weights for .*, which is no defense under construction",
        ),
        (
            "loader.channel.request({'request': 'trained', 'of': {'x': 1}})",
            "submission mine requested weights for .*, which is no defense under construction",
        ),
        (
            "loader.channel.request({'request': 'defense', 'of': ['mine'], 'name': ['x']})",
            "no defense named",
        ),
    ],
)
def test_requests_for_weights_that_are_not_allowed_are_refused(
    expression: str, message: str, tmp_path: Path
) -> None:
    write_submission(tmp_path, PLAIN.replace("return Net(loader)", f"return {expression}"))
    with pytest.raises(BenchError, match=message):
        loader(sandboxed(tmp_path)).build()


def test_the_sandbox_does_not_train_a_submitted_recipe(tmp_path: Path) -> None:
    source = PLAIN.replace("import Defense", "import Defense, Recipe").replace(
        "build=build)",
        "build=lambda loader: loader.trained(Net(loader)), recipe=Recipe(Net, lambda batch: 0))",
    )
    write_submission(tmp_path, source)
    with pytest.raises(PluginError, match="has a training recipe, and the sandbox does not train"):
        loader(sandboxed(tmp_path)).build()


def test_threat_models_are_read_in_the_sandbox(tmp_path: Path) -> None:
    place = templates.write_template("threat", "mine", tmp_path)
    found = sandboxed(place.parent).find("threat", "mine")
    assert (found.isolation, found.value.dataset) == ("sandboxed", "digits")


def test_reviewed_submissions_need_no_sandbox() -> None:
    shipped = sandboxed(Path(__file__).parents[2] / "submissions")
    assert {shipped.find("defense", name).isolation for name in REVIEWED_SUBMISSIONS} == {
        "in-process"
    }


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the database of a sandboxed run of ROUNDING under one threat model."""
    write_submission(tmp_path / "in", ROUNDING)
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    assert _matrix_run(tmp_path, "sandboxed.db").run() == 0
    return tmp_path


def _matrix_run(folder: Path, name: str, *, here: bool = False) -> MatrixRun:
    chosen = Selection(("digits-linf",), ("mine",), ("pgd", "fgsm"), 64)
    url = f"sqlite:///{folder / name}"
    return MatrixRun(chosen, url, quiet=True, allow_unsandboxed=here)


def test_a_sandboxed_run_has_the_outcomes_of_an_unsandboxed_one(evaluated: Path) -> None:
    assert _matrix_run(evaluated, "unsandboxed.db", here=True).run() == 0
    rows = []
    for name in ("sandboxed.db", "unsandboxed.db"):
        with Store.open(f"sqlite:///{evaluated / name}") as store:
            cells = sorted(store.cells(), key=lambda row: row.key)
            rows.append([(c.key, c.tier, store.outcomes(c.key).verdict.tolist()) for c in cells])
    inside, here = rows
    assert [(key, verdicts) for key, _, verdicts in inside] == [
        (key, verdicts) for key, _, verdicts in here
    ]
    assert {isolation for _, isolation, _ in inside} == {"sandboxed"}
    assert {isolation for _, isolation, _ in here} == {"unsandboxed"}


def test_a_sandboxed_cell_is_reproduced_within_the_time_of_a_cell(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{evaluated / 'sandboxed.db'}"
    with Store.open(url) as store:
        key = next(row.key for row in store.cells() if row.cell.attack == "pgd")
    assert reproduce(key, url, "cpu", allow_unsandboxed=False)["same"]
    monkeypatch.setattr(isolation, "LIMITS", isolation.Limits(cell=0.0))
    with pytest.raises(PluginError, match="mine did not finish its cell within 0 s; its process"):
        reproduce(key, url, "cpu", allow_unsandboxed=False)


def test_a_worker_that_dies_fails_its_cell_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FGSM's images are all at the ball's corners: there are few grey levels between.
    source = ROUNDING.replace(
        "return self.classifier(self.see(images))",
        "if images.requires_grad and (images * 255 % 1 != 0).any():\n"
        "            __import__('os').abort()\n"
        "        return self.classifier(self.see(images))",
    ).replace("bpda=lambda loader: Rounding(loader, Tensor.tanh), ", "")  # fmt: skip
    write_submission(tmp_path / "in", source)
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    assert _matrix_run(tmp_path, "b.db").run() == 1
    with Store.open(f"sqlite:///{tmp_path / 'b.db'}") as store:
        found = {row.cell.attack: (str(row.state), row.reason) for row in store.cells()}
    assert found["fgsm"][0] == "done"
    assert found["pgd"][0] == "failed"
    assert "was killed by SIGABRT" in found["pgd"][1]


def test_without_a_sandbox_a_run_reports_the_submission_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_submission(tmp_path / "in", PLAIN)
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    why = "bubblewrap is not installed; install it"
    monkeypatch.setattr(isolation, "why_unavailable", lambda: why)
    done = CliRunner().invoke(
        app, ["run", "--defense", "mine", "--db", str(tmp_path / "b.db"), "--quiet"]
    )
    assert isinstance(done.exception, BenchError)
    assert str(done.exception) == (
        "the defense 'mine' is a submission: bubblewrap is not installed; install it, or run its "
        "code with --allow-unsandboxed."
    )
    assert doctor._isolation(None).sentence.startswith(why)


def test_the_doctor_starts_a_sandboxed_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._isolation(None)
    assert found.fit
    assert "a sandboxed process started within" in found.sentence
    monkeypatch.setattr(isolation, "program", list)
    broken = [examine(None) for examine in doctor.EXAMINATIONS if examine.__closure__][-1]
    assert not broken.fit
    assert broken.sentence.startswith("the sandbox cannot be started on this machine: ")


def test_the_contract_of_a_sandboxed_defense_is_checked(tmp_path: Path) -> None:
    write_submission(tmp_path, ROUNDING)
    registry = sandboxed(tmp_path)
    results = list(check_registration(registry, "defense", registry.find("defense", "mine")))
    found = {result.check: (result.outcome, result.sentence) for result in results}
    assert len(found) == len(CHECKS["defense"])
    assert [name for name, (outcome, _) in found.items() if outcome is CheckOutcome.FAIL] == []
    hidden = {n for n, (_, text) in found.items() if "sandbox" in text}
    assert hidden == {"eval-mode-is-kept", "weights-are-left-alone", "saved-is-loaded"}


def test_submit_checks_a_defense_without_running_its_code_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    code = f"import os; print('inside' if os.getpid() != {os.getpid()} else 1 / 0)\n"
    good = write_submission(tmp_path, ROUNDING.replace("from torch", f"{code}from torch", 1))
    batchwise = write_submission(
        tmp_path, ROUNDING.replace("self.see(images)", "images + images.mean()"), name="batchwise"
    )
    with Store.open(f"sqlite:///{tmp_path / 'b.db'}") as store:
        assert accept_submission(good, store).checked
        with pytest.raises(BenchError, match="companions-do-not-matter: logits changed by"):
            accept_submission(batchwise, store)
        states = {e.name: e.history[-1].state for e in store.submissions()}
    assert states == {"mine": "queued", "batchwise": "rejected"}
    assert not (tmp_path / "in" / "batchwise").exists()


def test_workers_are_started_for_the_selected_defenses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_submission(
        tmp_path, PLAIN.replace("build=build", "build=build, surrogate='second'"), "first"
    )
    for name in ("second", "third"):
        write_submission(tmp_path, PLAIN, name)
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path))
    registry = launcher.load_registry(False, Selection(defenses=("first",)))
    assert registry.not_imported() == ["third"]
    assert registry.reasons_not_imported == {}
    with pytest.raises(BenchError, match="Did you mean 'third'"):
        registry.find("defense", "thrid")
    assert launcher.load_registry(False, Selection(defenses=("all",))).not_imported() == []


def test_listing_plugins_starts_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_submission(tmp_path, "raise SystemExit('this ran')")
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path))
    monkeypatch.setattr(
        launcher, "isolate_submissions", lambda registry: pytest.fail("a worker was started")
    )
    done = CliRunner().invoke(app, ["list", "defenses", "--json"])
    names = {item["name"] for item in json.loads(done.stdout)["items"]}
    assert "mine" in names


def test_declarations_are_read_once_for_each_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command on many submissions starts no process to read them again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    started = []

    class Counted(SandboxProcess):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    monkeypatch.setattr(adapter, "SandboxProcess", Counted)
    folder = tmp_path / "submissions"
    write_submission(folder, ROUNDING)
    first, again = (sandboxed(folder).defense_card("mine") for _ in range(2))
    assert first == again and len(started) == 1
    (kept,) = (tmp_path / "cache").rglob("declarations/*.json")
    kept.write_text(kept.read_text().replace('"forwards":2', '"forwards":1'))
    assert sandboxed(folder).defense_card("mine") == first and len(started) == 2
    shutil.rmtree(folder)
    write_submission(folder, ROUNDING.replace("forwards=2", "forwards=3"))
    assert sandboxed(folder).defense_card("mine").forwards == 3 and len(started) == 3
    monkeypatch.setattr(adapter, "_code_key", lambda: "another version of the code")
    assert sandboxed(folder).defense_card("mine").forwards == 3 and len(started) == 4
