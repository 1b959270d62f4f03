"""Leaderboards with outcomes made by hand."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from bench.core.cards import AttackCard
from bench.core.hashing import digest
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard
from bench.results.masking_checks import MaskingCheck
from bench.results.matrix import MatrixCell, load_matrix
from bench.results.ranking import RankingRow, load_ranking
from bench.results.text_report import text_report
from bench.store import CertificateRow, Store
from tests.fixtures.small_store import Bits, World, first

ALL = first(600)
NONE = first(0)


@contextmanager
def small(empty: Path, n: int) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(empty, f"{folder}/bench.db")
        with Store.open(f"sqlite:///{copy}") as opened:
            made = World(opened, n=n)
            made.threat("linf", "a0")
            yield made


def enter(world: World, name: str, right: Bits, *broken: Bits) -> None:
    """A defense with its clean pass, and what fgsm and pgd broke."""
    world.defense(name)
    world.clean(name, right)
    for attack, bits in zip(("fgsm", "pgd"), broken, strict=False):
        world.evaluate(name, attack, bits)


def ranking_of(store: Store, threat: str | None = None, mode: str = "full") -> list[RankingRow]:
    """The ranking of the first leaderboard, or of a threat model's."""
    return load_ranking(store, find_leaderboard(store, threat, mode))


def matrix_of(store: Store, threat: str | None = None, mode: str = "full") -> list[MatrixCell]:
    """The matrix of the first leaderboard, or of a threat model's."""
    return load_matrix(store, find_leaderboard(store, threat, mode))


def rows_of(world: World, threat: str = "linf") -> dict[str, RankingRow]:
    return {row.defense: row for row in ranking_of(world.store, threat)}


def flag_of(world: World, name: str, defense: str = "d", threat: str = "linf") -> MaskingCheck:
    return {flag.name: flag for flag in rows_of(world, threat)[defense].flags}[name]


def certify(world: World, bits: Bits, certifier: str = "linear", *, exact: bool = True) -> None:
    """Record a certificate for defense `d`; a certifier without a card gets one."""
    if ("certifier", certifier) not in world.digests:
        world.certifier(certifier)
    whose = ("d", world.digests["defense", "d"], certifier, world.digests["certifier", certifier])
    found = CertificateRow(*whose, exact, bits)
    world.store.record_certificate(world.threats["linf"], world.examples, found)


FIVE = ("a1", "a2", "a3", "a4", "a5")
"""The attacks that the threat model of the fixture `five` requires."""


def complete(world: World, defense: str, broken: Bits, *, attacks: tuple[str, ...] = FIVE) -> None:
    """A defense with its clean pass, of which each attack breaks the same examples."""
    world.defense(defense)
    world.clean(defense, ALL)
    for name in attacks:
        world.evaluate(defense, name, broken)


def change_all(world: World, version: str) -> None:
    """Change the files of all five attacks between two runs."""
    cards = {card.name: card for card in world.store.cards(AttackCard)}
    for name in FIVE:
        world.digests["attack", name] = digest(f"{name} {version}")
        new = {"digest": world.digests["attack", name]}
        cards[name] = cards[name].model_copy(update=new)
    world.store.record_cards(cards.values())


def sentences(row: RankingRow) -> str:
    """What a row states about its versions."""
    return " ".join(row.versions.sentences) if row.versions else ""


def shown_text(world: World, mode: str = "full") -> str:
    """The text report."""
    console = Console(width=200, file=io.StringIO())
    console.print(text_report(json_report(world.store, mode=mode)))
    return str(console.file.getvalue())  # type: ignore[attr-defined]
