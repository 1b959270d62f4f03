"""Submitted defenses that stay behind the walls: what they say of themselves, and their builds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.entry import Entry
from bench.plugin import Claim, Defense, Randomness, Shelf, hookimpl
from bench.records import BenchError, PluginError
from bench.registry import SANDBOXED, Plugin, Registry
from bench.sandbox import jail
from bench.sandbox.cage import SPARE, Cage, plain
from bench.sandbox.remote import Remote
from bench.sandbox.wire import Frame
from bench.shelf import DefenseShelf

ONLY_DEFENSES = (
    "only defenses are locked in so far; --allow-unsandboxed runs it in this process, with all "
    "your rights"
)


class Facts(BaseModel):
    """What a defense says of itself, as it comes from behind the wall."""

    model_config = ConfigDict(extra="forbid", strict=True)

    class Word(BaseModel):
        """A claim."""

        model_config = ConfigDict(extra="forbid", strict=True)
        threat: str
        robust: float
        cite: str

    cite: str = Field(max_length=200)
    summary: str = Field(max_length=4000)
    datasets: list[str]
    twin: str
    quick: bool
    forwards: int = Field(ge=1, le=10**6)
    rejects: float | None
    claims: list[Word]
    detail: dict[str, Any]
    draws: int | None = Field(ge=1, le=1000)
    stand_in: bool
    recipe: bool


def lock_in(registry: Registry) -> None:
    """Take in every waiting defense, its code behind the walls; who still waits is told why."""
    for name in registry.waiting():
        entry = registry.entries[name]
        if entry.card.kind != "defense":
            registry.waits[name] = ONLY_DEFENSES
        elif jail.refusal():
            registry.waits[name] = f"{jail.refusal()}, or run its code with --allow-unsandboxed"
        else:
            try:
                registry.admit([plugin(entry)])
            except BenchError as error:
                registry.waits[name] = str(error).rstrip(".")


def plugin(entry: Entry) -> Plugin:
    """An entry as a plugin like any other; nothing of its code is here."""
    defense = declared(entry)
    module = ModuleType(f"bench_locked_in_{entry.digest[:16]}")

    def bench_defenses() -> list[Defense]:
        return [defense]

    bench_defenses.__module__ = module.__name__
    module.bench_defenses = hookimpl(bench_defenses)  # type: ignore[attr-defined]
    return Plugin(module, "submission", entry.files["plugin.py"], entry, SANDBOXED)


def declared(entry: Entry) -> Defense:
    """The record of a defense whose `build` gives a module that asks a worker."""
    who, cage = f"submission {entry.card.name}", Cage()
    frame = ask(cage, entry, {"do": "declare"}, largest=0)
    cage.close()
    try:
        facts = Facts.model_validate(frame.words.get("facts"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise PluginError(
            f"{who} says of itself what no defense says: {field}: {plain(first['msg'])}."
        ) from error
    claims = tuple(Claim(**claim.model_dump()) for claim in facts.claims)
    return Defense(
        name=entry.card.name, build=partial(built, entry, facts, "build"),
        datasets=tuple(facts.datasets), cite=facts.cite, summary=facts.summary, claims=claims,
        stand_in=partial(built, entry, facts, "stand-in") if facts.stand_in else None,
        randomness=None if facts.draws is None else Randomness(facts.draws),
        twin=facts.twin, quick=facts.quick, forwards=facts.forwards, rejects=facts.rejects,
        detail=facts.detail,
    )  # fmt: skip


def built(entry: Entry, facts: Facts, role: str, shelf: Shelf) -> Remote:
    """The defense, or its stand-in, in a worker of its own; its weights come from the shelf."""
    if not isinstance(shelf, DefenseShelf):
        raise TypeError(f"{type(shelf).__name__} lends no weights; a DefenseShelf was expected")
    words = {
        "do": "build", "role": role, "shape": list(shelf.shape), "classes": shelf.classes,
        "threads": torch.get_num_threads(),
    }  # fmt: skip

    def made() -> Cage:
        cage = SPARE.take()
        ask(cage, entry, words, serve=Lender(shelf, facts))
        return cage

    return Remote(f"submission {entry.card.name}", made, facts.forwards)


def ask(cage: Cage, entry: Entry, words: Mapping[str, Any], **options: Any) -> Frame:
    """A question that carries the entry's source, from exactly the bytes whose digest was read."""
    about = {"name": entry.card.name, "path": str(entry.folder / "plugin.py")}
    who, seconds = f"submission {entry.card.name}", cage.limits.build
    return cage.ask(who, {**words, **about}, entry.content("plugin.py"), seconds=seconds, **options)


class Lender:
    """Gives a build the weights that it asks for, and notes them as parts of the defense."""

    def __init__(self, shelf: DefenseShelf, facts: Facts) -> None:
        self.learns = facts.recipe
        self.shelves: dict[tuple[str, ...], DefenseShelf] = {(shelf.name,): shelf}

    def __call__(self, frame: Frame) -> tuple[Mapping[str, Any], bytes]:
        """(words, bytes) of the answer to one wish."""
        words = frame.words
        shelf = self._shelf(words.get("of"))
        match words.get("ask"):
            case "trained":
                content, path = self._trained(shelf)
            case "filled":
                file, sha256 = str(words.get("file")), str(words.get("sha256"))
                content, path = shelf.file_content(file, sha256)
            case "built":
                return {"module": self._build(shelf, str(words.get("name")))}, b""
            case other:
                raise PluginError(f"{shelf.name} asked the shelf for {plain(other)}.")
        return {"path": str(path)}, content

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
