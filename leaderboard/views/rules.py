"""What exactly is allowed, and how is everything computed?"""

import streamlit as st

from leaderboard import choice, markup, reading, tables, words

boards = reading.read_leaderboards()
st.html(markup.heading("Rules and method", markup.text(words.RULES_LEAD)))
if boards:
    board = choice.selected_leaderboard()
    st.subheader("The threat model", anchor="threat-model")
    st.html(tables.rules_list(board))
st.subheader("How the figures are made", anchor="method")
for title, text in words.method_sections():
    with st.expander(title, expanded=not boards):
        st.markdown(text)
