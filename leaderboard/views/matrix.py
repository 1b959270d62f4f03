"""Which attack breaks which defense? Every cell with its figure, or with the reason it has none."""

import streamlit as st

from leaderboard import choice, export, figures, markup, panels, plots, reading, words

board = choice.board()
squares = reading.matrix(board)
st.html(
    markup.heading(
        f"Every attack against every defense under {board.name}", panels.lead(board, choice.label())
    )
)
if not squares:
    st.html(markup.notice(words.no_results(board.name)))
    st.stop()

left, _ = st.columns([2, 3])
metric = choice.pick(
    "metric", "Figure in each cell", list(plots.METRICS), what="figure", place=left
)
rows = reading.ranking(board)
defenses = [row.defense for row in rows]
attacks = plots.strongest_first(squares)
tiles = plots.tiles(squares, metric)
columns = attacks
if metric == plots.ACCURACY:
    tiles += plots.margins(rows)
    columns = [*plots.MARGINS, *attacks]
st.caption(plots.METRICS[metric].means)
heat = figures.heat(tiles, defenses, columns, metric, plots.top(metric, tiles))
told = f"{len(defenses)} defenses against {len(attacks)} attacks: {metric}."
st.altair_chart(figures.described(heat, told))
st.html(panels.legend(squares))

place = {name: number for number, name in enumerate(defenses)}
ordered = sorted(squares, key=lambda s: (place[s.defense], attacks.index(s.attack)))
with st.expander("The same as a table, with every reason"):
    pairs = [(f"{square.attack} → {square.defense}", square) for square in ordered]
    st.html(panels.squares(pairs, "Cell"))
export.buttons(f"matrix-{board.name}", board, ordered, export.matrix(ordered))
