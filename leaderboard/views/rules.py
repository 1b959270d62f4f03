"""Page of the rules: the selected threat model, and how all figures are computed."""

import streamlit as st

from leaderboard import choice, markup, reading, tables, words


def main() -> None:
    """Show the page."""
    any_results = bool(reading.read_leaderboards())
    st.html(markup.heading("Rules and method", markup.text(words.RULES_LEAD)))
    if any_results:
        st.subheader("Threat model", anchor="threat-model")
        st.html(tables.rules_list(choice.selected_leaderboard()))
    st.subheader("Method", anchor="method")
    for title, text in words.method_sections():
        with st.expander(title, expanded=not any_results):
            st.markdown(text)
    if any_results:
        st.caption(words.root_sentence(reading.read_root()))


main()
