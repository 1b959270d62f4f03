"""Runs the checks of a plugin: the same list for `bench check` and for pytest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.contract import (
    attack_checks,
    dataset_checks,
    defense_checks,
    shared_checks,
    threat_checks,
    tool_checks,
)
from bench.contract.attack_fixture import AttackFixture
from bench.contract.check import Check, CheckOutcome, CheckResult, DoesNotApply
from bench.contract.defense_fixture import DefenseFixture
from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, UnavailableError, error_text
from bench.core.folders import submissions_folder
from bench.plugin import is_shared
from bench.registry.discovery import Plugin, is_reviewed
from bench.registry.loader import module_from_source
from bench.registry.registration import Registration
from bench.registry.registry import HOOK_OF_KIND, Registry
from bench.registry.submission import Submission, did_you_mean, read_submission
from bench.registry.weights_file import why_unsafe
from bench.sandbox import adapter
from bench.training.defense_builder import NeedsTraining
from bench.training.tasks import build_trained

CHECKS: Mapping[str, tuple[Check[Any], ...]] = {
    "dataset": dataset_checks.DATASET_CHECKS,
    "threat": threat_checks.THREAT_CHECKS,
    "attack": attack_checks.ATTACK_CHECKS,
    "defense": defense_checks.DEFENSE_CHECKS,
    "certifier": tool_checks.CERTIFIER_CHECKS,
    "diagnostic": tool_checks.DIAGNOSTIC_CHECKS,
}
FIXTURES: Mapping[str, Callable[[Registry, Any], Any]] = {
    "dataset": lambda registry, value: dataset_checks.DatasetFixture(value),
    "threat": threat_checks.ThreatFixture,
    "attack": lambda registry, value: (
        shared_checks.SharedFixture if is_shared(value) else AttackFixture
    )(registry, value),
    "defense": DefenseFixture,
    "certifier": lambda registry, value: tool_checks.ToolFixture(value),
    "diagnostic": lambda registry, value: tool_checks.ToolFixture(value),
}


def checks_for(kind: str, value: object) -> tuple[Check[Any], ...]:
    """The checks of a plugin of a kind; an attack that fits a point has its own."""
    return shared_checks.SHARED_CHECKS if is_shared(value) else CHECKS[kind]


def run_checks(
    path_or_name: str | Path,
    registry: Registry | None = None,
    *,
    train: bool = False,
    sandbox_waiting: bool = True,
) -> list[CheckResult]:
    """Run every check of everything that a plugin registers.

    Args:
        path_or_name: a plugin's file or folder, whose code is imported into this process, so name
            only code that you trust. Or the name of a registered plugin, also where a folder
            without a plugin.py has that name. Or a waiting submission, by name or by its folder:
            its code runs in a sandboxed process.
        registry: None: every plugin.
        train: whether missing weights of a defense are trained first.
        sandbox_waiting: False: code of a waiting submission is imported into this process, too.

    Returns:
        The results in order.

    Raises:
        BenchError: the path or name is unknown.
    """
    path, known = Path(path_or_name), registry or Registry.load()
    found = [] if _holds_plugin(path) else _plugins_named(str(path), known)
    if found:
        results = (check_registration(known, kind, plugin, train) for kind, plugin in found)
        return [result for part in results for result in part]
    is_path = _is_folder(path) or path.suffix == ".py"
    folder = path if is_path else _submission_folder(str(path), known)
    if sandbox_waiting and waits_in_submissions(folder):
        return list(_check_waiting(folder, known, train))
    return list(_check_path(folder, known, train))


def waits_in_submissions(path: Path) -> bool:
    """Whether a file or folder lies in a folder of submissions, so that a stranger may own it.

    A folder of that name counts wherever it is, so that the current folder does not matter.
    """
    waiting = submissions_folder().resolve()
    return any(place == waiting or place.name == waiting.name for place in path.resolve().parents)


def check_sandboxed(
    registry: Registry, submission: Submission, train: bool = False
) -> Iterator[CheckResult]:
    """Register a submission whose code runs in a sandboxed process, and run every check of it."""
    kind, name = submission.card.kind, submission.card.name
    outcome, sentence = _register_sandboxed(registry, submission)
    yield CheckResult("plugin", name, "is-registered", outcome, sentence)
    if outcome is CheckOutcome.PASS:
        yield from check_registration(registry, kind, registry.find(kind, name), train)


def _register_sandboxed(registry: Registry, submission: Submission) -> tuple[CheckOutcome, str]:
    reason = adapter.why_not_sandboxed(submission)
    if reason:
        return CheckOutcome.NOT_RUN, f"{reason}."
    before = len(registry.problems)
    try:
        plugin = adapter.proxy_plugin(submission)
        _remove_installed_copy(registry, plugin)
        registry.add_plugins([plugin])
    except UnavailableError as error:
        return CheckOutcome.NOT_RUN, str(error)
    except BenchError as error:
        return CheckOutcome.FAIL, str(error)
    wrong = " ".join(registry.problems[before:])
    if wrong:
        return CheckOutcome.FAIL, wrong
    return CheckOutcome.PASS, "It can be imported and registered, in a sandboxed process."


def _check_waiting(path: Path, registry: Registry, train: bool) -> Iterator[CheckResult]:
    """Check the card and files of a waiting submission, then its plugin in a sandboxed process."""
    folder = path.parent if path.suffix == ".py" else path
    files = _check_files(folder, folder.resolve().name)
    yield from files
    if not files:
        sentence = (
            f"{path} has no card.toml, so that it cannot be sandboxed; --allow-unsandboxed imports "
            "it into this process, with all your permissions."
        )
        yield CheckResult("plugin", path.stem, "is-registered", CheckOutcome.NOT_RUN, sentence)
    elif all(result.outcome is not CheckOutcome.FAIL for result in files):
        submission = read_submission(folder.resolve())
        if is_reviewed(submission):
            yield from _check_imported(path, registry, train)
        else:
            yield from check_sandboxed(registry, submission, train)


def _plugins_named(name: str, registry: Registry) -> list[tuple[str, Registration[Any]]]:
    """Kind and registration of every plugin of this name."""
    return [
        (kind, plugin) for kind, plugin in _registrations(registry) if plugin.value.name == name
    ]


def _submission_folder(name: str, registry: Registry) -> Path:
    """The folder of a submission; BenchError with a suggestion where none has that name."""
    if name in registry.submissions:
        return registry.submissions[name].folder
    names = {plugin.value.name for _, plugin in _registrations(registry)}
    hint = did_you_mean(name, sorted(names | set(registry.submissions)))
    raise BenchError(f"no plugin and no path is named {name!r}{hint}.")


def _holds_plugin(path: Path) -> bool:
    """Whether a path is a Python file or a folder with a plugin.py, and no name."""
    return path.suffix == ".py" or (_is_folder(path) and (path / "plugin.py").exists())


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # longer than any path
        return False


def check_registration(
    registry: Registry, kind: str, registration: Registration[Any], train: bool = False
) -> Iterator[CheckResult]:
    """Run every check of the kind on one registered plugin, in order.

    A check is not run where an earlier one decides that it cannot pass; one that fails with the
    sentence of an earlier one refers to that, so that a fault is described once.
    """
    name, fixture = registration.value.name, FIXTURES[kind](registry, registration.value)
    untrained = _train(fixture) if train and isinstance(fixture, DefenseFixture) else []
    yield from untrained
    described: dict[str, str] = {}
    stopped = ""
    for check in checks_for(kind, registration.value):
        if stopped and not check.stands_alone:
            yield _not_run(kind, name, check, f"because {stopped}.")
            continue
        result = run_check(kind, name, check, fixture, trained=train and not untrained)
        if check.decides and result.outcome in (CheckOutcome.FAIL, CheckOutcome.NOT_RUN):
            failed = result.outcome is CheckOutcome.FAIL
            stopped = f"{check.name} {'failed' if failed else 'was not run'}"
        elif result.outcome is CheckOutcome.FAIL and result.sentence in described:
            result = _not_run(kind, name, check, f"because {described[result.sentence]} failed.")
        described.setdefault(result.sentence, check.name)
        yield result


def _not_run(kind: str, name: str, check: Check[Any], reason: str) -> CheckResult:
    return CheckResult(kind, name, check.name, CheckOutcome.NOT_RUN, reason)


def run_check(
    kind: str, name: str, check: Check[Any], fixture: Any, *, trained: bool = False
) -> CheckResult:
    """Run one check on one plugin. Whatever the plugin raises meanwhile is a failure of the check.

    Missing data or weights make a check not applicable, and one that decides not run; weights that
    were `trained` before are a failure.
    """
    outcome, sentence = _outcome(check, fixture, trained)
    return CheckResult(kind, name, check.name, outcome, sentence)


def _outcome(check: Check[Any], fixture: Any, trained: bool) -> tuple[CheckOutcome, str]:
    try:
        wrong = check.function(fixture)
    except DoesNotApply as reason:
        return CheckOutcome.NOT_APPLICABLE, str(reason)
    except (NeedsTraining, UnavailableError) as error:
        if trained and isinstance(error, NeedsTraining):
            return CheckOutcome.FAIL, str(error)
        return CheckOutcome.NOT_RUN if check.decides else CheckOutcome.NOT_APPLICABLE, str(error)
    except PLUGIN_EXCEPTIONS as error:
        # The plugin's code may raise anything; that is a result of the check, not a crash.
        return CheckOutcome.FAIL, f"{error_text(error)}."
    if not wrong:
        return CheckOutcome.PASS, check.sentence
    return CheckOutcome.WARNING if check.warns else CheckOutcome.FAIL, wrong


def _registrations(registry: Registry) -> Iterator[tuple[str, Registration[Any]]]:
    for kind in HOOK_OF_KIND:
        for registration in getattr(registry, f"{kind}s").values():
            yield kind, registration


def _train(fixture: DefenseFixture) -> list[CheckResult]:
    """Train missing weights; the result of a failed training, else nothing."""
    result = run_check("defense", fixture.defense.name, Check(weights_can_be_made), fixture)
    return [result] if result.outcome is CheckOutcome.FAIL else []


def weights_can_be_made(fixture: DefenseFixture) -> str:
    """The weights of the defense, and of the defenses that it uses, can be trained."""
    with suppress(NeedsTraining):
        if fixture.defense.bpda is None and fixture.sandboxed_module is not None:
            return ""  # it was built, and the other checks use this process
    build_trained(fixture.registry, fixture.defense.name, fixture.dataset)
    return ""


def _check_path(path: Path, registry: Registry, train: bool) -> Iterator[CheckResult]:
    """Check a folder's card and files, its registration, then every registered plugin."""
    name = path.stem if path.suffix == ".py" else path.resolve().name
    files = _check_files(path, name) if path.is_dir() else []
    yield from files
    if all(result.outcome is not CheckOutcome.FAIL for result in files):
        yield from _check_imported(path, registry, train)


def _check_imported(path: Path, registry: Registry, train: bool) -> Iterator[CheckResult]:
    """Import a plugin into this process and check everything that it registers."""
    name = path.stem if path.suffix == ".py" else path.resolve().name
    plugin, wrong = _imported(path if path.suffix == ".py" else path / "plugin.py")
    if plugin is not None:
        wrong = _register(registry, plugin)
    outcome = CheckOutcome.FAIL if wrong else CheckOutcome.PASS
    sentence = wrong or "It can be imported and registered."
    yield CheckResult("plugin", name, "is-registered", outcome, sentence)
    for kind, registration in list(_registrations(registry)):
        if plugin is not None and registration.module == plugin.name:
            yield from check_registration(registry, kind, registration, train)


def _register(registry: Registry, plugin: Plugin) -> str:
    """Register a plugin; why it, or what its card names, was not registered, or empty."""
    before = len(registry.problems)
    _remove_installed_copy(registry, plugin)
    registry.add_plugins([plugin])
    return " ".join(registry.problems[before:]) or _why_unregistered(registry, plugin)


def _why_unregistered(registry: Registry, plugin: Plugin) -> str:
    """Why a submission does not register what its card names; empty where it does."""
    if plugin.submission is None:
        return ""
    kind, name = plugin.submission.card.kind, plugin.submission.card.name
    found = [(k, r.value.name, r.module) for k, r in _registrations(registry)]
    if (kind, name, plugin.name) in found:
        return ""
    if (kind, name) not in registry.missing_libraries:
        hook = HOOK_OF_KIND[kind]
        return f"its {hook} yields nothing, but its card names the {kind} {name!r}; yield it there."
    try:
        registry.find(kind, name)
    except BenchError as error:
        return str(error)
    return ""


def _check_files(path: Path, name: str) -> list[CheckResult]:
    """Check a submission's card, files and weights; nothing where there is no card."""
    if not (path / "card.toml").exists():
        return []
    try:
        submission = read_submission(path.resolve())
    except (BenchError, OSError) as error:
        return [CheckResult("plugin", name, "card-is-in-order", CheckOutcome.FAIL, str(error))]
    sentence = "Card and files are valid."
    first = CheckResult("plugin", name, "card-is-in-order", CheckOutcome.PASS, sentence)
    if not submission.card.weights:
        return [first]
    wrong = why_unsafe(path / "weights.safetensors")
    outcome = CheckOutcome.FAIL if wrong else CheckOutcome.PASS
    sentence = wrong or "The weights are finite tensors in a safetensors file."
    return [first, CheckResult("plugin", name, "weights-are-sound", outcome, sentence)]


def _imported(path: Path) -> tuple[Plugin | None, str]:
    """The plugin of a file, or None and why it cannot be imported."""
    try:
        content = path.read_bytes()
        module = module_from_source(content, path)
        submission = read_submission(path.parent.resolve()) if _is_submission(path) else None
    except PLUGIN_EXCEPTIONS as error:
        return None, f"{path} could not be imported: {error_text(error)}."
    origin = "submission" if submission else "file"
    return Plugin(module, origin, hashlib.sha256(content).hexdigest(), submission), ""


def _is_submission(path: Path) -> bool:
    return path.name == "plugin.py" and (path.parent / "card.toml").exists()


def _remove_installed_copy(registry: Registry, plugin: Plugin) -> None:
    """Remove a registered copy of the same plugin, so that this one is checked."""
    for kind, registration in list(_registrations(registry)):
        if plugin.submission is not None and registration.module == plugin.name:
            del getattr(registry, f"{kind}s")[registration.value.name]
    if registry.manager.has_plugin(plugin.name):
        registry.manager.unregister(name=plugin.name)
