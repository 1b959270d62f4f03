"""Page that compares defenses: paired tests, accuracy by attack, examples that differ."""

import streamlit as st

from bench.core.errors import BenchError
from leaderboard import choice, compare_tables, markup, notices, reading, tables, words

MOST_COMPARED = 4


def main() -> None:
    """Show the page."""
    leaderboard, label = choice.selected_leaderboard(), choice.selected_label()
    title = f"Compare defenses under {words.leaderboard_label(leaderboard)}"
    st.html(markup.heading(title, tables.leaderboard_summary(leaderboard, label)))
    names = [row.defense for row in reading.read_ranking(leaderboard)]
    chosen = choice.select_several(choice.COMPARE_KEY, "Defenses", names, most=MOST_COMPARED)
    if len(chosen) < 2:
        st.html(markup.notice(notices.NOTHING_TO_COMPARE))
        return
    try:
        found = reading.read_comparison(leaderboard, tuple(chosen))
    except BenchError as error:
        st.html(markup.notice(notices.refused_comparison(str(error)), "warn"))
        return
    st.subheader("Paired tests", anchor="pairs")
    st.caption(words.COMPARE_CAPTION)
    st.html(compare_tables.pairs_table(found))
    st.subheader("Accuracy by attack", anchor="attacks")
    st.html(compare_tables.attacks_table(found))
    st.subheader("Examples that differ", anchor="examples")
    st.html(compare_tables.examples_table(found))


main()
