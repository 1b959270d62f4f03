"""BibTeX of what a database used: valid keys, escaped fields, each source once.

The command is that of bench.cli.cite_commands.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.cli import HELP_PANELS, app
from bench.core.cards import AttackCard, DatasetCard, DefenseCard, SubmissionInfo
from bench.core.cells import CellState
from bench.registry.registry import Registry
from bench.results.citations import bibtex_entry, citation_key, load_citations
from bench.results.table_formats import LATEX_SIGNS
from tests.fixtures.small_store import World
from tests.results.small_results import ALL, NONE

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9:.-]*")


TYPES = {"article", "book", "inproceedings", "misc"}


def parsed(text: str) -> dict[str, dict[str, str]]:
    """Entries by key, read as BibTeX reads them; fails where they cannot be."""
    entries: dict[str, dict[str, str]] = {}
    at = 0
    while (at := text.find("@", at)) >= 0:
        head = re.compile(r"@(\w+)\{([^,\s]+),\s*").match(text, at)
        assert head, text[at : at + 40]
        key, at = head[2], head.end()
        assert head[1] in TYPES, head[1]
        assert KEY.fullmatch(key) and key not in entries, key
        fields: dict[str, str] = {}
        while text[at] != "}":
            name = re.compile(r"(\w+) = \{").match(text, at)
            assert name, text[at : at + 40]
            start = at = name.end()
            depth = 1
            while depth:
                # BibTeX counts braces whether or not a backslash stands before them.
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            fields[name[1]] = text[start : at - 1]
            rest = re.compile(r",?\s*").match(text, at)
            at = rest.end() if rest else at
        entries[key] = fields
        at += 1
    return entries


@pytest.fixture
def cited(world: World) -> World:
    """Cards with an arXiv id, a DOI, addresses, title and authors, and none."""
    cards = [
        ("fgsm", "arXiv:1412.6572"), ("pgd", "arXiv:1706.06083v4"), ("bim", ""),
        ("pgd[steps=5]", "arXiv:1706.06083v4"), ("idle", "arXiv:2003.01690"),
    ]  # fmt: skip
    for name, cite in cards:
        world.attack(name, cite=cite)
    about = SubmissionInfo(title="A 100% {robust} net_work", authors=("A. B", "Lee, C and D & E"))
    world.defense("d", cite="arXiv:1706.06083")
    world.defense("e", cite="doi:10.1109/A.2006.100", submission=about)
    world.defense("f", cite="https://openreview.net/forum?id=S18Su--CW")
    world.defense("g", cite="https://openreview.net/forum?id=s18su--cw")
    world.store.record_cards([DatasetCard(name="digits", origin="built-in", cite="https://a.b/80")])
    for defense in "defg":
        world.clean(defense, ALL)
        for attack in ("fgsm", "pgd", "bim", "pgd[steps=5]"):
            world.evaluate(defense, attack, NONE)
    world.plan(world.cell("d", "idle"), CellState.MISSING)
    return world


def test_the_entries_of_a_database_are_read_back(cited: World) -> None:
    found = load_citations(cited.store)
    entries = parsed("\n".join(found.entries))
    assert entries["arxiv:1706.06083"] == {
        "title": "{Towards Deep Learning Models Resistant to Adversarial Attacks}",
        "author": "Aleksander Madry and Aleksandar Makelov and Ludwig Schmidt and "
        "Dimitris Tsipras and Adrian Vladu",
        "year": "2018", "booktitle": "International Conference on Learning Representations",
        "eprint": "1706.06083", "archiveprefix": "arXiv",
        "url": "https://arxiv.org/abs/1706.06083", "note": "Used as attack pgd, defense d",
    }  # fmt: skip
    assert entries["doi:10.1109-a.2006.100"] == {
        "title": r"{A 100\% \lbrace{}robust\rbrace{} net\_work}",
        "author": r"{A. B} and {Lee, C and D \& E}",
        "doi": "10.1109/A.2006.100",
        "url": "https://doi.org/10.1109/A.2006.100",
        "note": "Used as defense e",
    }
    assert entries["a.b-80"] == {"url": "https://a.b/80", "note": "Used as data set digits"}
    assert found.without == ("attack bim",)
    assert len(entries) == 6 and not any("2003.01690" in key for key in entries), "idle has no cell"
    urls = {fields["url"] for key, fields in entries.items() if key.startswith("openreview")}
    assert urls == {f"https://openreview.net/forum?id={one}" for one in ("S18Su--CW", "s18su--cw")}


def test_the_command_prints_entries_and_says_what_has_none(cited: World) -> None:
    done = CliRunner().invoke(app, ["cite", "--db", cited.store.url])
    assert done.exit_code == 0, done.output
    assert len(parsed(done.stdout)) == 6
    assert done.stderr == "without a citation: attack bim\n"


def test_every_card_of_this_project_has_a_valid_entry() -> None:
    cards = [card for card in Registry.without_submissions().cards() if card.cite]
    text = "\n".join(
        bibtex_entry(citation_key(card.cite) + f":{i}", [card]) for i, card in enumerate(cards)
    )
    entries = parsed(text)
    assert len(entries) == len(cards) > 80
    for key, fields in entries.items():
        assert fields["note"] and (fields.get("url") or fields.get("doi")), key
        assert fields["title"] and fields["author"] and len(fields["year"]) == 4, key


@given(st.text(min_size=1), st.text(min_size=1), st.lists(st.text(min_size=1), max_size=3))
def test_any_text_gives_an_entry(cite: str, title: str, authors: list[str]) -> None:
    info = SubmissionInfo(title=title, authors=tuple(authors))
    card = DefenseCard(name="d", origin="submission", cite=cite, submission=info)
    key = citation_key(cite)
    (fields,) = parsed(bibtex_entry(key, [card])).values()
    signs = "".join(sign for sign in LATEX_SIGNS if sign not in "{}\\")
    for text in (fields.get("title", ""), fields["note"]):
        assert not re.search(rf"(?<!\\)[{re.escape(signs)}]", text), "each sign is escaped"


def test_a_submission_of_a_known_paper_has_the_title_of_the_paper() -> None:
    info = SubmissionInfo(title="My version", authors=("A. Reader",))
    card = DefenseCard(name="d", origin="submission", cite="arXiv:1901.08573v3", submission=info)
    (fields,) = parsed(bibtex_entry("k", [card])).values()
    assert "Trade-off" in fields["title"] and "El Ghaoui, Laurent" in fields["author"]
    assert fields["note"] == "Used as defense d"
    unknown = card.model_copy(update={"cite": "arXiv:2412.00001"})
    (fields,) = parsed(bibtex_entry("k", [unknown])).values()
    assert fields["title"] == "{My version}" and fields["year"] == "2024"


def test_spellings_of_one_source_have_one_key() -> None:
    assert citation_key("arXiv:1706.06083") == citation_key("arXiv:1706.06083v2")
    assert citation_key("doi:10.1145/3065386") == citation_key("https://doi.org/10.1145/3065386")
    long = "https://example.org/" + "a" * 90
    assert len(citation_key(long)) < 80 and citation_key(long) != citation_key(long + "b")
    attack = AttackCard(name="a_b", origin="built-in", cite="arXiv:1412.6572")
    assert r"Used as attack a\_b" in bibtex_entry("k", [attack])


def test_every_command_has_a_panel_of_the_help() -> None:
    done = CliRunner().invoke(app, ["--help"])
    listed = [name for names in HELP_PANELS.values() for name in names]
    shown = re.findall(r"^│ ([a-z][a-z-]*) ", done.stdout, re.MULTILINE)
    assert shown == listed
    assert re.findall(r"^╭─ (\w+) ─", done.stdout, re.MULTILINE) == ["Options", *HELP_PANELS]
