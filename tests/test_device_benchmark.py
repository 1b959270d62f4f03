"""The device benchmark: its report, its limits of time, what it imports, and all steps on a CPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from bench.core.errors import UnavailableError
from tests.benchmarks import device, our_runs
from tests.benchmarks.device_steps import report as reports
from tests.benchmarks.device_steps import speed, tables, worker
from tests.benchmarks.device_steps.report import STEPS, Report, time_limit
from tests.benchmarks.device_steps.sizes import SIZES
from tests.benchmarks.device_steps.step import Step
from tests.test_benchmarks import tiny

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
WEB_OR_DATABASE = ("sqlalchemy", "alembic", "streamlit", "altair", "pandas", "typer", "rich")
OPTIONAL = {"charset-normalizer", "psutil"}
"""Imported by NumPy and joblib where they are installed; neither is needed."""
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""Import name -> name in the list of packages, where they differ."""


def begun(folder: Path) -> Report:
    return Report.begin(folder / "report.json", "cpu", 1.0, "small")


def on_disk(report: Report) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(report.path.read_text())
    return content


# --- imports ---------------------------------------------------------------------------------


IMPORTS = """
import importlib, json, pkgutil, sys
forbidden = json.loads(sys.argv[1])
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in forbidden:
            raise ImportError(f"{name} must not be imported here")
sys.meta_path.insert(0, Blocker())
try:
    importlib.import_module(forbidden[0])
except ImportError as error:
    assert "must not be imported here" in str(error)
else:
    raise AssertionError("nothing is blocked")
import torch
before = {name.split(".")[0] for name in sys.modules}
for top in ("bench.engine", "bench.referee", "bench.plugin", "bench.registry", "plugins"):
    for found in pkgutil.walk_packages(importlib.import_module(top).__path__, top + "."):
        importlib.import_module(found.name)
for name in json.loads(sys.argv[2]):
    importlib.import_module("tests.benchmarks.device_steps." + name)
from sklearn.datasets import load_digits
load_digits()
from bench.registry.registry import Registry
assert len(Registry.without_submissions().attacks) > 20
names = {name.split(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
print(json.dumps(sorted(names)))
"""


def imported(forbidden: tuple[str, ...], steps: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORTS, json.dumps(forbidden), json.dumps(steps)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_engine_referee_and_plugins_import_only_the_listed_packages() -> None:
    steps = ["worker", *(name for name in worker.MODULES.values() if name != "sandbox")]
    done = imported(WEB_OR_DATABASE, steps)
    assert done.returncode == 0, done.stderr
    own = {"bench", "plugins", "tests"}
    names = {DISTRIBUTIONS.get(name, name) for name in json.loads(done.stdout)} - own
    text = device.__doc__ or ""
    listed = set(
        re.findall(r"[a-z][\w-]+", text[text.index("    torch numpy") : text.index("Step f")])
    )
    public = {name.replace("_", "-") for name in names if not name.startswith("_")}
    assert public - listed - OPTIONAL == set()
    assert listed - public <= {"torch", "numpy", "typing-extensions"}


# --- the report ------------------------------------------------------------------------------


def test_the_report_is_written_after_each_row_and_names_what_has_not_run(tmp_path: Path) -> None:
    report = begun(tmp_path)
    assert {step["state"] for step in on_disk(report)["steps"].values()} == {"waiting"}
    report.add("a", {"attack": "pgd", "differ": 0})
    report.leave_out("a", "square", "no time")
    written = on_disk(report)["steps"]["a"]
    assert written["rows"] == [{"attack": "pgd", "differ": 0}]
    assert written["left_out"] == [{"what": "square", "reason": "no time"}]
    report.update("a", state="done")
    report.update("b", state="running")
    report.stop("the time was over")
    states = [step["state"] for step in on_disk(report)["steps"].values()]
    assert states == ["done", "failed", "not run", "not run", "not run", "not run"]
    assert on_disk(report)["complete"] and on_disk(report)["steps"]["f"]["message"]
    assert Report.load(report.path).content == report.content
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_write_that_is_interrupted_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = begun(tmp_path)

    def interrupted(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.add("a", {"attack": "pgd"})
    assert on_disk(report)["steps"]["a"]["rows"] == []


def test_a_report_of_another_schema_is_refused(tmp_path: Path) -> None:
    report = begun(tmp_path)
    report.content["schema"] = 7
    report.save()
    with pytest.raises(ValueError, match="has schema 7; 1 was expected"):
        Report.load(report.path)


def test_each_step_has_its_share_of_the_time_that_is_left() -> None:
    assert sum(step.share for step in STEPS) == pytest.approx(1)
    assert [time_limit(step.key, 0.0) for step in STEPS] == [0] * len(STEPS)
    assert time_limit("a", 540) == pytest.approx(540 * STEPS[0].share)
    assert time_limit("f", 31) == pytest.approx(31)
    left = 100.0
    for step in STEPS:
        left -= time_limit(step.key, left)
    assert left == pytest.approx(0)


def test_the_tables_hold_every_row_and_reason(tmp_path: Path) -> None:
    report = begun(tmp_path)
    report.content["machine"] = {"name": "a device", "torch": "2.11", "python": "3.12"}
    report.add("b", {"attack": "PGD-40", "seconds": 0.12345, "graphs": True, "busy": None})
    report.add("b", {"attack": "PGD-40", "seconds": 4321.0, "margins": [1], "peak_mib": 12.0})
    report.leave_out("b", "TF32", "not available")
    report.update("b", state="done", seconds=12.3)
    text = tables.markdown(report.content)
    assert "a device, torch 2.11, Python 3.12" in text
    assert "| attack | seconds | graphs | busy | peak mib |" in text
    assert "| PGD-40 | 0.123 | yes | - | - |" in text and "| PGD-40 | 4,321 | - | - | 12 |" in text
    assert (
        "* Not run: TF32: not available." in text
        and "(b) speed beside peers**: done, 12 s." in text
    )
    assert "1 rows" not in tables.summary(report.content)
    assert "done, 12 s. 2 rows, 1 left out." in tables.summary(report.content)


# --- steps -----------------------------------------------------------------------------------


def raising(step: Step) -> None:
    step.add(made=1)
    raise ValueError("a fault in this step")


def fine(step: Step) -> None:
    step.add(made=2)


def test_a_step_that_raises_is_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = begun(tmp_path)
    functions = {"a": raising, "b": fine}
    monkeypatch.setattr(worker, "step_function", functions.__getitem__)
    end = time.monotonic() + 60
    assert worker.run_step(report, "a", CPU, end) and worker.run_step(report, "b", CPU, end)
    steps = on_disk(report)["steps"]
    assert (steps["a"]["state"], steps["a"]["rows"]) == ("failed", [{"made": 1}])
    assert steps["a"]["message"] == "ValueError: a fault in this step"
    assert (steps["b"]["state"], steps["b"]["rows"]) == ("done", [{"made": 2}])
    assert 0 < steps["b"]["until"] - time.monotonic() <= 60


def test_after_an_error_of_the_device_the_process_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(step: Step) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(worker, "step_function", lambda key: broken)
    end = time.monotonic() + 60
    assert not worker.run_step(begun(tmp_path), "a", torch.device("cuda"), end)
    assert worker.run_step(begun(tmp_path), "a", CPU, end)


def test_a_step_without_time_is_not_run(tmp_path: Path) -> None:
    report = begun(tmp_path)
    assert worker.run_step(report, "c", CPU, time.monotonic() + 1)
    step = on_disk(report)["steps"]["c"]
    assert step["state"] == "not run" and "s were left" in step["message"]


def test_a_part_that_does_not_fit_is_named(tmp_path: Path) -> None:
    step = Step(begun(tmp_path), "a", CPU, SIZES["small"], time.monotonic() + 10)
    assert step.fits("a short part", 5) and not step.fits("a long part", 20)
    (entry,) = on_disk(step.report)["steps"]["a"]["left_out"]
    assert entry["what"] == "a long part" and "about 20.0 s are needed" in entry["reason"]


def speed_step(folder: Path) -> Step:
    return Step(begun(folder), "b", CPU, SIZES["small"], time.monotonic() + 60)


def test_what_a_cpu_has_not_is_left_out_once_with_the_reason(tmp_path: Path) -> None:
    step, case = speed_step(tmp_path), tiny(8)
    for _ in range(2):
        assert not speed.usable(step, case, speed.FLOAT32, graphs=True)
        assert not speed.usable(step, case, speed.TF32, graphs=False)
    assert speed.usable(step, case, speed.FLOAT32, graphs=False)
    reasons = {e["what"]: e["reason"] for e in on_disk(step.report)["steps"]["b"]["left_out"]}
    assert list(reasons) == ["CUDA graphs", "TF32"]
    assert all(reason.startswith("not available: ") for reason in reasons.values())


def test_a_missing_peer_leaves_our_lines_without_a_ratio(tmp_path: Path) -> None:
    def missing(case: object, seed: int) -> Any:
        raise UnavailableError("torchattacks is not installed")

    step, case = speed_step(tmp_path), tiny(8)
    reference = speed.peer_rows(step, case, "PGD-3", "torchattacks", missing, (speed.FLOAT32,))
    assert reference is None
    speed.our_row(step, case, "PGD-3", "pgd", speed.FLOAT32, False, reference, steps=3)
    entry = on_disk(step.report)["steps"]["b"]
    assert entry["left_out"][0]["reason"] == "torchattacks is not installed"
    assert entry["rows"][0]["times_faster"] is None and entry["rows"][0]["seconds"] > 0


def test_times_faster_is_the_peers_time_over_ours(tmp_path: Path) -> None:
    step, case = speed_step(tmp_path), tiny(8)
    runner = our_runs.ours("pgd", steps=2)
    found = speed.row(step, case, "PGD-2", "ours", speed.FLOAT32, runner, 3.0)
    assert found is not None
    assert on_disk(step.report)["steps"]["b"]["rows"][0]["times_faster"] == pytest.approx(
        3.0 / found["seconds"]
    )


# --- the command -----------------------------------------------------------------------------


def program(code: str) -> Callable[[Path, float], subprocess.Popen[bytes]]:
    """A replacement for the worker process that runs `code` with the report as `report`."""
    head = "import sys, time, pathlib\nfrom tests.benchmarks.device_steps.report import Report\n"
    head += "report = Report.load(pathlib.Path(sys.argv[1]))\n"

    def start(path: Path, end: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", head + code, str(path)]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    return start


def test_a_step_that_kills_its_process_is_recorded_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
key = next(report.keys("waiting"))
report.update(key, state="running", until=time.monotonic() + 60)
if key == "b":
    sys.exit(9)
report.update(key, state="done")
"""
    monkeypatch.setattr(device, "start_worker", program(code))
    report = device.supervise(begun(tmp_path), time.monotonic() + 60)
    states = [step["state"] for step in on_disk(report)["steps"].values()]
    assert states == ["done", "failed", "done", "done", "done", "done"]
    assert report.step("b")["message"] == "its process ended with status 9"


def test_a_step_that_hangs_is_killed_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
for key in list(report.keys("waiting")):
    report.update(key, state="running", until=time.monotonic() + 0.1)
    if key == "a":
        time.sleep(600)
    report.update(key, state="done")
"""
    monkeypatch.setattr(device, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(device, "start_worker", program(code))
    since = time.monotonic()
    report = device.supervise(begun(tmp_path), since + 60)
    assert time.monotonic() - since < 30
    assert [step["state"] for step in report.content["steps"].values()] == ["failed"] + 5 * ["done"]
    assert "longer than its share" in report.step("a")["message"]


def test_with_almost_no_time_it_ends_in_time_and_says_what_was_not_run(tmp_path: Path) -> None:
    path, since = tmp_path / "report.json", time.monotonic()
    assert device.main(["--device", "cpu", "--minutes", "0.03", "--json", str(path)]) == 1
    assert time.monotonic() - since < 0.03 * 60 + 1
    steps = json.loads(path.read_text())["steps"]
    assert {step["state"] for step in steps.values()} <= {"not run", "failed"}
    assert all("minutes were over" in step["message"] for step in steps.values())


def test_tables_are_printed_from_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = begun(tmp_path)
    report.add("c", {"slots": 64, "examples_per_second": 12.5})
    assert device.main(["--table", str(report.path)]) == 0
    assert "| slots | examples per second |" in capsys.readouterr().out


def command(path: Path, minutes: float) -> list[str]:
    options = ["--device", "cpu", "--size", "small", "--minutes", str(minutes)]
    return [sys.executable, "-m", "tests.benchmarks.device", *options, "--json", str(path)]


@pytest.mark.slow
def test_a_killed_run_leaves_a_whole_report_and_no_process(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    run = subprocess.Popen(command(path, 6), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while not (path.is_file() and Report.load(path).step("a")["rows"]):
            assert time.monotonic() < until and run.poll() is None
            time.sleep(0.05)
        workers = psutil.Process(run.pid).children(recursive=True)
        assert workers
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    left = Report.load(path)
    assert left.step("a")["rows"][0]["attack"] == "fgsm" and not left.content["complete"]
    assert "waiting" in tables.markdown(left.content)


@pytest.mark.slow
def test_all_steps_run_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = subprocess.run(command(path, 20), cwd=ROOT, capture_output=True, text=True, timeout=1300)
    content = Report.load(path).content
    assert {step["state"] for step in content["steps"].values()} == {"done"}, done.stderr
    assert done.returncode == 0 and content["complete"]
    rows = {key: step["rows"] for key, step in content["steps"].items()}
    assert [row["attack"] for row in rows["a"]] == ["fgsm", "pgd", "apgd-ce", "square"]
    assert all(row["differ"] == row["differ_again"] == 0 for row in rows["a"])
    sides = {(row["attack"], row["model"], row["side"]) for row in rows["b"]}
    for model in ("resnet18-adv", "resnet18-std"):
        for attack, peer in (("PGD-3", "torchattacks"), ("APGD-CE-4", "pyautoattack")):
            assert {(attack, model, "ours"), (attack, model, peer)} <= sides
    assert ("PGD-3", "WideResNet-10-1", "ours") in sides
    assert all((row["times_faster"] is None) == (row["side"] != "ours")
               for row in rows["b"] if "WideResNet" not in row["model"])  # fmt: skip
    left_out = {part["what"]: part["reason"] for part in content["steps"]["b"]["left_out"]}
    assert left_out["CUDA graphs"] == "not available: CUDA graphs need a CUDA device"
    assert {row["slots"] for row in rows["c"]} == set(SIZES["small"].slot_counts)
    assert [row["processes"] for row in rows["d"]] == [1, 2]
    assert {row["recipe"] for row in rows["e"]} == {"cifar-fast", "cifar-pgd"}
    assert rows["f"][0]["differing_pixels"] == 0 and rows["f"][0]["network_on"] == "cpu"
    assert "| torchattacks |" in tables.markdown(content)


def test_every_step_has_a_module_and_a_size() -> None:
    assert list(worker.MODULES) == [step.key for step in reports.STEPS]
    for name in worker.MODULES.values():
        assert (ROOT / f"tests/benchmarks/device_steps/{name}.py").is_file()
    assert SIZES["full"].verdict_examples == 500 and SIZES["full"].wide == (28, 10)
    assert SIZES["full"].slot_counts[0] == 32 and SIZES["full"].slot_counts[-1] == 2048
