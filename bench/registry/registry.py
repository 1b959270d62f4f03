"""The registry: every registered plugin by kind and name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pluggy

import plugins
from bench.core.cards import Card
from bench.core.cells import Cell
from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, error_text
from bench.core.statistics import Count
from bench.plugin import Attack, Certifier, Dataset, Defense, Diagnostic, MissingLibrary
from bench.registry import hookspecs
from bench.registry.cards import attack_card, card_json, card_of, defense_card
from bench.registry.discovery import (
    Plugin,
    built_in,
    hook_values,
    installed,
    is_reviewed,
    submissions_folder,
    submitted,
)
from bench.registry.loader import PLUGGY_PROJECT, plugin_modules, why_no_plugin
from bench.registry.registration import Registration
from bench.registry.submission import Submission, did_you_mean, read_submission, submission_card
from bench.registry.validation import why_invalid
from bench.threats.threat_model import ThreatModel

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


@dataclass
class Registry:
    """Everything that can be played, by kind and name, sorted by name."""

    datasets: dict[str, Registration[Dataset]] = field(default_factory=dict)
    threats: dict[str, Registration[ThreatModel]] = field(default_factory=dict)
    attacks: dict[str, Registration[Attack]] = field(default_factory=dict)
    defenses: dict[str, Registration[Defense]] = field(default_factory=dict)
    certifiers: dict[str, Registration[Certifier]] = field(default_factory=dict)
    diagnostics: dict[str, Registration[Diagnostic]] = field(default_factory=dict)
    absent: dict[tuple[str, str], MissingLibrary] = field(default_factory=dict)
    """(kind, name) -> what would be offered if its library were installed."""
    entries: dict[str, Submission] = field(default_factory=dict)
    """Submissions whose card is in order, whether their code was imported or not."""
    waits: dict[str, str] = field(default_factory=dict)
    """Why the code of an entry is not in play, where more is known than that it is not."""
    problems: list[str] = field(default_factory=list)
    """One sentence for each plugin or offer that was refused."""
    manager: pluggy.PluginManager = field(
        default_factory=lambda: pluggy.PluginManager(PLUGGY_PROJECT)
    )

    @classmethod
    def empty(cls) -> Registry:
        """One that has asked nobody yet."""
        registry = cls()
        registry.manager.add_hookspecs(hookspecs)
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

    def find(self, kind: str, name: str) -> Registration[Any]:
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
        raise BenchError(f"no {kind} named {name!r}{did_you_mean(name, [*table, *waiting])}.")

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
        cards = [card_of(k, o, known.get(n)) for k, table in tables for n, o in table.items()]
        return cards + [
            submission_card(e) for n, e in self.entries.items() if not self._imported(e)
        ]

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

    def _table(self, kind: str) -> dict[str, Registration[Any]]:
        if kind not in KINDS:
            raise BenchError(
                f"no kind of plugin is named {kind!r}{did_you_mean(kind, list(KINDS))}."
            )
        table: dict[str, Registration[Any]] = getattr(self, f"{kind}s")
        return table

    def _imported(self, entry: Submission) -> bool:
        return entry.card.name in self._table(entry.card.kind)

    def _built_in(self) -> Iterator[Plugin]:
        for name in sorted(plugin_modules(plugins)):
            yield from self._loaded(name, built_in, name)

    def _installed(self) -> Iterator[Plugin]:
        for point in sorted(entry_points(group=PLUGGY_PROJECT), key=lambda point: point.name):
            yield from self._loaded(f"entry point {point.name!r}", installed, point)

    def _submitted(self, folder: Path, allow_unsandboxed: bool) -> Iterator[Plugin]:
        for place in sorted(p for p in folder.glob("*") if p.is_dir() and p.name[0] not in "._"):
            try:
                entry = read_submission(place)
            except (BenchError, OSError) as error:
                self.problems.append(str(error))
                continue
            self.entries[entry.card.name] = entry
            if allow_unsandboxed or is_reviewed(entry):
                yield from self._loaded(f"submission {place.name}", submitted, entry)

    def _loaded(self, name: str, load: Callable[[Any], Plugin], what: Any) -> list[Plugin]:
        plugin = self._safely(f"{name} could not be imported", load, what)
        return [] if plugin is None else [plugin]

    def _safely(self, sentence: str, function: Callable[..., Any], *args: Any) -> Any:
        """What the function gives, or None, the sentence and why."""
        try:
            return function(*args)
        except PLUGIN_EXCEPTIONS as error:
            self.problems.append(f"{sentence}: {error_text(error)}.")
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
        wrong = why_no_plugin(plugin.module)
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
            self.problems.append(f"{plugin.name} was refused: {error_text(error)}.")
            return False
        return True

    def _asked(self, plugin: Plugin, hook: str) -> list[Any]:
        """The plugin's own answer, apart from all others: a raise concerns it alone."""
        impls = getattr(self.manager.hook, hook).get_hookimpls()
        own = [impl for impl in impls if impl.plugin is plugin.module]
        answers = [
            self._safely(f"{plugin.name} failed in {hook}", hook_values, impl) for impl in own
        ]
        return [value for given in answers if given for value in given]

    def _take(self, kind: str, value: Any, plugin: Plugin) -> None:
        """Put one offer into its table, or say why not."""
        what = f"{plugin.name}: what it offers as {kind}"
        wrong = self._safely(f"{what} cannot be looked at", why_invalid, kind, value)
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
        if isinstance(value, MissingLibrary):
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
        offer = Registration(value, plugin.origin, plugin.name, plugin.source, folder, plugin.tier)
        if self._safely(f"{what} cannot be listed", card_json, kind, offer):
            table[value.name] = offer
