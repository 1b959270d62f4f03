"""`bench submit`: checks a submission and moves it into the submissions folder."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.contract import check, runner
from bench.core.errors import BenchError, UnavailableError, error_text
from bench.core.folders import submissions_folder
from bench.registry import discovery
from bench.registry.registry import HOOK_OF_KIND, Registry
from bench.registry.submission import NAME_PATTERN, Submission, read_submission
from bench.registry.weights_file import why_unsafe
from bench.sandbox import adapter
from bench.store import Store
from bench.store.leftovers import abandoned_folders, owned_prefix, remove_folder
from bench.submissions.archive import unpack_archive
from bench.submissions.templates import AUTHOR

INCOMING = ".incoming-"
"""Beginning of the name of a temporary folder for a submission that is checked."""
OLDER = ".older"
"""Subfolder for replaced submissions, each by name and digest."""


@dataclass(frozen=True)
class AcceptedSubmission:
    """A submission that was accepted."""

    name: str
    kind: str
    digest: str
    folder: Path
    checked: bool
    """Whether most contract checks of its kind passed. False where they could not be run: without
    a sandbox they need --allow-unsandboxed, and they need the data set."""


def accept_submission(
    path: Path | str,
    store: Store,
    submissions: Path | None = None,
    *,
    allow_unsandboxed: bool = False,
    taken: Mapping[str, str] | None = None,
) -> AcceptedSubmission:
    """Accept a submission: a folder, or a zip file of one.

    Card, files and weights are checked without running its code. Then the contract checks of a
    defense or an attack run in the sandbox, where the machine has one; with `allow_unsandboxed`
    those of any submission run in this process, and missing weights are trained. Each state is
    written to the store: received, then queued or rejected. A rejection does not change the state
    of an accepted submission of the same name. `taken` names submissions with the digest of each,
    which no other may replace.

    Raises BenchError with the reason of a rejection, UnavailableError where the submissions folder
    cannot be written.
    """
    path, folder = Path(path), submissions or submissions_folder()
    _end_abandoned(folder, store)
    with _incoming(folder) as incoming:
        name = _name(path)
        try:
            submission = _received(path, Path(incoming))
            _require_free_name(submission, taken or {})
            name = submission.card.name
            _record_state(store, name, "received")
            _check_files(submission)
            checked = _run_contract_checks(submission, allow_unsandboxed)
        except BenchError as error:
            _record_state(store, name, "rejected", str(error))
            raise
        place = _move_to(folder, submission)
    store.record_submission_state(name, "queued")
    return AcceptedSubmission(name, submission.card.kind, submission.digest, place, checked)


def submission_paths(paths: Iterable[Path]) -> list[Path]:
    """The submissions that paths name: each path itself, or those in a folder of submissions.

    A folder of submissions has no card.toml, but zip files or folders with a card.toml; they come
    in the order of their names, hidden ones left out. A path that is named twice comes once.
    """
    found: dict[Path, None] = {}
    for path in paths:
        found.update(dict.fromkeys(_listed(path) or [path]))
    return list(found)


def _listed(path: Path) -> list[Path]:
    """The submissions in a folder of submissions; none where the path is not such a folder."""
    if not path.is_dir() or (path / "card.toml").exists():
        return []
    return sorted(
        entry
        for entry in path.iterdir()
        if not entry.name.startswith(".")
        and (entry.suffix == ".zip" or (entry / "card.toml").is_file())
    )


def accept_submissions(
    paths: Iterable[Path],
    store: Store,
    submissions: Path | None = None,
    *,
    allow_unsandboxed: bool = False,
) -> Iterator[tuple[Path, AcceptedSubmission | BenchError]]:
    """Accept one submission after another: each path with what was accepted, or why it was not.

    Of two different submissions with one name the first is accepted and the second rejected, so
    that no participant replaces the submission of another. Raises UnavailableError as
    `accept_submission` does.
    """
    taken: dict[str, str] = {}
    for path in paths:
        try:
            accepted = accept_submission(
                path, store, submissions, allow_unsandboxed=allow_unsandboxed, taken=taken
            )
        except UnavailableError:
            raise
        except BenchError as error:
            yield path, error
        else:
            taken[accepted.name] = accepted.digest
            yield path, accepted


def _require_free_name(submission: Submission, taken: Mapping[str, str]) -> None:
    """Raise BenchError where another submission has the name."""
    name = submission.card.name
    if taken.get(name, submission.digest) != submission.digest:
        raise BenchError(
            f"the name {name!r} is that of another submission that was handed in at the same time; "
            "choose another name."
        )


def _incoming(folder: Path) -> TemporaryDirectory[str]:
    """A temporary folder beside the later place, so that accepting is one rename."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=owned_prefix(INCOMING), dir=folder)
    except OSError as error:
        raise UnavailableError(
            f"no submission can be stored in {folder}: {error.strerror}; run in another folder, or "
            "set BENCH_SUBMISSIONS to one that can be written."
        ) from error


def _end_abandoned(folder: Path, store: Store) -> None:
    """Remove what killed commands have left, and reject what they were checking."""
    for left in abandoned_folders(folder, INCOMING):
        names = {path.name for path in left.iterdir()}
        for entry in store.submissions():
            if entry.name in names and entry.state == "received":
                why = "its check was ended before it was done: submit it again."
                store.record_submission_state(entry.name, "rejected", why)
        remove_folder(left)


def _record_state(store: Store, name: str, state: str, reason: str = "") -> None:
    """Write a state, unless an accepted or reviewed submission has that name."""
    past = [step.state for e in store.submissions() if e.name == name for step in e.history]
    accepted = name in discovery.REVIEWED_SUBMISSIONS or set(past) - {"received", "rejected"}
    if NAME_PATTERN.fullmatch(name) and not accepted:
        store.record_submission_state(name, state, reason)


def _name(path: Path) -> str:
    return path.stem if path.suffix == ".zip" else path.resolve().name


def _received(path: Path, incoming: Path) -> Submission:
    """A private copy of the submission, which nothing changes while it is checked."""
    try:
        if path.suffix == ".zip":
            return read_submission(unpack_archive(path, incoming))
        return _copied(path, incoming)
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error}.") from error


def _copied(path: Path, incoming: Path) -> Submission:
    original = read_submission(path.resolve())
    place = incoming / original.card.name
    place.mkdir()
    for file in original.files:
        shutil.copyfile(original.folder / file, place / file, follow_symlinks=False)
    copy = read_submission(place)
    if copy.digest != original.digest:
        raise BenchError(f"{path} changed while it was copied; submit it again.")
    return copy


def _check_files(submission: Submission) -> None:
    """Apply every rule that needs no code of the submission to run, the cheap ones first."""
    card = submission.card
    if AUTHOR in card.authors:
        raise BenchError(f"card.toml of {card.name!r} still names {AUTHOR!r}; write your name.")
    wrong = why_unsafe(submission.folder / "weights.safetensors") if card.weights else ""
    wrong = wrong or _why_no_hook(submission) or _why_name_taken(submission)
    if wrong:
        raise BenchError(wrong)


def _run_contract_checks(submission: Submission, allow_unsandboxed: bool) -> bool:
    """Whether most checks could be run and passed; BenchError where one failed."""
    kind, name = submission.card.kind, submission.card.name
    if allow_unsandboxed:
        results = runner.run_checks(submission.folder, train=True, sandbox_waiting=False)
    elif adapter.why_not_sandboxed(submission):
        return False
    else:
        registry = Registry.without_submissions()
        results = list(runner.check_sandboxed(registry, submission, train=True))
    failed = [result for result in results if result.outcome is check.CheckOutcome.FAIL]
    if failed:
        reasons = " ".join(f"{result.check}: {result.sentence}" for result in failed[:3])
        raise BenchError(f"{len(failed)} checks of {name!r} fail. {reasons}")
    outcomes = [result.outcome for result in results if result.kind == kind]
    return outcomes.count(check.CheckOutcome.PASS) > len(outcomes) / 2


def _why_no_hook(submission: Submission) -> str:
    """Why plugin.py cannot register the kind of its card, judged from its syntax tree alone."""
    kind, name = submission.card.kind, submission.card.name
    hook = HOOK_OF_KIND[kind]
    try:
        tree = ast.parse((submission.folder / "plugin.py").read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # The last two where an expression is nested deeper than the parser can follow.
        return f"plugin.py of {name!r} is not valid Python: {error_text(error)}."
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == hook]
    if not found:
        return f"plugin.py of {name!r} has no {hook}; {kind}s are registered there."
    if not found[0].decorator_list:
        return f"plugin.py of {name!r} has {hook} without @hookimpl above it; add @hookimpl."
    return ""


def _why_name_taken(submission: Submission) -> str:
    """Why the name cannot be used; BenchError where a claim names an unknown threat model."""
    registry, card = Registry.without_submissions(), submission.card
    if discovery.REVIEWED_SUBMISSIONS.get(card.name, submission.digest) != submission.digest:
        return f"the submission {card.name!r} ships with bench; choose another name."
    if card.name in getattr(registry, f"{card.kind}s"):
        return f"the {card.kind} {card.name!r} is built in or installed; choose another name."
    for claim in card.claims:
        registry.find("threat", claim.threat)
    return ""


def _move_to(folder: Path, submission: Submission) -> Path:
    """Move the copy into the submissions folder; another version there moves to `.older`."""
    place = folder / submission.card.name
    if place.exists():
        before = _digest(place)
        if before == submission.digest:
            return place
        older = folder / OLDER / f"{submission.card.name}-{before[:16]}"
        older.parent.mkdir(exist_ok=True)
        if older.exists():
            shutil.rmtree(place)
        else:
            place.rename(older)
    return submission.folder.rename(place)


def _digest(place: Path) -> str:
    try:
        return read_submission(place).digest
    except BenchError:
        return "unreadable"
