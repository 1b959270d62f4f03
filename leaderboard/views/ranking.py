"""Which defenses hold under this threat model, and how far can these examples tell?"""

import streamlit as st

from bench.core.cards import DefenseCard
from leaderboard import choice, export, figures, markup, panels, plots, reading, words

board = choice.board()
rows = reading.ranking(board)
st.html(
    markup.heading(
        f"Which defenses hold under {words.label(board)}?", panels.lead(board, choice.label())
    )
)
if not rows:
    st.html(markup.notice(words.no_results(board)))
    st.stop()
if said := panels.mode(board):
    st.html(said)
st.html(panels.headline(rows, board))

filter_at, said_at = st.columns([2, 3], vertical_alignment="bottom")
wanted = filter_at.text_input(
    "Show only defenses whose name contains", key=choice.FILTER, bind="query-params"
)
shown = [row for row in rows if wanted.casefold() in row.defense.casefold()]
if len(shown) < len(rows):
    said_at.text(f"{len(shown)} of {len(rows)} shown, {len(rows) - len(shown)} hidden by the name.")
    said_at.button("Show all", on_click=choice.forget, args=(choice.FILTER,))
if not shown:
    st.html(markup.notice(words.NOTHING_LEFT, "warn"))
    st.stop()

cards = {card.name: card for card in reading.cards(DefenseCard)}
st.html(panels.ranking(shown, cards, choice.label()))
if notes := panels.unranked(shown):
    st.html(notes)

left, right = st.columns([3, 2], gap="large")
with left:
    st.subheader("Where the figures lie", anchor="intervals")
    st.caption(words.FOREST)
    leads = words.best(shown[0].defense, shown[0].robust)
    st.altair_chart(figures.described(figures.forest(plots.intervals(shown)), leads))
with right:
    st.subheader("What robustness costs", anchor="trade")
    st.caption(words.TRADE)
    st.altair_chart(figures.described(figures.trade(plots.trades(shown)), words.TRADE))

export.buttons(f"ranking-{choice.label()}", board, shown, export.ranking(shown))
