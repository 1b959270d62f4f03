"""What exactly is allowed, and how is everything computed?"""

import streamlit as st

from leaderboard import choice, markup, method, panels, reading, words

boards = reading.boards()
st.html(markup.heading("Rules and method", markup.text(words.RULES_LEAD)))
if boards:
    board = choice.board()
    st.subheader("The threat model", anchor="threat-model")
    st.html(markup.tag("h3", markup.text(board.name)))
    if board.summary:
        st.text(words.plain(board.summary))
    st.html(panels.rules(board))
st.subheader("How the figures are made", anchor="method")
for title, text in method.SECTIONS:
    with st.expander(title, expanded=not boards):
        st.markdown(text)
