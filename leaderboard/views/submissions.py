"""What happened to mine? Submissions, and the cells that are in play or failed."""

import time

import streamlit as st

from bench.core.cells import CellState
from leaderboard import markup, reading, states, words

st.html(markup.heading("Submissions and cells", markup.text(words.SUBMISSIONS_LEAD)))
now = time.time()

st.subheader("Submissions", anchor="submissions")
entries = reading.read_submissions()
st.html(states.submissions_table(entries, now) if entries else markup.notice(words.NO_SUBMISSIONS))

st.subheader("Cells", anchor="cells")
cells = reading.read_cells()
st.html(states.state_tiles(cells))
playing = [cell for cell in cells if cell.state == CellState.RUNNING]
if playing:
    st.subheader("In play", anchor="playing")
    st.html(states.running_table(playing, now))
broken = [cell for cell in cells if cell.state == CellState.FAILED]
if broken:
    st.subheader("Failed", anchor="failed")
    st.html(states.failed_table(broken))
