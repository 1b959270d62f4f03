"""Submissions that stay behind the walls: what they offer, and the workers that hold them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench.entry import Entry
from bench.plugin import Attack, Claim, Defense, Randomness, Shelf, hookimpl
from bench.records import BenchError, PluginError
from bench.registry import KINDS, SANDBOXED, Plugin, Registry
from bench.sandbox import jail
from bench.sandbox.attack import LockedAttack
from bench.sandbox.cage import SPARE, Cage, Consult, Reply, plain
from bench.sandbox.facts import AttackFacts, DefenseFacts
from bench.sandbox.remote import Remote
from bench.sandbox.wire import Frame
from bench.shelf import DefenseShelf

AT_YOUR_WORD = "--allow-unsandboxed runs it in this process, with all your rights"


def lock_in(registry: Registry, wanted: Mapping[str, Collection[str]] | None = None) -> None:
    """Take in waiting defenses and attacks, their code behind walls; who still waits is told why.

    Args:
        registry: has read the cards.
        wanted: kind -> the names that are needed; None, and a kind that is missing: every one. A
            worker is started for each, so that it can say what it is. The twin of a wanted
            defense is wanted, too.
    """
    asked = dict(wanted or {})
    for name in registry.waiting():
        entry = registry.entries[name]
        if entry.card.kind in OFFERED and name not in asked.get(entry.card.kind, [name]):
            continue
        registry.waits[name] = why_not(registry, entry)
        if not registry.waits[name]:
            del registry.waits[name]
    known = {offer.value.twin for offer in registry.defenses.values() if offer.tier == SANDBOXED}
    missing = known & set(registry.waiting()) - set(registry.waits)
    if missing:
        lock_in(registry, {"defense": missing, "attack": []})


def why_not(registry: Registry, entry: Entry) -> str:
    """Lock one entry in; why it could not be, else empty."""
    if entry.card.kind not in OFFERED:
        return f"no {entry.card.kind} is locked in so far; {AT_YOUR_WORD}"
    if jail.refusal():
        return f"{jail.refusal()}, or run its code with --allow-unsandboxed"
    before = len(registry.problems)
    try:
        registry.admit([plugin(entry)])
    except BenchError as error:  # of its code, or of a worker that did not start
        return str(error).rstrip(".")
    said = registry.problems[before:]
    del registry.problems[before:]
    return " ".join(said).rstrip(".")


def plugin(entry: Entry) -> Plugin:
    """An entry as a plugin like any other; nothing of its code is here."""
    hook, value = KINDS[entry.card.kind], OFFERED[entry.card.kind](entry)
    module = ModuleType(f"bench_locked_in_{entry.digest[:16]}")

    def offers() -> list[Any]:
        return [value]

    setattr(module, hook, hookimpl(specname=hook)(offers))
    return Plugin(module, "submission", entry.files["plugin.py"], entry, SANDBOXED)


def declared(entry: Entry, cage: Cage) -> Frame:
    """What it says of itself."""
    return ask(cage, entry, {"do": f"declare {entry.card.kind}"})


def defense(entry: Entry) -> Defense:
    """The record of a defense whose `build` gives a module that asks a worker."""
    cage = Cage()
    facts = DefenseFacts.heard(called(entry), declared(entry, cage))
    cage.close()
    claims = tuple(Claim(**claim.model_dump()) for claim in facts.claims)
    return Defense(
        name=entry.card.name, build=partial(built, entry, facts, "build"),
        datasets=tuple(facts.datasets), cite=facts.cite, summary=facts.summary, claims=claims,
        stand_in=partial(built, entry, facts, "stand-in") if facts.stand_in else None,
        randomness=None if facts.draws is None else Randomness(facts.draws),
        twin=facts.twin, quick=facts.quick, forwards=facts.forwards, rejects=facts.rejects,
        detail=facts.detail,
    )  # fmt: skip


def attack(entry: Entry) -> Attack:
    """An attack whose start and step are made by a worker."""
    cage = Cage()
    facts = AttackFacts.heard(called(entry), declared(entry, cage))
    cage.close()
    if facts.whole:
        raise PluginError(
            f"{called(entry)} has a run of its own, and only attacks with start and step are "
            f"locked in; {AT_YOUR_WORD}."
        )

    def made() -> Cage:
        cage = SPARE.take()
        declared(entry, cage)
        return cage

    return LockedAttack(entry.card.name, facts, made)


OFFERED: Mapping[str, Callable[[Entry], Any]] = {"defense": defense, "attack": attack}
"""Kind -> what stands here for an entry of it."""


def built(entry: Entry, facts: DefenseFacts, role: str, shelf: Shelf) -> Remote:
    """The defense, or its stand-in, in a worker of its own; its weights come from the shelf."""
    if not isinstance(shelf, DefenseShelf):
        raise TypeError(f"{type(shelf).__name__} lends no weights; a DefenseShelf was expected")
    words = {"do": "build", "role": role, "shape": list(shelf.shape), "classes": shelf.classes}

    def made() -> Cage:
        cage = SPARE.take()
        ask(cage, entry, words, serve=Lender(shelf, facts))
        return cage

    return Remote(called(entry), made, facts.forwards)


def called(entry: Entry) -> str:
    """What sentences call it."""
    return f"submission {entry.card.name}"


def ask(cage: Cage, entry: Entry, words: Mapping[str, Any], **options: Any) -> Frame:
    """A question that carries the entry's source, from exactly the bytes whose digest was read."""
    card, source = entry.card, entry.content("plugin.py")
    about = {
        "kind": card.kind, "name": card.name, "path": str(entry.folder / "plugin.py"),
        "threads": torch.get_num_threads(),  # as here, or sums come out otherwise
    }  # fmt: skip
    seconds = cage.limits.build
    return cage.ask(called(entry), {**words, **about}, source, seconds=seconds, **options)


class Lender:
    """Gives a build the weights that it asks for, and notes them as parts of the defense."""

    def __init__(self, shelf: DefenseShelf, facts: DefenseFacts) -> None:
        self.learns = facts.recipe
        self.shelves: dict[tuple[str, ...], DefenseShelf] = {(shelf.name,): shelf}

    def __call__(self, frame: Frame, consult: Consult) -> Reply:
        """The answer to one wish."""
        words = frame.words
        shelf = self._shelf(words.get("of"))
        match words.get("ask"):
            case "trained":
                content, path = self._trained(shelf)
            case "filled":
                file, sha256 = str(words.get("file")), str(words.get("sha256"))
                content, path = shelf.file_content(file, sha256)
            case "built":
                return {"module": self._build(shelf, str(words.get("name")))}, []
            case other:
                raise PluginError(f"{shelf.name} asked the shelf for {plain(other)}.")
        return {"path": str(path)}, [content]

    def _shelf(self, chain: object) -> DefenseShelf:
        known = tuple(chain) if isinstance(chain, list) else ()
        if not all(isinstance(name, str) for name in known) or known not in self.shelves:
            raise PluginError(f"{plain(chain)} builds nothing here.")
        return self.shelves[known]

    def _trained(self, shelf: DefenseShelf) -> tuple[bytes, Path]:
        if self.learns and len(shelf.chain) == 1:
            raise PluginError(
                f"{shelf.name} is to be trained by a recipe of its own, which the sandbox does not "
                f"do; put the file that `bench train {shelf.name} --allow-unsandboxed` makes "
                "beside it as weights.safetensors."
            )
        return shelf.trained_content()

    def _build(self, shelf: DefenseShelf, name: str) -> str:
        """Build it here, too: that knows its digest, and what must be trained first; its module."""
        offer = shelf.registry.find("defense", name)
        if offer.origin != "built-in":
            raise PluginError(
                f"{shelf.name} builds on {name}, which is no built-in defense; behind the sandbox "
                "there are no others."
            )
        shelf.built(name)
        self.shelves[(*shelf.chain, name)] = DefenseShelf(
            shelf.registry, name, shelf.dataset, shelf.folder, below=shelf.chain
        )
        return offer.module
