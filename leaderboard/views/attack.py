"""Page of one attack: what it declares, what it breaks, what only it breaks, what it costs."""

import streamlit as st

from leaderboard import attack_tables, choice, markup, notices, reading, tables, words


def main() -> None:
    """Show the page."""
    leaderboard, label = choice.selected_leaderboard(), choice.selected_label()
    names = reading.read_attack_names(leaderboard)
    if not names:
        st.html(markup.heading("Attacks", markup.text(leaderboard.summary)))
        st.html(markup.notice(notices.no_results(leaderboard)))
        return
    left, _ = st.columns([2, 3])
    name = choice.select_option(choice.ATTACK_KEY, "Attack", names, what="attack", place=left)
    report = reading.read_attack_report(leaderboard, name)
    st.html(markup.heading(report.card.name, markup.text(report.card.summary)))
    if note := tables.mode_note(leaderboard):
        st.html(note)
    if warning := reading.read_attack_warnings(leaderboard).get(name):
        st.html(tables.attack_warning_list({name: warning}))
    st.html(attack_tables.attack_tiles(report, leaderboard))
    st.subheader(f"Under {words.leaderboard_label(leaderboard)}", anchor="defenses")
    st.caption(words.ATTACK_CAPTION)
    st.html(attack_tables.attack_table(report, leaderboard, label))
    st.subheader("Declared", anchor="declared")
    st.html(attack_tables.attack_facts(report.card))


main()
