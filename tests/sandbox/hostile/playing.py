"""Plays a hostile submission beside an honest row through intake, evaluation and referee."""

from __future__ import annotations

import functools
import gc
import hashlib
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy.typing as npt
import psutil
import pytest

from bench.core.cells import CLEAN, CellState
from bench.core.errors import BenchError, error_text
from bench.core.outcomes import Outcomes, Verdict
from bench.evaluation import worker
from bench.evaluation.events import Event, RunNotice
from bench.evaluation.launcher import MatrixRun, load_registry, make_worker
from bench.evaluation.plan import Selection
from bench.registry.submission import Submission
from bench.sandbox import adapter, isolation
from bench.sandbox.isolation import MIB, Limits
from bench.sandbox.protocol import Frame
from bench.store import CellRow, Store
from bench.submissions.intake import accept_submission
from bench.threats import fingerprint
from tests.sandbox.hostile.archives import write_archive
from tests.sandbox.hostile.case import CODES, End, HostileCase, attack, defense
from tests.sandbox.hostile.watch import (
    ProcessWatch,
    descriptors_above,
    marked_files,
    open_descriptors,
)
from tests.sandbox.isolated import write_submission

LIMITS = Limits(memory=1024 * MIB, build=15.0, call=10.0, cell=120.0)
"""Small limits, so that each case ends soon."""
OVERSHOOT = 512 * MIB
"""Memory that may be taken between two measurements, which are up to a second apart."""
MACHINE = LIMITS.memory + OVERSHOOT + 2 * 400 * MIB
"""Memory of the hostile worker, the referee's and the one that is started in advance."""
THREAT, CONTROL, CONTROL_ATTACK = "digits-linf", "undefended", "fgsm"
EXAMPLES = 32
SECRET = "GAUNTLET_SECRET"
DIRECT_IMPORTS = functools.cache(fingerprint._direct_imports)
"""Parses each file of this project once; they do not change while the cases are played."""
DECLARATIONS: dict[str, Frame] = {}
"""Kind -> the reply of a worker that has imported the honest template."""
MAX_GROWTH = 50 * MIB
REFUSED_VERDICTS = {
    "out_of_ball": Verdict.OUT_OF_BALL, "out_of_box": Verdict.OUT_OF_BOX,
    "not_finite_pixels": Verdict.NOT_FINITE,
}  # fmt: skip
"""Code of a result -> the referee's verdict on its images."""


@dataclass
class Played:
    """What one case did, and what is wrong about that."""

    name: str
    family: str
    code: str
    end: str = ""
    """How it ended, in the words of `End`; what was found instead where that differs."""
    message: str = ""
    culprits: list[str] = field(default_factory=list)
    survivors: int = 0
    files: list[str] = field(default_factory=list)
    descriptors: int = 0
    """Open descriptors of the harness beyond those before."""
    peak: int = 0
    """Bytes of memory of the largest worker with its descendants."""
    machine: int = 0
    """Bytes by which the memory in use on the machine has grown, all workers included."""
    growth: int = 0
    """Bytes by which the harness itself has grown."""
    seconds: float = 0.0
    control: bool = False
    """Whether the honest row has exactly the outcomes that it has alone."""
    faults: list[str] = field(default_factory=list)
    """Every requirement that is not met."""

    @property
    def contained(self) -> bool:
        """Whether nothing outside the sandbox was changed, left or exceeded."""
        kept = self.control and not self.files and self.survivors == 0
        return kept and self.peak <= LIMITS.memory + OVERSHOOT and self.machine <= MACHINE

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "contained": self.contained}


class Honest:
    """Digests of the outcomes that honest rows have alone, each evaluated when it is needed."""

    @functools.cached_property
    def control(self) -> str:
        """Those of the row beside each case."""
        return joined(evaluated_alone("attack", Selected.CONTROL).control)

    @functools.cache  # noqa: B019 - one object for all cases
    def template(self, kind: str) -> str:
        """Those of the template without hostile code."""
        return joined(evaluated_alone(kind, Selected.BOTH).own)


@contextmanager
def surroundings(folder: Path) -> Iterator[None]:
    """Small limits, a secret in the environment, and a submissions folder below `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "LIMITS", LIMITS)
        patch.setenv("BENCH_SUBMISSIONS", str(folder / "in"))
        patch.setenv(SECRET, f"{SECRET} of the harness")
        patch.setattr(fingerprint, "_direct_imports", DIRECT_IMPORTS)
        patch.setattr(worker, "run_diagnostics", lambda *_: None)  # they have tests of their own
        yield


@contextmanager
def shared_declarations(case: HostileCase) -> Iterator[None]:
    """Read the declarations of the template once for all cases that are imported like it.

    It saves one of three worker processes, each of which imports torch.
    """
    with pytest.MonkeyPatch.context() as patch:
        if case.imports_like_the_template():
            declared = adapter.declarations_of
            kept = DECLARATIONS.get(case.kind)

            def once(submission: Submission) -> Frame:
                DECLARATIONS[case.kind] = kept or declared(submission)
                return DECLARATIONS[case.kind]

            patch.setattr(adapter, "declarations_of", once)
        yield


def evaluated_alone(kind: str, selected: Selected) -> Evaluated:
    """Evaluate the template of this kind beside the control, or the control alone."""
    source = {"defense": defense, "attack": attack}[kind]()
    with tempfile.TemporaryDirectory(prefix="honest-") as name, surroundings(Path(name)):
        write_submission(Path(name) / "in", source, "honest", kind)
        case = HostileCase("honest", "", source, "ok", End.FINISHED, kind=kind)
        return evaluate(Path(name), case, selected)


def play(case: HostileCase, honest: Honest) -> Played:
    """Play one case and judge it."""
    played = Played(case.name, case.family, case.code)
    assert honest.control  # evaluated before anything is measured: it imports much
    since, before = time.monotonic(), open_descriptors()
    resident = psutil.Process().memory_info().rss
    watch = ProcessWatch()
    with tempfile.TemporaryDirectory(prefix="hostile-") as name, surroundings(Path(name)):
        folder = Path(name)
        watch.start()
        try:
            _play_stages(case, folder, played, honest)
        except Exception as error:  # nothing that a submission does may end the run
            played.end, played.message = "an exception of the harness", error_text(error)
        finally:
            watch.stop()
        gc.collect()
        played.survivors = len(watch.survivors())
        played.files = marked_files(folder)
    played.machine = watch.machine_peak
    played.peak, played.seconds = watch.peak, time.monotonic() - since
    played.descriptors = descriptors_above(before)
    played.growth = psutil.Process().memory_info().rss - resident
    played.faults = faults(case, played)
    return played


def _play_stages(case: HostileCase, folder: Path, played: Played, honest: Honest) -> None:
    """Intake, then the evaluation beside the control row."""
    place = write_submission(folder / "work", case.source, case.name, case.kind)
    refused = _submit(case, folder, write_archive(place, case.archive) if case.archive else place)
    installed = folder / "in" / case.name
    if not installed.exists() and case.end is not End.REJECTED:
        shutil.copytree(place, installed)  # as if its check had passed
    selected = Selected.CONTROL if case.end is End.REJECTED else Selected.BOTH
    found = evaluate(folder, case, selected)
    played.control = joined(found.control) == honest.control
    played.culprits = sorted({str(row.culprit) for row in found.rows if row.culprit})
    unchanged = bool(found.own) and case.end is End.UNCHANGED
    unchanged = unchanged and joined(found.own) == honest.template(case.kind)
    played.end, played.message = _ending(case, refused, found, unchanged=unchanged)


def _submit(case: HostileCase, folder: Path, path: Path) -> str:
    """Why the intake refuses the submission; empty where it accepts it.

    The contract checks are run only where the case asks for them.
    """
    with Store.open(f"sqlite:///{folder}/in.db") as store, pytest.MonkeyPatch.context() as patch:
        if not case.checked:
            patch.setattr(isolation, "why_unavailable", lambda: "contract checks are left out")
        try:
            accept_submission(path, store)
        except BenchError as error:
            return str(error)
    return ""


@dataclass
class Evaluated:
    """The rows of one run: those of the control, and those of the submission."""

    events: list[Event]
    why: str
    """Why the submission was not registered; empty where it was."""
    control: list[str] = field(default_factory=list)
    """Digests of the outcomes of the control."""
    own: list[str] = field(default_factory=list)
    """Digests of the outcomes of the submission."""
    rows: list[CellRow] = field(default_factory=list)
    """The cells of the submission."""
    verdicts: Counter[int] = field(default_factory=Counter)
    """Verdict -> number of its images; those of the clean pass are left out."""
    misclassified: int = 0
    """Clean images that the attacked defense does not recognise."""


class Selected(Enum):
    """Which rows a run evaluates."""

    BOTH = "the submission and the control"
    CONTROL = "the control alone"


def evaluate(folder: Path, case: HostileCase, selected: Selected) -> Evaluated:
    """Evaluate a submission beside the control, or the control alone."""
    alone = Selection((THREAT,), (CONTROL,), (CONTROL_ATTACK,), EXAMPLES)
    named = alone
    if selected is Selected.BOTH and case.kind == "defense":
        named = replace(alone, defenses=(CONTROL, case.name))
    elif selected is Selected.BOTH:
        named = replace(alone, attacks=(CONTROL_ATTACK, case.name))
    with shared_declarations(case):
        registry = load_registry(False, named)
    found = Evaluated([], registry.reasons_not_imported.get(case.name, ""))
    if found.why:
        named = alone
    url = f"sqlite:///{folder}/results.db"
    with Store.open(url) as store:
        run = MatrixRun(named, url, quiet=True)
        make_worker(run, store, registry, found.events.append).run()
        for row in store.cells():
            _sort_in(found, store, row, case)
    return found


def _sort_in(found: Evaluated, store: Store, row: CellRow, case: HostileCase) -> None:
    """Add one cell to the rows of the control or of the submission."""
    of_control = row.cell.defense == CONTROL and row.cell.attack in (CLEAN, CONTROL_ATTACK)
    digests = found.control if of_control else found.own
    if not of_control:
        found.rows.append(row)
    if row.state is not CellState.DONE:
        digests.append(str(row.state))
        return
    outcomes = store.outcomes(row.key)
    digests.append(digest_of(outcomes))
    if row.cell.attack == CLEAN:
        attacked = row.cell.defense == (CONTROL if case.kind == "attack" else case.name)
        found.misclassified += attacked * int((outcomes.verdict == Verdict.BROKEN).sum())
    elif not of_control:
        found.verdicts.update(outcomes.verdict.tolist())


def digest_of(outcomes: Outcomes) -> str:
    """Digest of the outcomes of a cell."""
    made = hashlib.sha256()
    for name in Outcomes._fields:
        values: npt.NDArray[Any] = getattr(outcomes, name)
        made.update(name.encode() + values.tobytes())
    return made.hexdigest()


def joined(digests: list[str]) -> str:
    """One text of several digests, in a fixed order."""
    return " ".join(sorted(digests))


def _ending(
    case: HostileCase, refused: str, found: Evaluated, *, unchanged: bool
) -> tuple[str, str]:
    """How a case ended, and the message that its user reads."""
    if refused and case.end is End.REJECTED:
        return End.REJECTED, refused
    if found.why:
        return End.NOT_LOADED, found.why + "."
    failed = [row for row in found.rows if row.state is CellState.FAILED]
    if failed:
        return End.FAILED, failed[0].reason
    notices = " ".join(e.text for e in found.events if isinstance(e, RunNotice))
    if unchanged:
        return End.UNCHANGED, notices
    broken = found.verdicts[Verdict.BROKEN]
    if any(found.verdicts[kind] for kind in REFUSED_VERDICTS.values()):
        counted = broken > found.misclassified
        return f"{broken} images count as broken" if counted else End.REFUSED, notices
    return End.FINISHED, notices


def faults(case: HostileCase, played: Played) -> list[str]:
    """Every requirement that a case does not meet."""
    message = played.message
    named = case.end in (End.UNCHANGED, End.FINISHED) or case.name in message
    blamed = ["plugin"] if case.end is End.FAILED else []
    checks = {
        f"it ended as {played.end!r}": played.end == case.end,
        f"culprit {played.culprits}": played.culprits == blamed,
        "the message has another code": re.search(CODES[case.code], message) is not None,
        "the message does not say what happened": re.search(case.sentence, message) is not None,
        "the message does not name the plugin": named,
        "the message is no short printable line": message.isprintable() and len(message) < 900,
        "the control row has changed": played.control,
        f"{played.survivors} processes are left": played.survivors == 0,
        f"files are left: {played.files}": not played.files,
        f"{played.descriptors} descriptors are left": played.descriptors <= 0,
        f"{played.peak // MIB} MiB of memory": played.peak <= LIMITS.memory + OVERSHOOT,
        f"{played.machine // MIB} MiB more in use on the machine": played.machine <= MACHINE,
        f"the harness grew by {played.growth // MIB} MiB": played.growth < MAX_GROWTH,
    }
    return [fault for fault, met in checks.items() if not met]
