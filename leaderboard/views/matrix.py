"""Which attack breaks which defense? Every cell with its figure, or with the reason it has none."""

import streamlit as st

from leaderboard import chart_rows, charts, choice, export, grid, markup, reading, tables, words

board = choice.selected_leaderboard()
squares = reading.read_matrix(board)
st.html(
    markup.heading(
        f"Every attack against every defense under {words.leaderboard_label(board)}",
        tables.leaderboard_summary(board, choice.selected_label()),
    )
)
if not squares:
    st.html(markup.notice(words.no_results(board)))
    st.stop()

if said := tables.mode_note(board):
    st.html(said)

left, _ = st.columns([2, 3])
metrics = chart_rows.cell_metrics(board)
metric = choice.select_option(
    "metric", "Figure in each cell", list(metrics), what="figure", place=left
)
rows = reading.read_ranking(board)
defenses = [row.defense for row in rows]
attacks = chart_rows.attack_columns(board, squares)
tiles = chart_rows.matrix_tiles(squares, metrics[metric])
columns = met = chart_rows.evaluated_attacks(attacks, squares)
if metrics[metric].share:
    tiles += chart_rows.margin_tiles(rows)
    columns = [*chart_rows.MARGIN_COLUMNS, *met]
st.caption(f"{metrics[metric].means} {chart_rows.left_out_note(attacks, met)}")
top = chart_rows.colour_limit(metrics[metric], tiles)
table = grid.matrix_table(tiles, defenses, columns, top)
if len(columns) > charts.MAX_CHART_COLUMNS:
    st.html(table)
else:
    # The style sheet shows one of the two: a narrow screen cannot hold the chart.
    drawn = [tile for tile in tiles if tile["attack"] in columns]
    heat = charts.matrix_chart(drawn, defenses, columns, metric, top)
    told = f"{len(defenses)} defenses against {len(met)} attacks: {metric}."
    with st.container(key="wide"):
        st.altair_chart(charts.with_description(heat, told))
    with st.container(key="narrow"):
        st.html(table)
st.html(tables.state_legend(squares))

place = {name: number for number, name in enumerate(defenses)}
ordered = sorted(squares, key=lambda s: (place[s.defense], attacks.index(s.attack)))
with st.expander("The same as a table, with every reason"):
    pairs = [(f"{square.attack} → {square.defense}", square) for square in ordered]
    st.html(tables.cells_table(pairs, "Cell", board))
export.download_buttons(
    f"matrix-{choice.selected_label()}", board, ordered, export.flat_matrix(ordered)
)
