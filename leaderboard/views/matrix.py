"""Which attack breaks which defense? Every cell with its figure, or with the reason it has none."""

import streamlit as st

from leaderboard import choice, export, figures, markup, panels, plots, reading, words

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
columns = attacks
if metrics[metric].share:
    tiles += plots.margins(rows)
    columns = [*plots.MARGINS, *attacks]
st.caption(metrics[metric].means)
heat = figures.heat(tiles, defenses, columns, metric, plots.top(metrics[metric], tiles))
told = f"{len(defenses)} defenses against {len(attacks)} attacks: {metric}."
st.altair_chart(figures.described(heat, told))
st.html(panels.legend(squares))

place = {name: number for number, name in enumerate(defenses)}
ordered = sorted(squares, key=lambda s: (place[s.defense], attacks.index(s.attack)))
with st.expander("The same as a table, with every reason"):
    pairs = [(f"{square.attack} → {square.defense}", square) for square in ordered]
    st.html(panels.squares(pairs, "Cell", board))
export.buttons(f"matrix-{choice.label()}", board, ordered, export.matrix(ordered))
