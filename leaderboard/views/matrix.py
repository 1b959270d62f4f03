"""Which attack breaks which defense? Every cell with its figure, or with the reason it has none."""

import streamlit as st

from leaderboard import choice, export, figures, grid, markup, panels, plots, reading, words

board = choice.board()
squares = reading.matrix(board)
st.html(
    markup.heading(
        f"Every attack against every defense under {words.label(board)}",
        panels.lead(board, choice.label()),
    )
)
if not squares:
    st.html(markup.notice(words.no_results(board)))
    st.stop()

if said := panels.mode(board):
    st.html(said)

left, _ = st.columns([2, 3])
metrics = plots.metrics(board)
metric = choice.pick("metric", "Figure in each cell", list(metrics), what="figure", place=left)
rows = reading.ranking(board)
defenses = [row.defense for row in rows]
attacks = plots.columns(board, squares)
tiles = plots.tiles(squares, metrics[metric])
columns = met = plots.met(attacks, squares)
if metrics[metric].share:
    tiles += plots.margins(rows)
    columns = [*plots.MARGINS, *met]
st.caption(f"{metrics[metric].means} {plots.left_out(attacks, met)}")
top = plots.top(metrics[metric], tiles)
table = grid.table(tiles, defenses, columns, top)
if len(columns) > figures.WIDEST:
    st.html(table)
else:
    # The style sheet shows one of the two: a narrow screen cannot hold the chart.
    drawn = [tile for tile in tiles if tile["attack"] in columns]
    heat = figures.heat(drawn, defenses, columns, metric, top)
    told = f"{len(defenses)} defenses against {len(met)} attacks: {metric}."
    with st.container(key="wide"):
        st.altair_chart(figures.described(heat, told))
    with st.container(key="narrow"):
        st.html(table)
st.html(panels.legend(squares))

place = {name: number for number, name in enumerate(defenses)}
ordered = sorted(squares, key=lambda s: (place[s.defense], attacks.index(s.attack)))
with st.expander("The same as a table, with every reason"):
    pairs = [(f"{square.attack} → {square.defense}", square) for square in ordered]
    st.html(panels.squares(pairs, "Cell", board))
export.buttons(f"matrix-{choice.label()}", board, ordered, export.matrix(ordered))
