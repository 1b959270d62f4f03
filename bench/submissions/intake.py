"""`bench submit`: takes an entry in, by digest, once it has passed; the next run plays it."""

from __future__ import annotations

import ast
import shutil
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
from bench.sandbox import adapter, isolation
from bench.store import Store
from bench.submissions.archive import unpack_archive
from bench.submissions.templates import AUTHOR

OLDER = ".older"
"""Where entries go that a newer one replaces, by name and digest."""


@dataclass(frozen=True)
class AcceptedSubmission:
    """An entry that was taken in."""

    name: str
    kind: str
    digest: str
    folder: Path
    checked: bool
    """Whether most laws of its contract were held against it: where no sandbox holds its code that
    needs the user's word, and its data must be there."""


def take_in(
    path: Path | str,
    store: Store,
    submissions: Path | None = None,
    *,
    allow_unsandboxed: bool = False,
) -> AcceptedSubmission:
    """Take in an entry: a folder, or a zip of one.

    Card, files and weights are judged without running a line of it. Then the contract of a defense
    or an attack is checked behind walls, where the machine has any; with `allow_unsandboxed` any
    entry is checked in this process, and what it must be trained for is trained. Each state is
    written to the store: received, then queued, or rejected with the sentence that the BenchError
    carries too; what is refused takes no state from an entry of its name that was taken in before.
    """
    path, loader = Path(path), submissions or submissions_folder()
    with _incoming(loader) as incoming:
        name = _name(path)
        try:
            entry = _received(path, Path(incoming))
            name = entry.card.name
            _tell(store, name, "received")
            _judge(entry, loader)
            checked = _checked(entry, allow_unsandboxed)
        except BenchError as error:
            _tell(store, name, "rejected", str(error))
            raise
        folder = _taken_in(entry, loader)
    store.submission(name, "queued")
    return AcceptedSubmission(name, entry.card.kind, entry.digest, folder, checked)


def _incoming(loader: Path) -> TemporaryDirectory[str]:
    """A folder beside the entry's later place: taking it in is then one rename."""
    try:
        loader.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".incoming-", dir=loader)
    except OSError as error:
        raise UnavailableError(
            f"no entry can be kept in {loader}: {error.strerror}; run in another folder, or set "
            "BENCH_SUBMISSIONS to one that can be written."
        ) from error


def _tell(store: Store, name: str, state: str, reason: str = "") -> None:
    """Write a state, unless another entry stands under that name."""
    past = [step.state for e in store.submissions() if e.name == name for step in e.history]
    stands = name in discovery.REVIEWED_SUBMISSIONS or set(past) - {"received", "rejected"}
    if NAME_PATTERN.fullmatch(name) and not stands:
        store.submission(name, state, reason)


def _name(path: Path) -> str:
    return path.stem if path.suffix == ".zip" else path.resolve().name


def _received(path: Path, incoming: Path) -> Submission:
    """A private copy, so that nothing changes between looking and taking."""
    try:
        if path.suffix == ".zip":
            return read_submission(unpack_archive(path, incoming))
        return _copied(path, incoming)
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error}.") from error


def _copied(path: Path, incoming: Path) -> Submission:
    entry = read_submission(path.resolve())
    place = incoming / entry.card.name
    place.mkdir()
    for file in entry.files:
        shutil.copyfile(entry.folder / file, place / file, follow_symlinks=False)
    copy = read_submission(place)
    if copy.digest != entry.digest:
        raise BenchError(f"{path} changed while it was copied; submit it again.")
    return copy


def _judge(entry: Submission, loader: Path) -> None:
    """Every rule that needs no line of it run, the cheap ones first."""
    if AUTHOR in entry.card.authors:
        raise BenchError(f"card.toml of {entry.card.name!r} still says {AUTHOR!r}; sign it.")
    wrong = why_unsafe(entry.folder / "weights.safetensors") if entry.card.weights else ""
    wrong = wrong or _hookless(entry) or _taken(entry, loader)
    if wrong:
        raise BenchError(wrong)


def _checked(entry: Submission, allow_unsandboxed: bool) -> bool:
    """Whether most laws could be held against it; BenchError where one is broken."""
    if allow_unsandboxed:
        results = runner.run_checks(entry.folder, train=True)
    elif entry.card.kind in adapter.OFFERED and not isolation.why_unavailable():
        results = _behind_walls(entry)
    else:
        return False
    failed = [result for result in results if result.outcome is check.CheckOutcome.FAIL]
    if failed:
        reasons = " ".join(f"{result.check}: {result.sentence}" for result in failed[:3])
        raise BenchError(f"{len(failed)} checks of {entry.card.name!r} fail. {reasons}")
    held = [result.outcome for result in results if result.kind == entry.card.kind]
    return held.count(check.CheckOutcome.PASS) > len(held) / 2


def _behind_walls(entry: Submission) -> list[check.CheckResult]:
    """Every law of its kind, none of its code in this process."""
    known = Registry.load(entry.folder / "no-submissions")
    known.submissions[entry.card.name] = entry
    adapter.isolate_submissions(known)
    offer = known.find(entry.card.kind, entry.card.name)
    return list(runner.check_registration(known, entry.card.kind, offer, train=True))


def _hookless(entry: Submission) -> str:
    """Why plugin.py can offer nothing of the card's kind, judged from its text alone."""
    hook = HOOK_OF_KIND[entry.card.kind]
    try:
        tree = ast.parse((entry.folder / "plugin.py").read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # The last two where an expression is nested deeper than the parser goes.
        return f"plugin.py of {entry.card.name!r} is no Python: {error_text(error)}."
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == hook]
    if not found:
        return (
            f"plugin.py of {entry.card.name!r} has no {hook}; {entry.card.kind}s are offered there."
        )
    if not found[0].decorator_list:
        return f"plugin.py of {entry.card.name!r} has {hook} without @hookimpl above it; mark it."
    return ""


def _taken(entry: Submission, loader: Path) -> str:
    """Whether something that is no submission bears the name, or its claims name no board."""
    known, card = Registry.load(loader / ".nothing"), entry.card
    if discovery.REVIEWED_SUBMISSIONS.get(card.name, entry.digest) != entry.digest:
        return f"the entry {card.name!r} is reviewed and comes with bench; choose another name."
    if card.name in getattr(known, f"{card.kind}s"):
        return f"the {card.kind} {card.name!r} is built in or installed; choose another name."
    for claim in card.claims:
        known.find("threat", claim.threat)
    return ""


def _taken_in(entry: Submission, loader: Path) -> Path:
    """Move the copy to its place; what stood there goes to `.older`, unless it is the same."""
    place = loader / entry.card.name
    if place.exists():
        before = _digest(place)
        if before == entry.digest:
            return place
        older = loader / OLDER / f"{entry.card.name}-{before[:16]}"
        older.parent.mkdir(exist_ok=True)
        if older.exists():
            shutil.rmtree(place)
        else:
            place.rename(older)
    return entry.folder.rename(place)


def _digest(place: Path) -> str:
    try:
        return read_submission(place).digest
    except BenchError:
        return "unreadable"
