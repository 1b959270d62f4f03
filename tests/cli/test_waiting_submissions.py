"""Submissions that wait in the folder: no command runs their code outside the sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.contract import runner
from bench.contract.check import CheckOutcome
from bench.registry.registry import Registry
from bench.sandbox import isolation
from bench.store import Store
from tests.cli.test_user_errors import ATTACK, DEFENSE, Shell, shell

__all__ = ["shell"]

IMPORTED = """
from pathlib import Path
try:
    Path({marker!r}).touch()
except OSError:
    pass
"""
"""Leaves a file where the import can write, as it can outside the sandbox."""
THREAT = """
from fractions import Fraction

@hookimpl
def bench_threat_models():
    ball = Linf(Fraction(1, 5))
    yield ThreatModel("{name}", dataset="digits", ball=ball, access=Access.GRADIENTS)
"""
SOURCES = {
    "defense": DEFENSE.format(
        name="waiting-defense", forward="return images.flatten(1)[:, :10]", build="return Odd()"
    ),
    "attack": ATTACK.format(name="waiting-attack", step="return adv"),
    "threat": THREAT.format(name="waiting-threat"),
}
RUN = ("--examples", "8", "--threat", "digits-linf", "--attack", "fgsm", "--certify", "none")
COMMANDS = [
    ("list", "defenses"), ("list", "attacks"), ("list", "threats"), ("list", "submissions"),
    ("show", "waiting-defense"), ("show", "waiting-threat"), ("show", "fgsm"),
    ("new", "defense", "mine"), ("check", "digits-l2"), ("check", "waiting-threat"),
    ("check", "submissions/waiting-threat"), ("check", "submissions/waiting-threat/plugin.py"),
    ("train", "waiting-defense"), ("report",), ("db", "check"), ("leaderboard", "--export", "site"),
    ("export", "outcomes", "--out", "x.csv"), ("reproduce", "0"),
    ("run", "--dry-run", *RUN, "--defense", "waiting-defense"),
    ("run", "--dry-run", *RUN[:3], "waiting-threat"),
    ("sweep", *RUN[2:6], "--defense", "waiting-defense", "--set", "rate=0.1"),
]  # fmt: skip
SLOW_COMMANDS = [
    ("check", "waiting-defense"), ("check", "waiting-attack"),
    ("run", *RUN, "--defense", "waiting-defense"),
    ("run", *RUN[:4], "--defense", "linear", "--attack", "waiting-attack", "--certify", "none"),
    ("run", *RUN[:3], "waiting-threat", *RUN[4:], "--defense", "linear"),
    ("submit", "submissions/waiting-threat"), ("submit", "submissions/waiting-attack"), ("doctor",),
]  # fmt: skip


@pytest.fixture
def waiting(shell: Shell) -> Shell:
    """A shell in a folder with a waiting submission of each kind, and an empty database."""
    for kind, source in SOURCES.items():
        name = f"waiting-{kind}"
        shell.submit(kind, name, IMPORTED.format(marker=str(shell.folder / f"{kind}.ran")) + source)
    with Store.open("sqlite:///bench.db") as store:
        store.record_submission_state("waiting-defense", "queued")
    return shell


def ran(shell: Shell) -> list[str]:
    """Kinds of the submissions whose code ran outside the sandbox."""
    return sorted(path.name for path in shell.folder.glob("*.ran"))


def test_no_quick_command_runs_a_waiting_submission(waiting: Shell) -> None:
    for command in COMMANDS:
        code, _, said = waiting.run(*command)
        assert code != 1, (command, said)
        assert ran(waiting) == [], command


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW_COMMANDS, ids=" ".join)
def test_no_command_runs_a_waiting_submission_outside_the_sandbox(
    waiting: Shell, command: tuple[str, ...]
) -> None:
    if isolation.why_unavailable():
        pytest.skip(isolation.why_unavailable())
    code, out, said = waiting.run(*command)
    assert code != 1, (out, said)
    assert ran(waiting) == []


def test_the_flag_runs_it_in_this_process(waiting: Shell) -> None:
    code, out, _ = waiting.run("check", "waiting-threat", "--json", "--allow-unsandboxed")
    assert code == 0, out
    assert ran(waiting) == ["threat.ran"]


@pytest.mark.parametrize("place", ["waiting-attack", "submissions/waiting-attack"])
def test_the_checks_of_a_waiting_submission_run_in_the_sandbox(
    waiting: Shell, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isolation.why_unavailable():
        pytest.skip(isolation.why_unavailable())
    first = runner.CHECKS["attack"][:1]
    monkeypatch.setattr(runner, "CHECKS", {**runner.CHECKS, "attack": first})
    code, out, _ = waiting.run("check", place, "--json")
    checks = {found["check"]: found for found in json.loads(out)["checks"]}
    assert code == 0, out
    assert "in a sandboxed process" in checks["is-registered"]["sentence"]
    assert checks[first[0].name]["outcome"] == "pass"
    assert ran(waiting) == []


@pytest.mark.parametrize("inside", ["submissions", "elsewhere/submissions/.older"])
def test_a_folder_of_submissions_is_known_wherever_it_is(waiting: Shell, inside: str) -> None:
    place = waiting.folder / inside
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "waiting-threat").exists():
        (waiting.folder / "submissions" / "waiting-threat").rename(place / "waiting-threat")
    (waiting.folder / "link").symlink_to(place / "waiting-threat")
    for path in (place / "waiting-threat", waiting.folder / "link" / "plugin.py"):
        waiting.run("check", str(path))
        assert ran(waiting) == []


def test_without_a_sandbox_a_waiting_submission_is_not_checked(
    waiting: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "why_unavailable", lambda: "bubblewrap is not installed")
    code, out, _ = waiting.run("check", "waiting-attack")
    assert code == 5, out
    assert "bubblewrap is not installed, or run its code with --allow-unsandboxed." in out
    assert ran(waiting) == []


def test_a_waiting_folder_without_a_card_is_not_imported(waiting: Shell) -> None:
    (waiting.folder / "submissions" / "waiting-attack" / "card.toml").unlink()
    code, out, _ = waiting.run("check", "submissions/waiting-attack")
    assert code == 5 and "has no card.toml" in out
    assert ran(waiting) == []


def test_code_that_cannot_be_registered_is_a_failed_check(waiting: Shell) -> None:
    if isolation.why_unavailable():
        pytest.skip(isolation.why_unavailable())
    path = waiting.folder / "submissions" / "waiting-attack" / "plugin.py"
    path.write_text("raise KeyError('at import')\n")
    code, out, _ = waiting.run("check", "waiting-attack")
    assert code == 4 and "at import" in out


def test_one_s_own_folder_is_imported(waiting: Shell) -> None:
    own = waiting.folder / "mine"
    (waiting.folder / "submissions" / "waiting-threat").rename(own)
    (own / "card.toml").write_text(
        (own / "card.toml").read_text().replace("waiting-threat", "mine")
    )
    (own / "plugin.py").write_text(
        (own / "plugin.py").read_text().replace("waiting-threat", "mine")
    )
    results = runner.run_checks(Path("mine"), Registry.without_submissions())
    assert {result.outcome for result in results} == {CheckOutcome.PASS}
    assert ran(waiting) == ["threat.ran"]
