"""Finds plugins: built in, installed, and submitted; all pass the same door.

One bad plugin never takes down the rest: whatever is refused is refused with a sentence in
`Registry.problems`, and everything else is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pluggy

import plugins
from bench import hooks
from bench.entry import Entry, entry_card, near, read_entry
from bench.identity import source_digest
from bench.offer import (
    Offer,
    attack_card,
    attack_digest,
    card,
    complaint,
    defense_card,
    listed,
)
from bench.plugin import Absent, Attack, Certifier, Dataset, Defense, Diagnostic
from bench.records import BenchError, Card, Cell, Count
from bench.source import MARK, executed, modules_below, unfit
from bench.threat import ThreatModel

__all__ = ["KINDS", "Offer", "Plugin", "Registry", "attack_digest"]

SHIPPED: Final[Mapping[str, str]] = {
    "gaussian-noise": "5a3375b121c4efdee0680e0f7ddd5e5d98a2b9aeae836a7276dc1435ef200a48",
}
"""Submissions that belong to the project, reviewed file by file: name -> digest."""

NOT_IMPORTED = (
    "its code was not imported; --allow-unsandboxed runs it in this process, with all your rights"
)

KINDS = {
    "dataset": "bench_datasets",
    "threat": "bench_threat_models",
    "attack": "bench_attacks",
    "defense": "bench_defenses",
    "certifier": "bench_certifiers",
    "diagnostic": "bench_diagnostics",
}
"""What is asked for, in the order in which it is asked."""

IN_PROCESS, SANDBOXED, UNSANDBOXED = "in-process", "sandboxed", "unsandboxed"
"""How far code is locked in: not, for it is known; by walls; not, at the user's word."""

STRANGE = (Exception, SystemExit)
"""What a stranger's module may raise when it is imported, asked or told: anything. It is caught in
`_safely`, and only there, because one broken plugin must not take the others down; the sentence
goes to `problems`. KeyboardInterrupt still ends the program."""


@dataclass(frozen=True)
class Plugin:
    """A module that came through the door."""

    module: ModuleType
    origin: str
    source: str
    entry: Entry | None = None
    tier: str = IN_PROCESS
    """How far its code is locked in."""

    @property
    def name(self) -> str:
        """What sentences call it."""
        return f"submission {self.entry.card.name}" if self.entry else self.module.__name__


@dataclass
class Registry:
    """Everything that can be played, by kind and name, sorted by name."""

    datasets: dict[str, Offer[Dataset]] = field(default_factory=dict)
    threats: dict[str, Offer[ThreatModel]] = field(default_factory=dict)
    attacks: dict[str, Offer[Attack]] = field(default_factory=dict)
    defenses: dict[str, Offer[Defense]] = field(default_factory=dict)
    certifiers: dict[str, Offer[Certifier]] = field(default_factory=dict)
    diagnostics: dict[str, Offer[Diagnostic]] = field(default_factory=dict)
    absent: dict[tuple[str, str], Absent] = field(default_factory=dict)
    """(kind, name) -> what would be offered if its library were installed."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """Submissions whose card is in order, whether their code was imported or not."""
    waits: dict[str, str] = field(default_factory=dict)
    """Why the code of an entry is not in play, where more is known than that it is not."""
    problems: list[str] = field(default_factory=list)
    """One sentence for each plugin or offer that was refused."""
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(MARK))

    @classmethod
    def empty(cls) -> Registry:
        """One that has asked nobody yet."""
        registry = cls()
        registry.manager.add_hookspecs(hooks)
        return registry

    @classmethod
    def load(cls, submissions: Path | None = None, *, allow_unsandboxed: bool = False) -> Registry:
        """Ask every plugin there is.

        `submissions` is the folder of entries (None: $BENCH_SUBMISSIONS, else ./submissions). Their
        code is imported only with `allow_unsandboxed`, or where it ships with the project.
        """
        registry = cls.empty()
        found = [*registry._built_in(), *registry._installed()]
        found += registry._submitted(submissions or submissions_folder(), allow_unsandboxed)
        registry.admit(found)
        registry._drop_impostors()
        return registry

    def admit(self, found: list[Plugin]) -> None:
        """Register plugins and take in what they offer, kind by kind."""
        admitted = [plugin for plugin in found if self._register(plugin)]
        for kind, hook in KINDS.items():
            for plugin in admitted:
                for value in self._asked(plugin, hook):
                    self._take(kind, value, plugin)
            table = self._table(kind)
            for name in sorted(table):
                table[name] = table.pop(name)

    def find(self, kind: str, name: str) -> Offer[Any]:
        """The offer of that name, or a BenchError that knows the near ones."""
        table = self._table(kind)
        if name in table:
            return table[name]
        if name in self.entries and self.entries[name].card.kind == kind:
            raise BenchError(f"the {kind} {name!r} is a submission: {self.why_waiting(name)}.")
        if (kind, name) in self.absent:
            missing = self.absent[kind, name]
            raise BenchError(
                f"the {kind} {name!r} needs {missing.library}, which is not installed; install the "
                f"extra: uv sync --extra {missing.extra}."
            )
        waiting = [known for known in self.waiting() if self.entries[known].card.kind == kind]
        raise BenchError(f"no {kind} named {name!r}{near(name, [*table, *waiting])}.")

    def attack_card(self, name: str) -> Card:
        """How lists and pages show that attack."""
        return attack_card(self.find("attack", name))

    def defense_card(self, name: str, digests: Mapping[str, str] | None = None) -> Card:
        """How lists and pages show that defense; `digests`: data set -> digest once built."""
        return defense_card(self.find("defense", name), digests)

    def cards(self, digests: Mapping[str, Mapping[str, str]] | None = None) -> list[Card]:
        """Every card, entries that were not imported included; `digests` by defense."""
        known = digests or {}
        tables = ((kind, self._table(kind)) for kind in KINDS)
        cards = [card(k, o, known.get(n)) for k, table in tables for n, o in table.items()]
        return cards + [entry_card(e) for n, e in self.entries.items() if not self._imported(e)]

    def judged(self, cell: Cell, robust: Count) -> None:
        """Tell every plugin that listens, each apart from the others."""
        told = {"cell": cell, "robust": robust}
        for impl in self.manager.hook.bench_cell_judged.get_hookimpls():
            arguments = [told[name] for name in impl.argnames]
            self._safely(f"{impl.plugin_name} failed to listen", impl.function, *arguments)

    def waiting(self) -> list[str]:
        """Entries whose code was not imported: they are listed, and not played."""
        return [name for name, entry in self.entries.items() if not self._imported(entry)]

    def why_waiting(self, name: str) -> str:
        """Why the code of an entry is not in play, as the end of a sentence."""
        return self.waits.get(name, NOT_IMPORTED)

    def _table(self, kind: str) -> dict[str, Offer[Any]]:
        if kind not in KINDS:
            raise BenchError(f"no kind of plugin is named {kind!r}{near(kind, list(KINDS))}.")
        table: dict[str, Offer[Any]] = getattr(self, f"{kind}s")
        return table

    def _imported(self, entry: Entry) -> bool:
        return entry.card.name in self._table(entry.card.kind)

    def _built_in(self) -> Iterator[Plugin]:
        for name in sorted(modules_below(plugins)):
            yield from self._loaded(name, built_in, name)

    def _installed(self) -> Iterator[Plugin]:
        for point in sorted(entry_points(group=MARK), key=lambda point: point.name):
            yield from self._loaded(f"entry point {point.name!r}", installed, point)

    def _submitted(self, folder: Path, allow_unsandboxed: bool) -> Iterator[Plugin]:
        for place in sorted(p for p in folder.glob("*") if p.is_dir() and p.name[0] not in "._"):
            try:
                entry = read_entry(place)
            except (BenchError, OSError) as error:
                self.problems.append(str(error))
                continue
            self.entries[entry.card.name] = entry
            if allow_unsandboxed or SHIPPED.get(entry.card.name) == entry.digest:
                yield from self._loaded(f"submission {place.name}", submitted, entry)

    def _loaded(self, name: str, load: Callable[[Any], Plugin], what: Any) -> list[Plugin]:
        plugin = self._safely(f"{name} could not be imported", load, what)
        return [] if plugin is None else [plugin]

    def _safely(self, sentence: str, function: Callable[..., Any], *args: Any) -> Any:
        """What the function gives, or None, the sentence and why."""
        try:
            return function(*args)
        except STRANGE as error:
            self.problems.append(f"{sentence}: {said(error)}.")
            return None

    def _drop_impostors(self) -> None:
        """An entry that was not imported and bears the name of something else is not listed."""
        for name, entry in list(self.entries.items()):
            offer = self._table(entry.card.kind).get(name)
            if offer is not None and offer.folder != entry.folder:
                del self.entries[name]
                twice = f"two plugins offer the {entry.card.kind} {name!r}: {offer.module} and "
                sentence = f"{twice}submission {name}. Rename one; the first stands."
                self.problems += [sentence] if sentence not in self.problems else []

    def _register(self, plugin: Plugin) -> bool:
        """Whether the plugin is in; otherwise it is out again, with a sentence."""
        wrong = unfit(plugin.module)
        if self.manager.has_plugin(plugin.name):
            wrong = "is named twice; the first stands"
        if wrong:
            self.problems.append(f"{plugin.name} {wrong}.")
            return False
        try:
            self.manager.register(plugin.module, plugin.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            # Before 1.7, register() left a plugin that failed validation inside the manager.
            if self.manager.has_plugin(plugin.name):
                self.manager.unregister(name=plugin.name)
            self.problems.append(f"{plugin.name} was refused: {said(error)}.")
            return False
        return True

    def _asked(self, plugin: Plugin, hook: str) -> list[Any]:
        """The plugin's own answer, apart from all others: a raise concerns it alone."""
        impls = getattr(self.manager.hook, hook).get_hookimpls()
        own = [impl for impl in impls if impl.plugin is plugin.module]
        answers = [self._safely(f"{plugin.name} failed in {hook}", answer, impl) for impl in own]
        return [value for given in answers if given for value in given]

    def _take(self, kind: str, value: Any, plugin: Plugin) -> None:
        """Put one offer into its table, or say why not."""
        what = f"{plugin.name}: what it offers as {kind}"
        wrong = self._safely(f"{what} cannot be looked at", complaint, kind, value)
        if wrong:
            self.problems.append(f"{what} {wrong}.")
        if wrong is None or wrong:
            return
        own = plugin.entry.card if plugin.entry else None
        if own and (own.kind, own.name) != (kind, value.name):
            self.problems.append(
                f"{plugin.name} offers the {kind} {value.name!r}, but its card says the "
                f"{own.kind} {own.name!r}; an entry offers what its card names, no more."
            )
            return
        if isinstance(value, Absent):
            self.absent[kind, value.name] = value
            return
        table = self._table(kind)
        if value.name in table:
            self.problems.append(
                f"two plugins offer the {kind} {value.name!r}: {table[value.name].module} and "
                f"{plugin.name}. Rename one; the first stands."
            )
            return
        folder = plugin.entry.folder if plugin.entry else None
        offer = Offer(value, plugin.origin, plugin.name, plugin.source, folder, plugin.tier)
        if self._safely(f"{what} cannot be listed", listed, kind, offer):
            table[value.name] = offer


def submissions_folder() -> Path:
    """Where entries lie: $BENCH_SUBMISSIONS, else ./submissions."""
    return Path(os.environ.get("BENCH_SUBMISSIONS", "submissions"))


def built_in(name: str) -> Plugin:
    """A module of the package `plugins`."""
    module = import_module(name)
    return Plugin(module, "built-in", source_digest(module))


def installed(point: EntryPoint) -> Plugin:
    """A module that an installed package names in its metadata."""
    module = point.load()
    if not isinstance(module, ModuleType):
        raise BenchError(
            f"it names {point.value}, which is no module; "
            "name the module that holds the functions marked @hookimpl"
        )
    if module.__name__.startswith(f"{plugins.__name__}."):
        raise BenchError(
            f"it names {module.__name__}, which is built in; "
            "point it at a module of your own package"
        )
    return Plugin(module, "entry-point", source_digest(module))


def submitted(entry: Entry) -> Plugin:
    """An entry's plugin.py, run from exactly the bytes whose digest was read."""
    path = entry.folder / "plugin.py"
    content = entry.content("plugin.py")
    reviewed = SHIPPED.get(entry.card.name) == entry.digest
    tier = IN_PROCESS if reviewed else UNSANDBOXED
    return Plugin(executed(content, path), "submission", entry.files["plugin.py"], entry, tier)


def answer(impl: pluggy.HookImpl) -> list[Any]:
    """All that a question's answer yields; a generator runs here, to its end."""
    offered: Any = impl.function()
    return list(offered or ())


def said(error: BaseException) -> str:
    """An exception as the end of a sentence: one line, its type in front."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    if isinstance(error, BenchError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
