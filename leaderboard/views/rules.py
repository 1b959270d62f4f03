"""What exactly is allowed, and how is everything computed?"""

import streamlit as st

from leaderboard import choice, markup, panels, reading, words

boards = reading.boards()
st.html(markup.heading("Rules and method", markup.text(words.RULES_LEAD)))
if boards:
    board = choice.board()
    st.subheader("The threat model", anchor="threat-model")
    st.html(panels.rules(board))
st.subheader("How the figures are made", anchor="method")
for title, text in words.method():
    with st.expander(title, expanded=not boards):
        st.markdown(text)
