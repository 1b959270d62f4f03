"""Submissions that stay behind the walls: what they offer, and the workers that hold them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench.core.errors import BenchError, PluginError
from bench.core.isolation import Isolation
from bench.plugin import Attack, Claim, Defense, Loader, Randomness, hookimpl
from bench.registry.discovery import Plugin
from bench.registry.registry import HOOK_OF_KIND, Registry
from bench.registry.submission import Submission
from bench.sandbox import isolation
from bench.sandbox.attack_proxy import AttackProxy
from bench.sandbox.declarations import AttackDeclarations, DefenseDeclarations
from bench.sandbox.defense_proxy import DefenseProxy
from bench.sandbox.process import SPARE, Consult, Reply, SandboxProcess, printable
from bench.sandbox.protocol import Frame
from bench.training.defense_builder import DefenseBuilder

AT_YOUR_WORD = "--allow-unsandboxed runs it in this process, with all your rights"


def isolate_submissions(
    registry: Registry, wanted: Mapping[str, Collection[str]] | None = None
) -> None:
    """Take in waiting defenses and attacks, their code behind walls; who still waits is told why.

    Args:
        registry: has read the cards.
        wanted: kind -> the names that are needed; None, and a kind that is missing: every one. A
            worker is started for each, so that it can say what it is. The surrogate of a wanted
            defense is wanted, too.
    """
    asked = dict(wanted or {})
    for name in registry.not_imported():
        entry = registry.submissions[name]
        if entry.card.kind in OFFERED and name not in asked.get(entry.card.kind, [name]):
            continue
        registry.reasons_not_imported[name] = isolate_submission(registry, entry)
        if not registry.reasons_not_imported[name]:
            del registry.reasons_not_imported[name]
    known = {
        offer.value.surrogate for offer in registry.defenses.values() if offer.isolation is Isolation.SANDBOXED
    }
    missing = known & set(registry.not_imported()) - set(registry.reasons_not_imported)
    if missing:
        isolate_submissions(registry, {"defense": missing, "attack": []})


def isolate_submission(registry: Registry, entry: Submission) -> str:
    """Lock one entry in; why it could not be, else empty."""
    if entry.card.kind not in OFFERED:
        return f"no {entry.card.kind} is locked in so far; {AT_YOUR_WORD}"
    if isolation.why_unavailable():
        return f"{isolation.why_unavailable()}, or run its code with --allow-unsandboxed"
    before = len(registry.problems)
    try:
        registry.add_plugins([plugin(entry)])
    except BenchError as error:  # of its code, or of a worker that did not start
        return str(error).rstrip(".")
    said = registry.problems[before:]
    del registry.problems[before:]
    return " ".join(said).rstrip(".")


def plugin(entry: Submission) -> Plugin:
    """An entry as a plugin like any other; nothing of its code is here."""
    hook, value = HOOK_OF_KIND[entry.card.kind], OFFERED[entry.card.kind](entry)
    module = ModuleType(f"bench_locked_in_{entry.digest[:16]}")

    def offers() -> list[Any]:
        return [value]

    setattr(module, hook, hookimpl(specname=hook)(offers))
    return Plugin(module, "submission", entry.files["plugin.py"], entry, Isolation.SANDBOXED)


def declared(entry: Submission, cage: SandboxProcess) -> Frame:
    """What it says of itself."""
    return ask(cage, entry, {"do": f"declare {entry.card.kind}"})


def defense(entry: Submission) -> Defense:
    """The record of a defense whose `build` gives a module that asks a worker."""
    cage = SandboxProcess()
    facts = DefenseDeclarations.heard(submission_title(entry), declared(entry, cage))
    cage.close()
    claims = tuple(Claim(**claim.model_dump()) for claim in facts.claims)
    return Defense(
        name=entry.card.name, build=partial(build_isolated, entry, facts, "build"),
        datasets=tuple(facts.datasets), cite=facts.cite, summary=facts.summary, claims=claims,
        bpda=partial(build_isolated, entry, facts, "stand-in") if facts.bpda else None,
        randomness=None if facts.draws is None else Randomness(facts.draws),
        surrogate=facts.surrogate,
        quick=facts.quick, forwards=facts.forwards, rejects=facts.rejects,
    )  # fmt: skip


def attack(entry: Submission) -> Attack:
    """An attack whose start and step are made by a worker."""
    cage = SandboxProcess()
    facts = AttackDeclarations.heard(submission_title(entry), declared(entry, cage))
    cage.close()
    if facts.whole:
        raise PluginError(
            f"{submission_title(entry)} implements `run`, and only attacks with start and step are "
            f"locked in; {AT_YOUR_WORD}."
        )

    def made() -> SandboxProcess:
        cage = SPARE.take()
        declared(entry, cage)
        return cage

    return AttackProxy(entry.card.name, facts, made)


OFFERED: Mapping[str, Callable[[Submission], Any]] = {"defense": defense, "attack": attack}
"""Kind -> what stands here for an entry of it."""


def build_isolated(
    entry: Submission, facts: DefenseDeclarations, role: str, loader: Loader
) -> DefenseProxy:
    """The defense, or its stand-in, in a worker of its own; its weights come from the loader."""
    if not isinstance(loader, DefenseBuilder):
        raise TypeError(f"{type(loader).__name__} lends no weights; a DefenseBuilder was expected")
    words = {"do": "build", "role": role, "shape": list(loader.shape), "classes": loader.classes}

    def made() -> SandboxProcess:
        cage = SPARE.take()
        ask(cage, entry, words, serve=WeightsServer(loader, facts))
        return cage

    return DefenseProxy(submission_title(entry), made, facts.forwards)


def submission_title(entry: Submission) -> str:
    """What sentences call it."""
    return f"submission {entry.card.name}"


def ask(cage: SandboxProcess, entry: Submission, words: Mapping[str, Any], **options: Any) -> Frame:
    """A question that carries the entry's source, from exactly the bytes whose digest was read."""
    card, source = entry.card, entry.content("plugin.py")
    about = {
        "kind": card.kind, "name": card.name, "path": str(entry.folder / "plugin.py"),
        "threads": torch.get_num_threads(),  # as here, or sums come out otherwise
    }  # fmt: skip
    seconds = cage.limits.build
    return cage.ask(submission_title(entry), {**words, **about}, source, seconds=seconds, **options)


class WeightsServer:
    """Gives a build the weights that it asks for, and notes them as parts of the defense."""

    def __init__(self, loader: DefenseBuilder, facts: DefenseDeclarations) -> None:
        self.learns = facts.recipe
        self.loaders: dict[tuple[str, ...], DefenseBuilder] = {(loader.name,): loader}

    def __call__(self, frame: Frame, consult: Consult) -> Reply:
        """The answer to one wish."""
        words = frame.words
        loader = self._loader(words.get("of"))
        match words.get("ask"):
            case "trained":
                content, path = self._trained(loader)
            case "weights":
                file, sha256 = str(words.get("file")), str(words.get("sha256"))
                content, path = loader.file_content(file, sha256)
            case "defense":
                return {"module": self._build(loader, str(words.get("name")))}, []
            case other:
                raise PluginError(f"{loader.name} asked the loader for {printable(other)}.")
        return {"path": str(path)}, [content]

    def _loader(self, chain: object) -> DefenseBuilder:
        known = tuple(chain) if isinstance(chain, list) else ()
        if not all(isinstance(name, str) for name in known) or known not in self.loaders:
            raise PluginError(f"{printable(chain)} builds nothing here.")
        return self.loaders[known]

    def _trained(self, loader: DefenseBuilder) -> tuple[bytes, Path]:
        if self.learns and len(loader.chain) == 1:
            raise PluginError(
                f"{loader.name} is to be trained by its own recipe, which the sandbox does not "
                f"do; put the file that `bench train {loader.name} --allow-unsandboxed` makes "
                "beside it as weights.safetensors."
            )
        return loader.trained_content()

    def _build(self, loader: DefenseBuilder, name: str) -> str:
        """Build it here, too: that knows its digest, and what must be trained first; its module."""
        offer = loader.registry.find("defense", name)
        if offer.origin != "built-in":
            raise PluginError(
                f"{loader.name} builds on {name}, which is no built-in defense; behind the sandbox "
                "there are no others."
            )
        loader.defense(name)
        self.loaders[(*loader.chain, name)] = DefenseBuilder(
            loader.registry, name, loader.dataset, loader.folder, below=loader.chain
        )
        return offer.module
