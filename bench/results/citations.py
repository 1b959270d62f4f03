"""BibTeX entries of the attacks, defenses and data sets of a database, from their cards.

A card holds an identifier (arXiv, DOI or address), and of a submission title and authors. Title,
authors, year and venue of the sources that this project cites are in `bench.results.papers`. A
field that neither holds is left out; reference managers complete an entry from its identifier.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from bench.core.cards import AttackCard, Card, DatasetCard, DefenseCard, ThreatCard
from bench.core.cells import CLEAN, CellState
from bench.core.variant_names import base_name
from bench.results.papers import Paper, known_papers
from bench.results.table_formats import escape_latex
from bench.store import Store

ARXIV = re.compile(r"arXiv:((\d{2})\d{2}\.\d{4,5})(v\d+)?")
DOI = re.compile(r"(?:doi:|https?://(?:dx\.)?doi\.org/)(10\.\d{4,9}/\S+)", re.IGNORECASE)
LONGEST_KEY = 60
KIND_NAMES = {"dataset": "data set"}
"""Kinds of cards with another name in a text."""
VENUE_FIELDS = {
    "article": "journal", "book": "publisher", "inproceedings": "booktitle", "misc": "howpublished",
}  # fmt: skip
"""The field for the venue in each type of entry."""
_URL_SIGNS = "/:?=&+,;@!*()'~.-_%#$[]"
"""Signs of an address that BibTeX reads as they are; others are percent-encoded."""


@dataclass(frozen=True)
class CitedCards:
    """The citations of a database, and the cards that have none."""

    entries: tuple[str, ...]
    """BibTeX entries, by key."""
    without: tuple[str, ...]
    """What has no citation, such as `attack random`."""


def load_citations(store: Store) -> CitedCards:
    """The entries of everything that has a finished cell in a database; each source once."""
    sources: dict[str, list[Card]] = {}
    without: list[str] = []
    for card in used_cards(store):
        if card.cite.strip():
            sources.setdefault(source_of(card.cite), []).append(card)
        else:
            without.append(f"{KIND_NAMES.get(card.kind, card.kind)} {card.name}")
    keyed: dict[str, list[Card]] = {}
    for source, cards in sorted(sources.items()):
        key = citation_key(source)
        keyed[f"{key}-{_mark(source)}" if key in keyed else key] = cards
    entries = tuple(bibtex_entry(key, keyed[key]) for key in sorted(keyed))
    return CitedCards(entries, tuple(without))


def source_of(cite: str) -> str:
    """A citation in one spelling, without the version of an arXiv paper.

    >>> source_of("arXiv:1706.06083v4"), source_of("https://doi.org/10.1109/CVPR.2006.100")
    ('arXiv:1706.06083', 'doi:10.1109/cvpr.2006.100')
    """
    arxiv, doi = ARXIV.fullmatch(cite), DOI.fullmatch(cite)
    if arxiv:
        return f"arXiv:{arxiv[1]}"
    return f"doi:{doi[1].lower()}" if doi else cite.strip()


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def used_cards(store: Store) -> list[Card]:
    """The cards of the attacks, defenses and data sets with a finished cell, by kind and name.

    A variant of an attack is its attack.
    """
    threats = {card.id: card.dataset for card in store.cards(ThreatCard)}
    attacks, defenses, datasets = set[str](), set[str](), set[str]()
    for row in store.cells():
        if row.state == CellState.DONE and row.cell.attack != CLEAN:
            attacks.add(base_name(row.cell.attack))
            defenses.add(row.cell.defense)
            datasets.add(threats.get(row.cell.threat_id, ""))
    chosen: tuple[tuple[type[Card], set[str]], ...] = (
        (AttackCard, attacks), (DefenseCard, defenses), (DatasetCard, datasets),
    )  # fmt: skip
    return [
        card
        for model, names in chosen
        for card in sorted(store.cards(model), key=lambda card: card.name)
        if card.name in names
    ]


def citation_key(cite: str) -> str:
    """The key of a citation: letters, digits, points, colons and hyphens.

    >>> citation_key("arXiv:1706.06083v4"), citation_key("doi:10.1109/CVPR.2006.100")
    ('arxiv:1706.06083', 'doi:10.1109-cvpr.2006.100')
    """
    arxiv, doi = ARXIV.fullmatch(cite), DOI.fullmatch(cite)
    if arxiv:
        return f"arxiv:{arxiv[1]}"
    text = f"doi:{doi[1]}" if doi else re.sub(r"^https?://(www\.)?", "", cite)
    plain = re.sub(r"[^a-z0-9.:-]+", "-", text.lower()).strip("-.:")
    if len(plain) <= LONGEST_KEY and plain:
        return plain
    return f"{plain[:LONGEST_KEY]}-{_mark(cite)}".lstrip("-")


def bibtex_entry(key: str, cards: Iterable[Card]) -> str:
    """The entry of the source that some cards cite."""
    cited = list(cards)
    paper = known_papers().get(source_of(cited[0].cite))
    lines = [f"  {name} = {{{value}}}" for name, value in _fields(cited, paper)]
    return "\n".join([f"@{paper.kind if paper else 'misc'}{{{key},", ",\n".join(lines), "}"])


def _fields(cards: list[Card], paper: Paper | None) -> Iterator[tuple[str, str]]:
    """The fields of an entry, as far as the table of papers or the cards hold them."""
    yield from _described(cards) if paper is None else _published(paper)
    yield from _identifier(cards[0].cite, dated=paper is not None)
    uses = dict.fromkeys(f"{KIND_NAMES.get(card.kind, card.kind)} {card.name}" for card in cards)
    yield "note", _plain(f"Used as {', '.join(uses)}")


def _published(paper: Paper) -> Iterator[tuple[str, str]]:
    """Title, authors, year and venue of a known paper."""
    yield "title", f"{{{_plain(paper.title)}}}"
    yield "author", " and ".join(_plain(name) for name in paper.authors)
    yield "year", str(paper.year)
    if paper.venue:
        yield VENUE_FIELDS[paper.kind], _plain(paper.venue)


def _described(cards: list[Card]) -> Iterator[tuple[str, str]]:
    """Title and authors of the first submissions that state them."""
    described = [card.submission for card in cards if card.submission is not None]
    titles = [_plain(one.title) for one in described if one.title]
    authors = [[_plain(name) for name in one.authors] for one in described if one.authors]
    if titles:
        yield "title", f"{{{titles[0]}}}"
    if authors:
        # Braces keep a name whole that holds a comma or the word and.
        yield "author", " and ".join(f"{{{name}}}" for name in authors[0])


def _identifier(cite: str, *, dated: bool) -> Iterator[tuple[str, str]]:
    """The identifier and address of a source; `dated`: its year is known."""
    arxiv, doi = ARXIV.fullmatch(cite), DOI.fullmatch(cite)
    if arxiv:
        if not dated:
            yield "year", f"20{arxiv[2]}"
        yield "eprint", arxiv[1]
        yield "archiveprefix", "arXiv"
        yield "url", f"https://arxiv.org/abs/{arxiv[1]}"
    elif doi:
        yield "doi", _address(doi[1])
        yield "url", f"https://doi.org/{_address(doi[1])}"
    elif re.match(r"https?://", cite):
        yield "url", _address(cite)
    else:
        yield "howpublished", _plain(cite)


def _plain(text: str) -> str:
    """Text in one line, with the signs of LaTeX escaped; its braces are balanced."""
    words = " ".join(text.split())
    return escape_latex(words).replace(r"\{", r"\lbrace{}").replace(r"\}", r"\rbrace{}")


def _address(text: str) -> str:
    return quote(text, safe=_URL_SIGNS)
