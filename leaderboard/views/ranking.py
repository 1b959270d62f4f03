"""Page of the ranking: robust accuracy of every defense under one threat model."""

from collections.abc import Sequence

import streamlit as st

from bench.core.cards import DefenseCard
from bench.results.leaderboards import Leaderboard
from bench.results.ranking import RankingRow
from leaderboard import (
    chart_rows,
    charts,
    choice,
    export,
    filters,
    markup,
    notices,
    reading,
    tables,
    words,
)


def main() -> None:
    """Show the page."""
    leaderboard, label = choice.selected_leaderboard(), choice.selected_label()
    rows = reading.read_ranking(leaderboard)
    title = f"Robust accuracy under {words.leaderboard_label(leaderboard)}"
    st.html(markup.heading(title, tables.leaderboard_summary(leaderboard, label)))
    if not rows:
        st.html(markup.notice(notices.no_results(leaderboard)))
        return
    if note := tables.mode_note(leaderboard):
        st.html(note)
    st.html(tables.lead(rows, leaderboard, reading.read_newest(leaderboard)))
    shown = filtered(rows)
    if not shown:
        st.html(markup.notice(notices.NOTHING_LEFT, "warn"))
        return
    show_ranking(shown, leaderboard, label)


def filtered(rows: Sequence[RankingRow]) -> list[RankingRow]:
    """The rows that the filters leave, with a note on the hidden ones."""
    cards = {card.name: card for card in reading.read_cards(DefenseCard)}
    with choice.CONTROLS.get(), st.popover("Filter and order", type="tertiary"):
        shown, hiding = filters.chosen_rows(rows, cards)
    if hidden := len(rows) - len(shown):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.text(f"{len(shown)} of {len(rows)} shown, {hidden} hidden by {', '.join(hiding)}.")
            st.button("Show all", on_click=filters.clear_all)
    return shown


def show_ranking(shown: Sequence[RankingRow], leaderboard: Leaderboard, label: str) -> None:
    """Show the table, the notes, two charts and the downloads."""
    cards = {card.name: card for card in reading.read_cards(DefenseCard)}
    disputes = choice.disputes_about([row.defense for row in shown], leaderboard)
    disputed = {one.defense for one in disputes if not one.answer}
    st.html(tables.ranking_table(shown, cards, label, disputed))
    if notes := tables.disputes_list(disputes):
        st.html(notes)
    if notes := tables.unranked_list(shown):
        st.html(notes)
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader("Accuracies with intervals", anchor="intervals")
        st.caption(words.FOREST_CAPTION)
        description = words.best_defense_sentence(shown[0].defense, shown[0].robust)
        chart = charts.forest_chart(chart_rows.interval_rows(shown))
        st.altair_chart(charts.with_description(chart, description))
    with right:
        st.subheader("Clean vs robust accuracy", anchor="trade")
        st.caption(words.TRADE_OFF_CAPTION)
        chart = charts.trade_off_chart(chart_rows.trade_off_rows(shown), choice.theme())
        st.altair_chart(charts.with_description(chart, words.TRADE_OFF_CAPTION))
    export.download_buttons(f"ranking-{label}", leaderboard, shown, export.flat_ranking(shown))


main()
