"""The leaderboards as plain files for any static host: HTML without scripts, reports as JSON."""

from __future__ import annotations

import hashlib
import html
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs

from bench.core.cards import AttackCard, DefenseCard
from bench.core.errors import BenchError
from bench.results import defense_report, json_report, leaderboards, matrix, ranking
from bench.results.leaderboards import Leaderboard
from bench.results.ranking import RankingRow
from bench.store import Store
from leaderboard import chart_rows, defense_tables, grid, markup, tables, words
from leaderboard.markup import Html

PACKAGE_FOLDER = Path(__file__).parent
SNAPSHOT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SNAPSHOT_STYLE = """
:root { color-scheme: light dark; }
body { background: Canvas; color: CanvasText; margin: 0 auto; max-width: 82rem; padding: 1.5rem;
       font: 16px/1.5 "Source Sans 3", "Segoe UI", Helvetica, Arial, sans-serif; }
h2 { font-size: 1.3rem; margin: 2rem 0 .6rem; }
"""


def write_snapshot(url: str | None, folder: Path) -> list[Path]:
    """Write every page and return the files.

    Raises BenchError where the database cannot be read or is empty.
    """
    with Store.open(url, read_only=True) as store:
        boards = words.leaderboards_by_label(leaderboards.leaderboards(store))
        if not boards:
            raise BenchError(
                "the database holds no results yet; `bench run` evaluates the default cells."
            )
        pages = _pages(store, boards)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in pages]


def _pages(store: Store, boards: Mapping[str, Leaderboard]) -> dict[str, str]:
    cards = {card.name: card for card in store.cards(DefenseCard)}
    rows = {label: ranking.load_ranking(store, board) for label, board in boards.items()}
    pages: dict[str, str] = {}
    for label, board in boards.items():
        body = _board(store, label, board, rows[label], cards)
        pages[snapshot_file("board", label)] = _page(label, body)
        if label == words.leaderboard_label(board):
            found = json_report.json_report(store, board.name, board.mode)
            report = json.dumps(found, indent=1, sort_keys=True)
            pages[snapshot_file("board", label).replace(".html", ".json")] = report
    for name in sorted({row.defense for found in rows.values() for row in found}):
        pages[snapshot_file("defense", name)] = _page(
            name, _defense(store, name, cards[name], boards, rows)
        )
    digest = hashlib.sha256("".join(pages[name] for name in sorted(pages)).encode()).hexdigest()
    pages["index.html"] = _page(words.PRODUCT, _index(boards, rows, digest))
    pages["method.txt"] = (PACKAGE_FOLDER / "method.md").read_text(encoding="utf-8")
    return pages


def snapshot_file(kind: str, name: str) -> str:
    """A file name for any text; equal texts get equal names."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower())[:60]
    mark = "" if plain == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{kind}-{plain}{mark}.html"


def _relative(page: str) -> str:
    """HTML with links between pages of the app changed to links between files."""

    def file_link(link: re.Match[str]) -> str:
        query = parse_qs(html.unescape(link[2]))
        kind, key = ("defense", "name") if link[1] == "defense" else ("board", "threat")
        return f'href="{markup.text(snapshot_file(kind, query[key][0]))}"'

    return re.sub(r'href="/(\w*)\?([^"]*)"', file_link, page)


def _page(title: str, body: Html) -> str:
    style = SNAPSHOT_STYLE + (PACKAGE_FOLDER / "style.css").read_text(encoding="utf-8")
    home = markup.tag("p", markup.tag("a", markup.text("All leaderboards"), href="index.html"))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{SNAPSHOT_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{markup.text(title)}</title><style>{style}</style></head>"
        f"<body>{home}{_relative(body)}</body></html>\n"
    )


def _part(title: str, body: Html) -> Html:
    return Html(markup.tag("h2", markup.text(title)) + body)


def _board(
    store: Store,
    label: str,
    board: Leaderboard,
    rows: Sequence[RankingRow],
    cards: Mapping[str, DefenseCard],
) -> Html:
    cells = matrix.load_matrix(store, board)
    metric = next(iter(chart_rows.cell_metrics(board).values()))
    tiles = [*chart_rows.margin_tiles(rows), *chart_rows.matrix_tiles(cells, metric)]
    attacks = chart_rows.attack_columns(board, cells)
    met = chart_rows.evaluated_attacks(attacks, cells)
    names = [row.defense for row in rows]
    reasons = [(f"{s.attack} → {s.defense}", s) for s in cells if s.state != "done"]
    return markup.join(
        (
            markup.heading(f"Robust accuracy under {label}", markup.text(board.summary)),
            tables.mode_note(board),
            tables.headline_tiles(rows, board),
            _part("Ranking", tables.ranking_table(rows, cards, label)),
            tables.unranked_list(rows),
            _part(
                "Every attack against every defense",
                grid.matrix_table(tiles, names, [*chart_rows.MARGIN_COLUMNS, *met], 1.0),
            ),
            markup.tag("p", markup.small(chart_rows.left_out_note(attacks, met))),
            tables.state_legend(cells),
            _part("Cells without a result", tables.cells_table(reasons, "Cell", board)),
            _part("Rules", tables.rules_list(board)),
        )
    )


def _defense(
    store: Store,
    name: str,
    card: DefenseCard,
    boards: Mapping[str, Leaderboard],
    rows: Mapping[str, Sequence[RankingRow]],
) -> Html:
    mine = {label: row for label in boards for row in rows[label] if row.defense == name}
    whole = {label: row for label, row in mine.items() if boards[label].mode == "full"}
    spared = {label: row for label, row in mine.items() if label not in whole}
    named = {boards[label].name: row for label, row in reversed((whole or spared).items())}
    attacks = {each.name: each for each in store.cards(AttackCard)}
    parts = [
        markup.heading(name, markup.text(card.summary)),
        _part("Identity", defense_tables.identity_list(card)),
        _part("Claims", defense_tables.claims_table(card, named)),
    ]
    for title, part in (("", whole), (", in rank mode", spared)):
        if part:
            table = defense_tables.threat_models_table(list(part.items()))
            parts.append(_part(f"All threat models{title}", table))
    for label, row in mine.items():
        entry = defense_report.defense_report(store, boards[label], name)
        parts.append(
            _part(f"Gradient-masking checks under {label}", tables.checks_table(row.flags))
        )
        if row.rejects is not None:
            told = defense_tables.detector_table(row, entry.cells, attacks)
            parts.append(_part(f"Detector under {label}", told))
        cells = [(square.attack, square) for square in entry.cells]
        parts.append(
            _part(f"Cells under {label}", tables.cells_table(cells, "Attack", boards[label]))
        )
        classes = store.examples(boards[label].examples).classes
        for attack, kept in entry.images.items():
            title = f"Adversarial examples of {attack} under {label}"
            parts.append(_part(title, defense_tables.example_pictures(kept[:2], classes)))
    return markup.join(parts)


def _index(
    boards: Mapping[str, Leaderboard], rows: Mapping[str, Sequence[RankingRow]], digest: str
) -> Html:
    lines = [
        (
            markup.link("", markup.text(label), threat=label),
            markup.text(words.perturbation_sentence(board.set)),
            markup.text(words.plural(len(rows[label]), "defense")),
            markup.text(board.n),
        )
        for label, board in boards.items()
    ]
    columns = [
        markup.Column(name) for name in ("Threat model", "Perturbation set", "Evaluated", "n")
    ]
    today = f"Snapshot of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; content sha256 {digest}."
    method = markup.tag("a", markup.text("How the figures are computed"), href="method.txt")
    return markup.join(
        (
            markup.heading(words.PRODUCT, markup.text(words.MOTTO)),
            _part("Leaderboards", markup.html_table(columns, lines, today)),
            markup.tag("p", method),
        )
    )


def main() -> int:
    """Write a snapshot: `python -m leaderboard.snapshot FOLDER`."""
    try:
        for path in write_snapshot(None, Path(sys.argv[1])):
            print(path)
    except BenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
