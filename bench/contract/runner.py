"""Runs the laws of a kind over a plugin: one and the same list for the shell and for pytest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.contract import attack_checks, dataset_checks, defense_checks, threat_checks, tool_checks
from bench.contract.attack_fixture import AttackFixture
from bench.contract.check import Check, CheckOutcome, CheckResult, DoesNotApply
from bench.contract.defense_fixture import DefenseFixture
from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, UnavailableError, error_text
from bench.registry.discovery import Plugin
from bench.registry.loader import module_from_source
from bench.registry.registration import Registration
from bench.registry.registry import HOOK_OF_KIND, Registry
from bench.registry.submission import did_you_mean, read_submission
from bench.registry.weights_file import why_unsafe
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
    "attack": AttackFixture,
    "defense": DefenseFixture,
    "certifier": lambda registry, value: tool_checks.ToolFixture(value),
    "diagnostic": lambda registry, value: tool_checks.ToolFixture(value),
}


def run_checks(
    path_or_name: str | Path, registry: Registry | None = None, *, train: bool = False
) -> list[CheckResult]:
    """Every check of everything that a plugin offers.

    A path is a plugin's file, or its folder: its code is imported into this process, so name only
    what you trust. A name is that of anything registered, or of an entry whose code waits: then
    its folder is examined, and no other entry's code is run. BenchError when it is none of these.
    With `train` the weights that a defense needs and nobody has made yet are made first.
    """
    path, filled = Path(path_or_name), registry or Registry.load()
    if _is_folder(path) or path.suffix == ".py":
        return list(_of_path(path, filled, train))
    name = str(path)
    found = [(kind, offer) for kind, offer in _offers(filled) if offer.value.name == name]
    if not found and name in filled.submissions:
        return list(_of_path(filled.submissions[name].folder, filled, train))
    if not found:
        known = sorted({offer.value.name for _, offer in _offers(filled)} | set(filled.submissions))
        raise BenchError(f"no plugin and no path is named {name!r}{did_you_mean(name, known)}.")
    return [
        result for kind, offer in found for result in check_registration(filled, kind, offer, train)
    ]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # longer than any path
        return False


def check_registration(
    registry: Registry, kind: str, offer: Registration[Any], train: bool = False
) -> Iterator[CheckResult]:
    """Every law of the kind, in order."""
    subject = FIXTURES[kind](registry, offer.value)
    unmade = _trained(subject) if train and isinstance(subject, DefenseFixture) else []
    yield from unmade
    for law in CHECKS[kind]:
        yield run_check(kind, offer.value.name, law, subject, made=train and not unmade)


def run_check(
    kind: str, name: str, law: Check[Any], subject: Any, *, made: bool = False
) -> CheckResult:
    """One law on one plugin; whatever the plugin raises on the way breaks the law.

    With `made` its weights were made: that it still lacks some is a finding then.
    """
    try:
        wrong = law.function(subject)
    except DoesNotApply as reason:
        return CheckResult(kind, name, law.name, CheckOutcome.NOT_APPLICABLE, str(reason))
    except (NeedsTraining, UnavailableError) as error:
        lacking = made and isinstance(error, NeedsTraining)
        outcome = CheckOutcome.FAIL if lacking else CheckOutcome.NOT_APPLICABLE
        return CheckResult(kind, name, law.name, outcome, str(error))
    except PLUGIN_EXCEPTIONS as error:
        # A plugin under examination may raise anything; that is a finding, not a crash.
        return CheckResult(kind, name, law.name, CheckOutcome.FAIL, f"{error_text(error)}.")
    if wrong:
        return CheckResult(kind, name, law.name, CheckOutcome.FAIL, wrong)
    return CheckResult(kind, name, law.name, CheckOutcome.PASS, law.sentence)


def _offers(registry: Registry) -> Iterator[tuple[str, Registration[Any]]]:
    for kind in HOOK_OF_KIND:
        for offer in getattr(registry, f"{kind}s").values():
            yield kind, offer


def _trained(subject: DefenseFixture) -> list[CheckResult]:
    """Make missing weights; what fails there is a result of its own."""
    law = Check(weights_can_be_made)
    result = run_check("defense", subject.defense.name, law, subject)
    return [result] if result.outcome is CheckOutcome.FAIL else []


def weights_can_be_made(subject: DefenseFixture) -> str:
    """Whatever the defense needs and nobody has trained yet can be trained."""
    build_trained(subject.registry, subject.defense.name, subject.dataset)
    return ""


def _of_path(path: Path, registry: Registry, train: bool) -> Iterator[CheckResult]:
    """The folder's own rules, the door's, then every law of what the plugin offers."""
    name = path.stem if path.suffix == ".py" else path.resolve().name
    sound = _folder(path, name) if path.is_dir() else []
    yield from sound
    if any(result.outcome is CheckOutcome.FAIL for result in sound):
        return
    plugin, sentence = _imported(path if path.suffix == ".py" else path / "plugin.py")
    before = len(registry.problems)
    if plugin is not None:
        _forget(registry, plugin)
        registry.add_plugins([plugin])
        sentence = " ".join(registry.problems[before:]) or _unoffered(registry, plugin)
    outcome = CheckOutcome.FAIL if sentence else CheckOutcome.PASS
    yield CheckResult(
        "plugin", name, "passes-the-door", outcome, sentence or "The registry takes it."
    )
    for kind, offer in list(_offers(registry)):
        if plugin is not None and offer.module == plugin.name:
            yield from check_registration(registry, kind, offer, train)


def _unoffered(registry: Registry, plugin: Plugin) -> str:
    """That an entry does not offer what its card names; empty where it does."""
    if plugin.submission is None:
        return ""
    kind, name = plugin.submission.card.kind, plugin.submission.card.name
    if any((k, o.value.name, o.module) == (kind, name, plugin.name) for k, o in _offers(registry)):
        return ""
    if (kind, name) not in registry.missing_libraries:
        hook = HOOK_OF_KIND[kind]
        return f"its {hook} gives nothing, its card names the {kind} {name!r}; yield it there."
    try:
        registry.find(kind, name)
    except BenchError as error:
        return str(error)
    return ""


def _folder(path: Path, name: str) -> list[CheckResult]:
    """A submission's card, files and weights."""
    if not (path / "card.toml").exists():
        return []
    try:
        entry = read_submission(path.resolve())
    except (BenchError, OSError) as error:
        return [CheckResult("plugin", name, "card-is-in-order", CheckOutcome.FAIL, str(error))]
    first = CheckResult(
        "plugin", name, "card-is-in-order", CheckOutcome.PASS, "Card and files fit the rules."
    )
    if not entry.card.weights:
        return [first]
    wrong = why_unsafe(path / "weights.safetensors")
    outcome = CheckOutcome.FAIL if wrong else CheckOutcome.PASS
    sentence = wrong or "Weights are plain finite tensors."
    return [first, CheckResult("plugin", name, "weights-are-sound", outcome, sentence)]


def _imported(path: Path) -> tuple[Plugin | None, str]:
    """The plugin, or why not."""
    try:
        content = path.read_bytes()
        module = module_from_source(content, path)
        entry = read_submission(path.parent.resolve()) if _is_entry(path) else None
    except PLUGIN_EXCEPTIONS as error:
        return None, f"{path} could not be imported: {error_text(error)}."
    origin = "submission" if entry else "file"
    return Plugin(module, origin, hashlib.sha256(content).hexdigest(), entry), ""


def _is_entry(path: Path) -> bool:
    return path.name == "plugin.py" and (path.parent / "card.toml").exists()


def _forget(registry: Registry, plugin: Plugin) -> None:
    """Take the installed copy of the same plugin out, so that this one is examined."""
    for kind, offer in list(_offers(registry)):
        if plugin.submission is not None and offer.module == plugin.name:
            del getattr(registry, f"{kind}s")[offer.value.name]
    if registry.manager.has_plugin(plugin.name):
        registry.manager.unregister(name=plugin.name)
