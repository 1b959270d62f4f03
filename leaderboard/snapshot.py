"""The leaderboards as plain files for any static host: HTML without scripts, reports as JSON."""

from __future__ import annotations

import hashlib
import html
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs

from bench.core.cards import AttackCard, DefenseCard
from bench.core.errors import BenchError
from bench.results import (
    attack_findings,
    attack_report,
    defense_report,
    json_report,
    leaderboard_cells,
    leaderboards,
    matrix,
    published,
    ranking,
    set_unions,
)
from bench.results.disputes import Dispute, disputes_path, load_disputes
from bench.results.example_results import load_results
from bench.results.leaderboards import Leaderboard
from bench.results.published import PublishedFacts
from bench.results.ranking import RankingRow
from bench.store import Store
from bench.store.damage import explained_damage
from bench.store.database import resolve_url
from bench.store.published import address_for_readers, is_published
from leaderboard import (
    attack_tables,
    chart_rows,
    defense_tables,
    grid,
    markup,
    measure_tables,
    origin,
    tables,
    union_tables,
    words,
)
from leaderboard.markup import Html

UNION_ORDERS = {"balanced": "", "file": " in file order"}
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
    url = url or address_for_readers()
    with explained_damage(url), Store.open(url, read_only=True) as store:
        by_label = words.leaderboards_by_label(leaderboards.leaderboards(store))
        if not by_label:
            raise BenchError(
                "the database holds no results yet; `bench run` evaluates the default cells."
            )
        facts = published.published_facts(store) if is_published(resolve_url(url)) else None
        pages = _pages(store, by_label, facts, load_disputes(disputes_path(url)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in pages]


def _pages(
    store: Store,
    by_label: Mapping[str, Leaderboard],
    facts: PublishedFacts | None,
    disputes: Sequence[Dispute],
) -> dict[str, str]:
    cards = {card.name: card for card in store.cards(DefenseCard)}
    rows = {label: ranking.load_ranking(store, board) for label, board in by_label.items()}
    notice, pages = markup.NOTHING, dict[str, str]()
    if facts is not None:
        changed = published.changed_code()
        notice = origin.published_notice(facts, changed)
        rows = {
            label: published.mark_changed(found, changed, by_label[label].required, facts.date)
            for label, found in rows.items()
        }
    for label, leaderboard in by_label.items():
        body = _board(store, label, leaderboard, rows[label], cards, disputes)
        pages[snapshot_file("leaderboard", label)] = _page(label, Html(notice + body))
        if label == words.leaderboard_label(leaderboard):
            found = json_report.json_report(
                store, leaderboard.name, leaderboard.mode, order=leaderboard.example_order
            )
            report = json.dumps(found, indent=1, sort_keys=True)
            pages[snapshot_file("leaderboard", label).replace(".html", ".json")] = report
    for name in sorted({row.defense for found in rows.values() for row in found}):
        body = _defense(store, name, cards[name], by_label, rows)
        pages[snapshot_file("defense", name)] = _page(name, Html(notice + body))
    pages |= _attacks(store, by_label, notice)
    pages |= _unions(store, by_label, notice)
    digest = hashlib.sha256("".join(pages[name] for name in sorted(pages)).encode()).hexdigest()
    index = _index(by_label, rows, digest, store.root(), pages)
    pages["index.html"] = _page(words.PRODUCT, Html(notice + index))
    pages["method.txt"] = (PACKAGE_FOLDER / "method.md").read_text(encoding="utf-8")
    return pages


def _attacks(store: Store, by_label: Mapping[str, Leaderboard], notice: Html) -> dict[str, str]:
    """A page for each attack with a finished cell, with its figures on every leaderboard."""
    parts: dict[str, list[Html]] = {}
    for label, leaderboard in by_label.items():
        results = load_results(store, leaderboard)
        for name in attack_report.attack_names(results):
            found = attack_report.attack_report(results, name)
            card, caption = found.card, markup.tag("p", markup.reason(words.ATTACK_CAPTION))
            head = [markup.heading(card.name, markup.text(card.summary)),
                    _part("Declared", attack_tables.attack_facts(card)), caption]  # fmt: skip
            tiles = attack_tables.attack_tiles(found, leaderboard)
            table = attack_tables.attack_table(found, leaderboard, label)
            part = _part(f"Under {label}", Html(tiles + table))
            parts.setdefault(name, head).append(part)
    return {
        snapshot_file("attack", name): _page(name, Html(notice + markup.join(some)))
        for name, some in parts.items()
    }


def _unions(store: Store, by_label: Mapping[str, Leaderboard], notice: str) -> dict[str, str]:
    """A page for each data set with results in two sets or more, in each order of the examples."""
    pages: dict[str, str] = {}
    for dataset, order in sorted({(one.dataset, one.example_order) for one in by_label.values()}):
        with suppress(BenchError):
            found = set_unions.load_set_union(store, dataset, order)
            title = f"Several perturbation sets on {dataset}" + UNION_ORDERS[order]
            head = markup.heading(title, markup.reason(union_tables.UNION_CAPTION))
            body = Html(notice + head + union_tables.union_score_table(found))
            pages[snapshot_file("sets", f"{dataset}{UNION_ORDERS[order]}")] = _page(title, body)
    return pages


def snapshot_file(kind: str, name: str) -> str:
    """A file name for any text; equal texts get equal names."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower())[:60]
    mark = "" if plain == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{kind}-{plain}{mark}.html"


FILE_LINKS = {"defense": ("defense", "name"), "attack": ("attack", "attack")}
"""Page of the app -> kind of the file, and the parameter that names it; other pages have the
parameter `threat`."""


def _relative(page: str) -> str:
    """HTML with links between pages of the app changed to links between files.

    Cells have no files: their labels stay without a link, and their keys are in the JSON reports.
    """

    def file_link(link: re.Match[str]) -> str:
        query = parse_qs(html.unescape(link[2]))
        kind, key = FILE_LINKS.get(link[1], ("leaderboard", "threat"))
        return f'href="{markup.text(snapshot_file(kind, query[key][0]))}"'

    plain = re.sub(r'<a href="/cell\?[^"]*">(.*?)</a>', r"\1", page)
    return re.sub(r'href="/(\w*)\?([^"]*)"', file_link, plain)


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
    leaderboard: Leaderboard,
    rows: Sequence[RankingRow],
    cards: Mapping[str, DefenseCard],
    disputes: Sequence[Dispute],
) -> Html:
    here = [one for one in disputes if any(one.is_about(r.defense, leaderboard.name) for r in rows)]
    disputed = {one.defense for one in here if not one.answer}
    cells = matrix.load_matrix(store, leaderboard)
    metric = next(iter(chart_rows.cell_metrics(leaderboard).values()))
    tiles = [*chart_rows.margin_tiles(rows), *chart_rows.matrix_tiles(cells, metric)]
    attacks = chart_rows.attack_columns(leaderboard, cells)
    met = chart_rows.evaluated_attacks(attacks, cells)
    names = [row.defense for row in rows]
    warnings = attack_findings.load_attack_warnings(store, leaderboard)
    reasons = [(f"{s.attack} → {s.defense}", s) for s in cells if s.state != "done"]
    return markup.join(
        (
            markup.heading(f"Robust accuracy under {label}", markup.text(leaderboard.summary)),
            tables.mode_note(leaderboard),
            tables.lead(rows, leaderboard, leaderboard_cells.newest_result(store, leaderboard)),
            _part("Ranking", tables.ranking_table(rows, cards, label, disputed)),
            tables.disputes_list(here),
            tables.unranked_list(rows),
            _part(
                "Every attack against every defense",
                grid.matrix_table(tiles, names, [*chart_rows.MARGIN_COLUMNS, *met], 1.0, warnings),
            ),
            markup.tag("p", markup.small(chart_rows.left_out_note(attacks, met))),
            tables.attack_warning_list(warnings),
            tables.state_legend(cells),
            _part("Cells without a result", tables.cells_table(reasons, "Cell", leaderboard)),
            _part("Rules", tables.rules_list(leaderboard)),
        )
    )


def _defense(
    store: Store,
    name: str,
    card: DefenseCard,
    by_label: Mapping[str, Leaderboard],
    rows: Mapping[str, Sequence[RankingRow]],
) -> Html:
    mine = {label: row for label in by_label for row in rows[label] if row.defense == name}
    full = {label: row for label, row in mine.items() if by_label[label].mode == "full"}
    rank = {label: row for label, row in mine.items() if by_label[label].mode == "rank"}
    fast = {label: row for label, row in mine.items() if label not in {**full, **rank}}
    named = {by_label[label].name: row for label, row in reversed((full or rank or fast).items())}
    attacks = {each.name: each for each in store.cards(AttackCard)}
    parts = [
        markup.heading(name, markup.text(card.summary)),
        _part("Identity", defense_tables.identity_list(card)),
        _part("Claims", defense_tables.claims_table(card, named)),
    ]
    for title, part in (("", full), (", in rank mode", rank), (", by the suite fast", fast)):
        if part:
            table = defense_tables.threat_models_table(list(part.items()))
            parts.append(_part(f"All threat models{title}", table))
    for label, row in mine.items():
        found = defense_report.defense_report(store, by_label[label], name)
        parts.append(tables.version_note(row))
        parts.append(
            _part(
                f"Gradient-masking checks under {label}",
                tables.checks_table(row.flags, row.follow_ups),
            )
        )
        classes = store.examples(by_label[label].examples).classes
        measured = measure_tables.measures_part(found, classes)
        parts.append(_part(f"Measures under {label}", measured))
        corruptions = defense_tables.corruptions_by_severity(row.clean, found.cells)
        if corruptions:
            caption = markup.tag("p", markup.reason(words.CORRUPTIONS_CAPTION))
            parts.append(_part(f"Corruptions under {label}", Html(caption + corruptions)))
        if row.rejects is not None:
            detector = defense_tables.detector_table(row, found.cells, attacks)
            parts.append(_part(f"Detector under {label}", detector))
        cells = [(square.attack, square) for square in found.cells]
        parts.append(
            _part(f"Cells under {label}", tables.cells_table(cells, "Attack", by_label[label]))
        )
        for attack, kept in found.images.items():
            title = f"Adversarial examples of {attack} under {label}"
            pictures = defense_tables.example_pictures(kept[:2], classes, found.points.get(attack))
            parts.append(_part(title, pictures))
    return markup.join(parts)


def _index(
    by_label: Mapping[str, Leaderboard],
    rows: Mapping[str, Sequence[RankingRow]],
    digest: str,
    root: str,
    pages: Iterable[str],
) -> Html:
    lines = [
        (
            markup.link("", markup.text(label), threat=label),
            markup.text(words.perturbation_sentence(leaderboard.set)),
            markup.text(words.plural(len(rows[label]), "defense")),
            markup.text(leaderboard.n),
        )
        for label, leaderboard in by_label.items()
    ]
    columns = [
        markup.Column(name) for name in ("Threat model", "Perturbation set", "Evaluated", "n")
    ]
    today = f"Snapshot of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; content sha256 {digest}."
    unions = (
        markup.tag("p", markup.tag("a", markup.text("Several sets in one score"), href=name))
        for name in sorted(pages)
        if name.startswith("sets-")
    )
    method = markup.tag("a", markup.text("How the figures are computed"), href="method.txt")
    return markup.join(
        (
            markup.heading(words.PRODUCT, markup.text(words.MOTTO)),
            _part("Leaderboards", markup.html_table(columns, lines, today)),
            *unions,
            markup.tag("p", method),
            markup.tag("p", markup.small(words.root_sentence(root))),
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
