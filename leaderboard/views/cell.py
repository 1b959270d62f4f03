"""Page of one cell: its inputs, digests, figures and machines, and how to evaluate it again."""

import streamlit as st

from bench.core.errors import BenchError
from leaderboard import cell_tables, choice, markup, notices, reading, words


def main() -> None:
    """Show the page."""
    st.text_input(
        "Beginning of the cell's key, as in the matrix and in `bench report --json`",
        key=choice.CELL_KEY,
        bind="query-params",
    )
    key = st.session_state[choice.CELL_KEY].strip().lower()
    if not key:
        st.html(markup.heading("Cell", markup.text(words.CELL_LEAD)))
        st.html(markup.notice(notices.NO_CELL_CHOSEN))
        return
    try:
        report = reading.read_cell_report(key)
    except BenchError as error:
        st.html(markup.heading("Cell", markup.text(words.CELL_LEAD)))
        st.html(markup.notice(notices.unknown_cell(str(error)), "warn"))
        return
    st.html(markup.heading(cell_tables.cell_title(report), markup.text(words.CELL_LEAD)))
    st.html(markup.notice(cell_tables.command_notice(report)))
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Results", anchor="results")
        st.html(cell_tables.results_list(report))
    with right:
        st.subheader("Inputs", anchor="inputs")
        st.html(cell_tables.inputs_list(report))


main()
