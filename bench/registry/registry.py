"""The registry: every registered plugin by kind and name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pluggy

import plugins
from bench.core.cards import AttackCard, Card, DefenseCard
from bench.core.cells import Cell
from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, error_text
from bench.core.folders import submissions_folder
from bench.core.isolation import Isolation
from bench.core.statistics import Count
from bench.core.variant_names import is_variant, split_variant
from bench.plugin import Attack, Certifier, Dataset, Defense, Diagnostic, MissingLibrary
from bench.registry import hookspecs
from bench.registry.cards import attack_card, card_json, card_of, defense_card
from bench.registry.discovery import (
    Plugin,
    hook_values,
    is_reviewed,
    load_built_in,
    load_installed,
    load_submission,
)
from bench.registry.loader import PLUGGY_PROJECT, plugin_modules, why_no_plugin
from bench.registry.registration import Registration
from bench.registry.submission import Submission, did_you_mean, read_submission, submission_card
from bench.registry.threat_variants import threat_variant
from bench.registry.validation import why_invalid
from bench.registry.variants import variant
from bench.threats.threat_model import ThreatModel, without_ranks

NOT_IMPORTED = (
    "its code was not imported; --allow-unsandboxed runs it in this process, with all your rights"
)

HOOK_OF_KIND = {
    "dataset": "bench_datasets",
    "threat": "bench_threat_models",
    "attack": "bench_attacks",
    "defense": "bench_defenses",
    "certifier": "bench_certifiers",
    "diagnostic": "bench_diagnostics",
}
"""Kind -> the hook that returns plugins of that kind, in the order in which hooks are called."""


@dataclass
class Registry:
    """Every registered plugin, by kind and name, sorted by name."""

    datasets: dict[str, Registration[Dataset]] = field(default_factory=dict)
    threats: dict[str, Registration[ThreatModel]] = field(default_factory=dict)
    attacks: dict[str, Registration[Attack]] = field(default_factory=dict)
    defenses: dict[str, Registration[Defense]] = field(default_factory=dict)
    certifiers: dict[str, Registration[Certifier]] = field(default_factory=dict)
    diagnostics: dict[str, Registration[Diagnostic]] = field(default_factory=dict)
    missing_libraries: dict[tuple[str, str], MissingLibrary] = field(default_factory=dict)
    """(kind, name) -> the library without which that plugin is not registered."""
    submissions: dict[str, Submission] = field(default_factory=dict)
    """Submissions with a valid card, whether their code was imported or not."""
    reasons_not_imported: dict[str, str] = field(default_factory=dict)
    """Submission -> why its code was not imported, where there is a special reason."""
    problems: list[str] = field(default_factory=list)
    """One sentence for each plugin, or value of a plugin, that was refused."""
    manager: pluggy.PluginManager = field(
        default_factory=lambda: pluggy.PluginManager(PLUGGY_PROJECT)
    )

    @classmethod
    def empty(cls) -> Registry:
        """A registry without plugins."""
        registry = cls()
        registry.manager.add_hookspecs(hookspecs)
        return registry

    @classmethod
    def load(cls, submissions: Path | None = None, *, allow_unsandboxed: bool = False) -> Registry:
        """Load all plugins: built in, installed, and submitted.

        `submissions` is the folder of submissions (None: $BENCH_SUBMISSIONS, else ./submissions).
        Their code is imported only with `allow_unsandboxed`, or where it ships with the project;
        `Registry.without_submissions` looks into no folder.
        """
        registry = cls.empty()
        found = [*registry._built_in_plugins(), *registry._installed_plugins()]
        found += registry._submitted_plugins(submissions or submissions_folder(), allow_unsandboxed)
        registry.add_plugins(found)
        registry._drop_name_clashes()
        return registry

    @classmethod
    def without_submissions(cls) -> Registry:
        """Load the built-in and the installed plugins only."""
        registry = cls.empty()
        registry.add_plugins([*registry._built_in_plugins(), *registry._installed_plugins()])
        return registry

    def add_plugins(self, found: list[Plugin]) -> None:
        """Register plugins and what their hooks return, kind by kind."""
        accepted = [plugin for plugin in found if self._register_module(plugin)]
        for kind, hook in HOOK_OF_KIND.items():
            for plugin in accepted:
                for value in self._values_of(plugin, hook):
                    self._register_value(kind, value, plugin)
            table = self._table(kind)
            for name in sorted(table):
                table[name] = table.pop(name)

    def find(self, kind: str, name: str) -> Registration[Any]:
        """The registration; raises BenchError if unknown, not imported or without its library.

        An attack or a threat model may be named with parameters, as `pgd[steps=100]` and
        `digits-linf[eps=8/255]`; that variant is registered.
        """
        table = self._table(kind)
        if kind in ("attack", "threat") and is_variant(name) and name not in table:
            found = self._variant(kind, name)
            return table.setdefault(found.value.name, found)
        if name in table:
            return table[name]
        if name in self.submissions and self.submissions[name].card.kind == kind:
            raise BenchError(f"the {kind} {name!r} is a submission: {self.why_not_imported(name)}.")
        if (kind, name) in self.missing_libraries:
            missing = self.missing_libraries[kind, name]
            raise BenchError(
                f"the {kind} {name!r} needs {missing.library}, which is not installed; install the "
                f"extra: uv sync --extra {missing.extra}."
            )
        others = [n for n in self.not_imported() if self.submissions[n].card.kind == kind]
        raise BenchError(f"no {kind} named {name!r}{did_you_mean(name, [*table, *others])}.")

    def _variant(self, kind: str, name: str) -> Registration[Any]:
        base, settings = split_variant(name, kind)
        if kind == "attack":
            return variant(self.find(kind, base), settings)
        return threat_variant(self.find(kind, base), settings, self.threats.values())

    def attack_card(self, name: str) -> AttackCard:
        """The card of the attack of that name."""
        return attack_card(self.find("attack", name))

    def defense_card(self, name: str, digests: Mapping[str, str] | None = None) -> DefenseCard:
        """The card of the defense of that name; `digests`: data set -> digest as built for it."""
        return defense_card(self.find("defense", name), digests)

    def cards(self, digests: Mapping[str, Mapping[str, str]] | None = None) -> list[Card]:
        """All cards, also of submissions that were not imported; `digests` by defense name."""
        known = digests or {}
        tables = ((kind, self._table(kind)) for kind in HOOK_OF_KIND)
        cards = [card_of(k, o, known.get(n)) for k, table in tables for n, o in table.items()]
        return cards + [submission_card(self.submissions[name]) for name in self.not_imported()]

    def notify_cell_judged(self, cell: Cell, robust: Count) -> None:
        """Call every plugin's `bench_cell_judged`; an exception in one does not stop the others."""
        known = {"cell": cell, "robust": robust}
        for impl in self.manager.hook.bench_cell_judged.get_hookimpls():
            sentence = f"{impl.plugin_name} failed in bench_cell_judged"
            self._guarded_call(sentence, impl.function, *(known[name] for name in impl.argnames))

    def not_imported(self) -> list[str]:
        """Submissions whose code was not imported: they are listed, and not evaluated."""
        submissions = self.submissions.items()
        return [name for name, submission in submissions if not self._is_imported(submission)]

    def why_not_imported(self, name: str) -> str:
        """Why the code of a submission was not imported, as the end of a sentence."""
        return self.reasons_not_imported.get(name, NOT_IMPORTED)

    def _table(self, kind: str) -> dict[str, Registration[Any]]:
        if kind not in HOOK_OF_KIND:
            hint = did_you_mean(kind, list(HOOK_OF_KIND))
            raise BenchError(f"no kind of plugin is named {kind!r}{hint}.")
        table: dict[str, Registration[Any]] = getattr(self, f"{kind}s")
        return table

    def _is_imported(self, submission: Submission) -> bool:
        return submission.card.name in self._table(submission.card.kind)

    def _built_in_plugins(self) -> Iterator[Plugin]:
        for name in sorted(plugin_modules(plugins)):
            yield from self._load_one(name, load_built_in, name)

    def _installed_plugins(self) -> Iterator[Plugin]:
        for point in sorted(entry_points(group=PLUGGY_PROJECT), key=lambda point: point.name):
            yield from self._load_one(f"entry point {point.name!r}", load_installed, point)

    def _submitted_plugins(self, folder: Path, allow_unsandboxed: bool) -> Iterator[Plugin]:
        for place in sorted(p for p in folder.glob("*") if p.is_dir() and p.name[0] not in "._"):
            try:
                submission = read_submission(place)
            except (BenchError, OSError) as error:
                self.problems.append(str(error))
                continue
            self.submissions[submission.card.name] = submission
            if allow_unsandboxed or is_reviewed(submission):
                yield from self._load_one(f"submission {place.name}", load_submission, submission)

    def _load_one(self, name: str, load: Callable[[Any], Plugin], what: Any) -> list[Plugin]:
        plugin = self._guarded_call(f"{name} could not be imported", load, what)
        return [] if plugin is None else [plugin]

    def _guarded_call(self, sentence: str, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a plugin's function; None, and one more problem, where it raises."""
        try:
            return function(*args)
        except PLUGIN_EXCEPTIONS as error:
            self.problems.append(f"{sentence}: {error_text(error)}.")
            return None

    def _drop_name_clashes(self) -> None:
        """Remove submissions that were not imported and have the name of another plugin."""
        for name, submission in list(self.submissions.items()):
            other = self._table(submission.card.kind).get(name)
            if other is not None and other.folder != submission.folder:
                del self.submissions[name]
                sentence = _name_clash(
                    submission.card.kind, name, other.module, f"submission {name}"
                )
                self.problems += [sentence] if sentence not in self.problems else []

    def _register_module(self, plugin: Plugin) -> bool:
        """Register a module with pluggy; False, and one more problem, where it is refused."""
        wrong = why_no_plugin(plugin.module)
        if self.manager.has_plugin(plugin.name):
            wrong = "is registered twice; the first one is used"
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

    def _values_of(self, plugin: Plugin, hook: str) -> list[Any]:
        """What one plugin's hook returns; other plugins' hooks are not called."""
        impls = getattr(self.manager.hook, hook).get_hookimpls()
        own = [impl for impl in impls if impl.plugin is plugin.module]
        sentence = f"{plugin.name} failed in {hook}"
        results = [self._guarded_call(sentence, hook_values, impl) for impl in own]
        return [value for values in results if values for value in values]

    def _register_value(self, kind: str, value: Any, plugin: Plugin) -> None:
        """Put one value into its table; where it is refused, add the reason to `problems`."""
        what = f"{plugin.name}: its {kind}"
        wrong = self._guarded_call(f"{what} cannot be checked", why_invalid, kind, value)
        if wrong:
            self.problems.append(f"{what} {wrong}.")
        if wrong is None or wrong:
            return
        own = plugin.submission.card if plugin.submission else None
        if own and (own.kind, own.name) != (kind, value.name):
            self.problems.append(
                f"{plugin.name} registers the {kind} {value.name!r}, but its card names the "
                f"{own.kind} {own.name!r}; a submission registers only what its card names."
            )
            return
        if isinstance(value, MissingLibrary):
            self.missing_libraries[kind, value.name] = value
            return
        if kind == "threat" and plugin.isolation is Isolation.UNSANDBOXED:
            value = without_ranks(value)
        table = self._table(kind)
        if value.name in table:
            first = table[value.name].module
            self.problems.append(_name_clash(kind, value.name, first, plugin.name))
            return
        folder = plugin.submission.folder if plugin.submission else None
        registration = Registration(
            value, plugin.origin, plugin.name, plugin.source, folder, plugin.isolation
        )
        if self._guarded_call(f"{what} cannot be listed", card_json, kind, registration):
            table[value.name] = registration


def _name_clash(kind: str, name: str, first: str, second: str) -> str:
    return (
        f"two plugins register the {kind} {name!r}: {first} and {second}. Rename one; the first "
        "one is used."
    )
