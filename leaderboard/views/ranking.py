"""Which defenses hold under this threat model, and how far can these examples tell?"""

import streamlit as st

from bench.core.cards import DefenseCard
from leaderboard import chart_rows, charts, choice, export, markup, reading, tables, words

board = choice.selected_leaderboard()
rows = reading.read_ranking(board)
st.html(
    markup.heading(
        f"Which defenses hold under {words.leaderboard_label(board)}?",
        tables.leaderboard_summary(board, choice.selected_label()),
    )
)
if not rows:
    st.html(markup.notice(words.no_results(board)))
    st.stop()
if said := tables.mode_note(board):
    st.html(said)
st.html(tables.headline_tiles(rows, board))

filter_at, said_at = st.columns([2, 3], vertical_alignment="bottom")
wanted = filter_at.text_input(
    "Show only defenses whose name contains", key=choice.FILTER_KEY, bind="query-params"
)
shown = [row for row in rows if wanted.casefold() in row.defense.casefold()]
if len(shown) < len(rows):
    said_at.text(f"{len(shown)} of {len(rows)} shown, {len(rows) - len(shown)} hidden by the name.")
    said_at.button("Show all", on_click=choice.clear_field, args=(choice.FILTER_KEY,))
if not shown:
    st.html(markup.notice(words.NOTHING_LEFT, "warn"))
    st.stop()

cards = {card.name: card for card in reading.read_cards(DefenseCard)}
st.html(tables.ranking_table(shown, cards, choice.selected_label()))
if notes := tables.unranked_list(shown):
    st.html(notes)

left, right = st.columns([3, 2], gap="large")
with left:
    st.subheader("Where the figures lie", anchor="intervals")
    st.caption(words.FOREST_CAPTION)
    leads = words.best_defense_sentence(shown[0].defense, shown[0].robust)
    st.altair_chart(
        charts.with_description(charts.forest_chart(chart_rows.interval_rows(shown)), leads)
    )
with right:
    st.subheader("What robustness costs", anchor="trade")
    st.caption(words.TRADE_OFF_CAPTION)
    st.altair_chart(
        charts.with_description(
            charts.trade_off_chart(chart_rows.trade_off_rows(shown)), words.TRADE_OFF_CAPTION
        )
    )

export.download_buttons(
    f"ranking-{choice.selected_label()}", board, shown, export.flat_ranking(shown)
)
