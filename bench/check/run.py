"""Runs the laws of a kind over a plugin: one and the same list for the shell and for pytest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.check import attacks, defenses, rules, tools
from bench.check.law import DoesNotApply, Law, Outcome, Result
from bench.check.player import Player
from bench.check.subject import Subject
from bench.entry import near, read_entry
from bench.records import BenchError, UnfitError
from bench.registry import KINDS, STRANGE, Offer, Plugin, Registry, said
from bench.shelf import NeedsTraining, prepared
from bench.source import executed
from bench.weights import soundness

LAWS: Mapping[str, tuple[Law[Any], ...]] = {
    "dataset": rules.PICTURES,
    "threat": rules.RULES,
    "attack": attacks.LAWS,
    "defense": defenses.LAWS,
    "certifier": tools.CERTIFIERS,
    "diagnostic": tools.DIAGNOSTICS,
}
SUBJECTS: Mapping[str, Callable[[Registry, Any], Any]] = {
    "dataset": lambda registry, value: rules.Pictures(value),
    "threat": rules.Rules,
    "attack": Player,
    "defense": Subject,
    "certifier": lambda registry, value: tools.Tool(value),
    "diagnostic": lambda registry, value: tools.Tool(value),
}


def run(
    path_or_name: str | Path, registry: Registry | None = None, *, train: bool = False
) -> list[Result]:
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
    if not found and name in filled.entries:
        return list(_of_path(filled.entries[name].folder, filled, train))
    if not found:
        known = sorted({offer.value.name for _, offer in _offers(filled)} | set(filled.entries))
        raise BenchError(f"no plugin and no path is named {name!r}{near(name, known)}.")
    return [result for kind, offer in found for result in examine(filled, kind, offer, train)]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # longer than any path
        return False


def examine(
    registry: Registry, kind: str, offer: Offer[Any], train: bool = False
) -> Iterator[Result]:
    """Every law of the kind, in order."""
    subject = SUBJECTS[kind](registry, offer.value)
    unmade = _trained(subject) if train and isinstance(subject, Subject) else []
    yield from unmade
    for law in LAWS[kind]:
        yield tried(kind, offer.value.name, law, subject, made=train and not unmade)


def tried(kind: str, name: str, law: Law[Any], subject: Any, *, made: bool = False) -> Result:
    """One law on one plugin; whatever the plugin raises on the way breaks the law.

    With `made` its weights were made: that it still lacks some is a finding then.
    """
    try:
        wrong = law.holds(subject)
    except DoesNotApply as reason:
        return Result(kind, name, law.name, Outcome.NOT_APPLICABLE, str(reason))
    except (NeedsTraining, UnfitError) as error:
        lacking = made and isinstance(error, NeedsTraining)
        outcome = Outcome.FAIL if lacking else Outcome.NOT_APPLICABLE
        return Result(kind, name, law.name, outcome, str(error))
    except STRANGE as error:
        # A plugin under examination may raise anything; that is a finding, not a crash.
        return Result(kind, name, law.name, Outcome.FAIL, f"{said(error)}.")
    if wrong:
        return Result(kind, name, law.name, Outcome.FAIL, wrong)
    return Result(kind, name, law.name, Outcome.PASS, law.text)


def _offers(registry: Registry) -> Iterator[tuple[str, Offer[Any]]]:
    for kind in KINDS:
        for offer in getattr(registry, f"{kind}s").values():
            yield kind, offer


def _trained(subject: Subject) -> list[Result]:
    """Make missing weights; what fails there is a result of its own."""
    law = Law(weights_can_be_made)
    result = tried("defense", subject.defense.name, law, subject)
    return [result] if result.outcome is Outcome.FAIL else []


def weights_can_be_made(subject: Subject) -> str:
    """Whatever the defense needs and nobody has trained yet can be trained."""
    prepared(subject.registry, subject.defense.name, subject.dataset)
    return ""


def _of_path(path: Path, registry: Registry, train: bool) -> Iterator[Result]:
    """The folder's own rules, the door's, then every law of what the plugin offers."""
    name = path.stem if path.suffix == ".py" else path.resolve().name
    sound = _folder(path, name) if path.is_dir() else []
    yield from sound
    if any(result.outcome is Outcome.FAIL for result in sound):
        return
    plugin, sentence = _imported(path if path.suffix == ".py" else path / "plugin.py")
    before = len(registry.problems)
    if plugin is not None:
        _forget(registry, plugin)
        registry.admit([plugin])
        sentence = " ".join(registry.problems[before:]) or _unoffered(registry, plugin)
    outcome = Outcome.FAIL if sentence else Outcome.PASS
    yield Result("plugin", name, "passes-the-door", outcome, sentence or "The registry takes it.")
    for kind, offer in list(_offers(registry)):
        if plugin is not None and offer.module == plugin.name:
            yield from examine(registry, kind, offer, train)


def _unoffered(registry: Registry, plugin: Plugin) -> str:
    """That an entry does not offer what its card names; empty where it does."""
    if plugin.entry is None:
        return ""
    kind, name = plugin.entry.card.kind, plugin.entry.card.name
    if any((k, o.value.name, o.module) == (kind, name, plugin.name) for k, o in _offers(registry)):
        return ""
    if (kind, name) not in registry.absent:
        hook = KINDS[kind]
        return f"its {hook} gives nothing, its card names the {kind} {name!r}; yield it there."
    try:
        registry.find(kind, name)
    except BenchError as error:
        return str(error)
    return ""


def _folder(path: Path, name: str) -> list[Result]:
    """A submission's card, files and weights."""
    if not (path / "card.toml").exists():
        return []
    try:
        entry = read_entry(path.resolve())
    except (BenchError, OSError) as error:
        return [Result("plugin", name, "card-is-in-order", Outcome.FAIL, str(error))]
    first = Result(
        "plugin", name, "card-is-in-order", Outcome.PASS, "Card and files fit the rules."
    )
    if not entry.card.weights:
        return [first]
    wrong = soundness(path / "weights.safetensors")
    outcome = Outcome.FAIL if wrong else Outcome.PASS
    sentence = wrong or "Weights are plain finite tensors."
    return [first, Result("plugin", name, "weights-are-sound", outcome, sentence)]


def _imported(path: Path) -> tuple[Plugin | None, str]:
    """The plugin, or why not."""
    try:
        content = path.read_bytes()
        module = executed(content, path)
        entry = read_entry(path.parent.resolve()) if _is_entry(path) else None
    except STRANGE as error:
        return None, f"{path} could not be imported: {said(error)}."
    origin = "submission" if entry else "file"
    return Plugin(module, origin, hashlib.sha256(content).hexdigest(), entry), ""


def _is_entry(path: Path) -> bool:
    return path.name == "plugin.py" and (path.parent / "card.toml").exists()


def _forget(registry: Registry, plugin: Plugin) -> None:
    """Take the installed copy of the same plugin out, so that this one is examined."""
    for kind, offer in list(_offers(registry)):
        if plugin.entry is not None and offer.module == plugin.name:
            del getattr(registry, f"{kind}s")[offer.value.name]
    if registry.manager.has_plugin(plugin.name):
        registry.manager.unregister(name=plugin.name)
