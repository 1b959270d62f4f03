"""Page of the matrix: every attack against every defense under one threat model."""

from collections.abc import Sequence

import streamlit as st

from bench.results.leaderboards import Leaderboard
from bench.results.matrix import MatrixCell
from bench.results.ranking import RankingRow
from leaderboard import (
    chart_rows,
    charts,
    choice,
    export,
    grid,
    markup,
    notices,
    reading,
    tables,
    words,
)


def main() -> None:
    """Show the page."""
    leaderboard, label = choice.selected_leaderboard(), choice.selected_label()
    cells = reading.read_matrix(leaderboard)
    title = f"Attacks against defenses under {words.leaderboard_label(leaderboard)}"
    st.html(markup.heading(title, tables.leaderboard_summary(leaderboard, label)))
    if not cells:
        st.html(markup.notice(notices.no_results(leaderboard)))
        return
    if note := tables.mode_note(leaderboard):
        st.html(note)
    rows = reading.read_ranking(leaderboard)
    attacks = chart_rows.attack_columns(leaderboard, cells)
    show_matrix(leaderboard, cells, rows, attacks)
    st.html(tables.state_legend(cells))
    order = [row.defense for row in rows]
    ordered = sorted(
        cells, key=lambda cell: (order.index(cell.defense), attacks.index(cell.attack))
    )
    with st.expander("The same as a table, with every reason"):
        pairs = [(f"{cell.attack} → {cell.defense}", cell) for cell in ordered]
        st.html(tables.cells_table(pairs, "Cell", leaderboard))
    export.download_buttons(f"matrix-{label}", leaderboard, ordered, export.flat_matrix(ordered))


def show_matrix(
    leaderboard: Leaderboard,
    cells: Sequence[MatrixCell],
    rows: Sequence[RankingRow],
    attacks: Sequence[str],
) -> None:
    """Show the selected figure of every cell, as a chart or with many attacks as a table."""
    left, _ = st.columns([2, 3])
    metrics = chart_rows.cell_metrics(leaderboard)
    name = choice.select_option(
        "metric", "Figure in each cell", list(metrics), what="figure", place=left
    )
    metric, defenses = metrics[name], [row.defense for row in rows]
    tiles = chart_rows.matrix_tiles(cells, metric)
    evaluated = columns = chart_rows.evaluated_attacks(attacks, cells)
    if metric.share:
        tiles += chart_rows.margin_tiles(rows)
        columns = [*chart_rows.MARGIN_COLUMNS, *evaluated]
    st.caption(f"{metric.explanation} {chart_rows.left_out_note(attacks, evaluated)}")
    limit = chart_rows.colour_limit(metric, tiles)
    warnings = reading.read_attack_warnings(leaderboard)
    table = grid.matrix_table(tiles, defenses, columns, limit, warnings)
    if notes := tables.attack_warning_list(warnings):
        st.html(notes)
    if len(columns) > charts.MAX_CHART_COLUMNS:
        st.html(table)
        return
    # The style sheet shows one of the two: a narrow screen has no space for the chart.
    shown = [tile for tile in tiles if tile["attack"] in columns]
    chart = charts.matrix_chart(shown, defenses, columns, name, limit, choice.theme())
    description = f"{len(defenses)} defenses against {len(evaluated)} attacks: {name}."
    with st.container(key="wide"):
        st.altair_chart(charts.with_description(chart, description))
    with st.container(key="narrow"):
        st.html(table)


main()
