"""Page of the submissions with their states, and of running and failed cells."""

import time

import streamlit as st

from bench.core.cells import CellState
from leaderboard import markup, notices, reading, states, words


def main() -> None:
    """Show the page."""
    st.html(markup.heading("Submissions and cells", markup.text(words.SUBMISSIONS_LEAD)))
    now = time.time()
    st.subheader("Submissions", anchor="submissions")
    submissions = reading.read_submissions()
    none = markup.notice(notices.NO_SUBMISSIONS)
    st.html(states.submissions_table(submissions, now) if submissions else none)
    st.subheader("Cells", anchor="cells")
    cells = reading.read_cells()
    st.html(states.state_tiles(cells))
    if running := [cell for cell in cells if cell.state == CellState.RUNNING]:
        st.subheader("Running", anchor="running")
        st.html(states.running_table(running, now))
    if failed := [cell for cell in cells if cell.state == CellState.FAILED]:
        st.subheader("Failed", anchor="failed")
        st.html(states.failed_table(failed))


main()
