"""The table of papers: one entry for each source that a registered plugin cites."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.registry.registry import Registry
from bench.results.citations import ARXIV, VENUE_FIELDS, source_of
from bench.results.papers import Paper, known_papers
from bench.results.table_formats import LATEX_SIGNS

ROOT = Path(__file__).parents[2]
PAPERS = known_papers()


def test_every_source_that_a_plugin_cites_is_in_the_table() -> None:
    cards = [card for card in Registry.without_submissions().cards() if card.cite]
    assert len(cards) > 80
    missing = {card.name: card.cite for card in cards if source_of(card.cite) not in PAPERS}
    assert not missing, f"add these to bench/results/papers.toml: {missing}"


def test_every_source_of_the_table_is_cited_by_a_plugin() -> None:
    files = [path.read_text() for name in ("plugins", "submissions", "bench/plugin")
             for path in (ROOT / name).rglob("*.py")]  # fmt: skip
    text = "\n".join(files).lower()
    spellings = {source: source.lower().removeprefix("doi:") for source in PAPERS}
    assert [source for source, spelling in spellings.items() if spelling not in text] == []


@pytest.mark.parametrize(("source", "paper"), PAPERS.items(), ids=list(PAPERS))
def test_an_entry_is_whole(source: str, paper: Paper) -> None:
    assert source == source_of(source), "the key is the spelling in which sources are compared"
    assert paper.kind in VENUE_FIELDS
    assert paper.venue or paper.kind == "misc"
    arxiv = ARXIV.fullmatch(source)
    assert not arxiv or paper.year in range(2000 + int(arxiv[2]), 2000 + int(arxiv[2]) + 4)
    assert 1985 < paper.year <= 2026
    assert paper.authors and len(set(paper.authors)) == len(paper.authors)
    for text in (paper.title, paper.venue, *paper.authors):
        assert text == " ".join(text.split()) and not set(text) & set(LATEX_SIGNS), text
    for name in paper.authors:
        assert re.fullmatch(r"[\w.'-]+(,? [\w.'-]+)+", name) and " and " not in name, name


def test_no_title_is_there_twice() -> None:
    titles = [paper.title.lower() for paper in PAPERS.values()]
    assert len(set(titles)) == len(titles)
