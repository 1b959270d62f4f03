"""Mutation testing of the code that decides results: small faults that a test must notice.

`python -m tests.tools.mutants [--limit 300] [--only TEXT] [--json OUT]` makes mutants of ball
check, scoring, ties, verdicts and ranks, runs the quick tests of each in a copy of the repository,
and lists the survivors. Each mutant runs in a forked process. Survivors that no test can notice are
in equivalent_mutants.toml with a reason. Exits 1 where fewer than 95 % of the others are killed.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tests.tools.mutant_edits import Edit, Mutant, edits

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
COPIED = ("bench", "plugins", "leaderboard", "submissions", "tests", "pyproject.toml")
LOG = "pytest.log"
KILLER = "killer"
"""File with the name of the first test that failed."""
LIMIT = 300
REQUIRED_SHARE = 0.95
"""Of the mutants that are not equivalent."""
PATIENCE = 10
"""A mutant that runs so many times longer than the unchanged code counts as killed."""


class Target(NamedTuple):
    """A module to change, and the tests that must notice."""

    path: str
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()
    """Names of functions; empty: all."""


TARGETS = (
    Target(
        "bench/threats/norms.py",
        ("tests/threats/test_membership.py", "tests/threats/test_norms.py",
         "tests/referee/test_referee.py"),
        ("distance", "contains", "tolerance", "radius", "scaled", "__post_init__"),
    ),
    Target(
        "bench/referee/referee.py",
        ("tests/referee/test_referee.py",),
        ("legality", "_inside", "goal_reached", "clean_errors", "_eight_bit", "_fragile",
         "_true_class"),
    ),
    Target(
        "bench/results/example_results.py",
        ("tests/results/test_robust_accuracy.py", "tests/results/test_ranking.py",
         "tests/results/test_follow_ups.py", "tests/results/test_example_results.py"),
        ("robust", "decided_by", "robust_8bit", "broken_by", "strongest_attack", "_except",
         "_clean_right", "_attack_result", "_answered_wrong", "_any", "_all", "_least"),
    ),
    Target(
        "bench/core/statistics.py",
        ("tests/core/test_statistics.py",),
        ("mcnemar", "holm", "holm_adjusted", "paired_tests", "rank_ranges", "better", "_ties",
         "_decided", "_grouped", "_same_examples", "_discordant", "wilson"),
    ),
    Target("bench/results/pairwise.py", ("tests/results/test_pairwise.py",)),
    Target("bench/results/true_class.py", ("tests/results/test_true_class.py",)),
    Target("bench/results/target_pairs.py", ("tests/results/test_target_pairs.py",)),
    Target(
        "bench/results/measures.py",
        ("tests/results/test_measures.py",),
    ),
    Target(
        "bench/results/verdicts.py",
        ("tests/results/test_follow_ups.py", "tests/results/test_masking_checks.py"),
        ("verdict",),
    ),
    Target(
        "bench/results/ranking.py",
        ("tests/results/test_ranking.py", "tests/results/test_robust_accuracy.py",
         "tests/results/test_certificates.py", "tests/results/test_follow_ups.py",
         "tests/results/test_defense_report.py", "tests/results/test_detection.py"),
    ),
)  # fmt: skip


def chosen(limit: int, only: str = "") -> list[tuple[Target, Edit]]:
    """At most `limit` mutants, spread over the targets by a hash of each."""
    made = [
        (target, edit)
        for target in TARGETS
        if only in target.path
        for edit in edits(target.path, (ROOT / target.path).read_text(), target.functions)
    ]
    kept = sorted(made, key=lambda pair: hashlib.sha256(_stable(pair[1].mutant)).digest())[:limit]
    return sorted(kept, key=lambda pair: (pair[1].mutant.path, pair[1].mutant.line))


def _stable(mutant: Mutant) -> bytes:
    """What names a mutant while lines move."""
    return f"{mutant.path} {mutant.function} {mutant.change} {mutant.number}".encode()


def equivalent() -> dict[tuple[str, str, str, int], str]:
    """(file, function, change, number) -> why no test can notice it."""
    known = tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    return {
        (one["file"], one["function"], one["change"], one.get("number", 0)): one["reason"]
        for one in known
    }


class KillersFirst:
    """A pytest plugin: runs the tests that noticed the most mutants first, and names a failure."""

    def __init__(self, killed: Mapping[str, int], file: Path) -> None:
        self.killed, self.file = killed, file

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sort the tests; of equal counts they stay in their order."""
        items.sort(key=lambda item: -self.killed.get(item.nodeid, 0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write the name of a failed test."""
        if report.failed:
            self.file.write_text(report.nodeid)


def run_tests(
    folder: Path, tests: tuple[str, ...], seconds: float, killed: Mapping[str, int] | None = None
) -> int:
    """Run test files of a copy in a forked process; returns the exit status, -1 when too slow.

    `killed`: how many mutants a test has noticed, by its name.
    """
    (folder / KILLER).unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(math.ceil(seconds))
            os._exit(_run_in_child(folder, tests, killed or {}))
        finally:
            os._exit(3)  # an exception must not unwind the parent's stack in the child
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _run_in_child(folder: Path, tests: tuple[str, ...], killed: Mapping[str, int]) -> int:
    """Run pytest on the copy; returns its exit status."""
    import pytest
    from hypothesis import Phase, settings

    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
    for name in [n for n in sys.modules if n.split(".")[0] in ("bench", "plugins", "tests")]:
        del sys.modules[name]
    # Each mutant meets the same few examples, and a failing one is not made smaller.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile(
        "mutants", phases=phases, derandomize=True, database=None, deadline=None, max_examples=30
    )
    settings.load_profile("mutants")
    # Hypothesis is imported already, so pytest cannot rewrite its assertions.
    options = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    order = KillersFirst(killed, folder / KILLER)
    return int(pytest.main(["-x", "-q", "-n", "0", *options, *tests], plugins=[order]))


def load_libraries() -> None:
    """Import what the tests need, once, so that forked processes begin at once."""
    import hypothesis.extra.numpy
    import pytest
    import scipy.stats
    import sqlalchemy
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # a collection in a forked process would copy all of them
    del hypothesis, pytest, scipy, sqlalchemy


def survivors(limit: int, only: str = "") -> dict[str, object]:
    """Make and run the mutants; the report as JSON values."""
    load_libraries()
    pairs, known, found = chosen(limit, only), equivalent(), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        _copy_repository(folder)
        allowed = {t: _baseline(folder, t.tests) for t in dict.fromkeys(t for t, _ in pairs)}
        killers: dict[str, Counter[str]] = defaultdict(Counter)
        for number, (target, edit) in enumerate(pairs, start=1):
            mutant, path = edit.mutant, folder / target.path
            original = path.read_text()
            path.write_text(edit.source)
            # A test that noticed one mutant of a function is likely to notice the next one.
            first = killers[mutant.path] + killers[f"{mutant.path} {mutant.function}"]
            status = run_tests(folder, target.tests, allowed[target], first)
            path.write_text(original)
            if (folder / KILLER).exists():
                killer = (folder / KILLER).read_text()
                killers[mutant.path][killer] += 1
                killers[f"{mutant.path} {mutant.function}"][killer] += 1000
            reason = known.get((mutant.path, mutant.function, mutant.change, mutant.number))
            state = "killed" if status else "equivalent" if reason else "survived"
            found.append({**asdict(mutant), "state": state, "reason": reason or ""})
            print(f"{number}/{len(pairs)} {state} {mutant.name}", file=sys.stderr, flush=True)
    return report(found)


def report(found: list[dict[str, object]]) -> dict[str, object]:
    """Counts and the surviving mutants; equivalent ones are in no total."""
    count = {
        s: sum(one["state"] == s for one in found) for s in ("killed", "survived", "equivalent")
    }
    total = count["killed"] + count["survived"]
    return {
        "mutants": len(found), **count,
        "share_killed": count["killed"] / total if total else 1.0,
        "survivors": [one for one in found if one["state"] != "killed"],
    }  # fmt: skip


def _copy_repository(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".git", "*.db")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, folder / name)


def _baseline(folder: Path, tests: tuple[str, ...]) -> float:
    """The seconds that a mutant may take; raises RuntimeError where the unchanged code fails."""
    since = time.monotonic()
    if run_tests(folder, tests, 3600) != 0:
        said = (folder / LOG).read_text()[-2000:]
        raise RuntimeError(f"the tests fail on the unchanged code: {', '.join(tests)}.\n{said}")
    return max(30.0, PATIENCE * (time.monotonic() - since))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=LIMIT, help="at most so many mutants")
    parser.add_argument("--only", default="", help="only modules whose path contains this")
    parser.add_argument("--json", type=Path, help="file for the report")
    options = parser.parse_args()
    found = survivors(options.limit, options.only)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    share = found["share_killed"]
    assert isinstance(share, float)
    return 0 if share >= REQUIRED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
