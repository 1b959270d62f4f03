"""Page of the score over several perturbation sets of the selected data set."""

import streamlit as st

from bench.core.errors import BenchError
from leaderboard import choice, markup, reading, union_tables


def main() -> None:
    """Show the page."""
    selected = choice.selected_leaderboard()
    title = f"Several perturbation sets on {selected.dataset}"
    st.html(markup.heading(title, markup.reason(union_tables.UNION_CAPTION)))
    try:
        found = reading.read_set_union(selected)
    except BenchError as error:
        st.html(markup.notice(union_tables.no_union(str(error))))
        return
    st.html(union_tables.union_score_table(found))


main()
