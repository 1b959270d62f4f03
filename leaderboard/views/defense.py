"""Should I believe this defense? What it is, what it claims, what was measured, and the signs."""

import streamlit as st

from bench.core.cards import AttackCard, DefenseCard
from leaderboard import chart_rows, charts, choice, defense_tables, markup, reading, tables, words

here = choice.selected_leaderboard()
# Figures of one mode stand together, never beside those of the other.
known = {
    label: board
    for label, board in words.leaderboards_by_label(reading.read_leaderboards()).items()
    if board.mode == here.mode
}
cards = {card.name: card for card in reading.read_cards(DefenseCard)}
attacks = {card.name: card for card in reading.read_cards(AttackCard)}
ranked = [row.defense for row in reading.read_ranking(here)]
names = [*ranked, *(name for name in cards if name not in ranked)]

left, _ = st.columns([2, 3])
name = choice.select_option(choice.DEFENSE_KEY, "Defense", names, what="defense", place=left)
card = cards[name]
st.html(markup.heading(name, markup.text(card.summary)))
if said := tables.mode_note(here):
    st.html(said)

rows = {label: reading.read_row(board, name) for label, board in known.items()}
left, right = st.columns([2, 3], gap="large")
with left:
    st.subheader("Identity", anchor="identity")
    st.html(defense_tables.identity_list(card))
with right:
    st.subheader("Claim and measurement", anchor="claims")
    st.html(
        defense_tables.claims_table(
            card, {known[label].name: row for label, row in reversed(rows.items()) if row}
        )
    )

st.subheader("Under every threat model", anchor="boards")
st.html(defense_tables.threat_models_table([(label, row) for label, row in rows.items() if row]))

if rows[choice.selected_label()] is None:
    st.html(markup.notice(words.not_evaluated(name, here)))
    st.stop()
entry = reading.read_defense_report(here, name)

st.subheader(f"Signs under {words.leaderboard_label(here)}", anchor="signs")
st.caption(words.CHECKS_CAPTION)
st.html(tables.checks_table(entry.row.flags))

left, right = st.columns(2, gap="large")
with left:
    st.subheader("As the attack goes on", anchor="steps")
    st.caption(charts.STEPS_CAPTION)
    drawn = chart_rows.accuracy_rows(entry.steps, attacks)
    st.altair_chart(
        charts.with_description(
            charts.steps_chart(drawn, "steps of the attack"), charts.STEPS_CAPTION
        )
    )
with right:
    st.subheader("As the radius grows", anchor="radius")
    st.caption(words.RADIUS_CAPTION)
    drawn = chart_rows.radius_rows(entry.distances, entry.radii)
    axis = f"radius in {words.norm_symbol(here.set['name'])}"
    mark = None if here.is_nearest else here.radius
    st.altair_chart(
        charts.with_description(charts.radius_chart(drawn, axis, mark), words.RADIUS_CAPTION)
    )

if entry.rocs:
    st.subheader("The detector", anchor="detector")
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.caption(words.DETECTOR_CAPTION)
        drawn = chart_rows.roc_rows(entry.rocs)
        st.altair_chart(charts.with_description(charts.roc_chart(drawn), words.DETECTOR_CAPTION))
    with right:
        st.html(defense_tables.detector_table(entry.row, entry.cells, attacks))

st.subheader("What the attack brought", anchor="images")
if entry.images:
    left, _ = st.columns([2, 3])
    by = choice.select_option(
        "attack", "Attack", list(entry.images), what="attack with images", place=left
    )
    classes = reading.read_examples(here.examples).classes
    st.html(defense_tables.example_pictures(entry.images[by], classes))
else:
    st.html(markup.notice(words.NO_IMAGES))

st.subheader("Cells", anchor="cells")
for label, board in known.items():
    mine = [(s.attack, s) for s in reading.read_matrix(board) if s.defense == name]
    if mine:
        with st.expander(words.plain_text(label), expanded=board == here):
            st.html(tables.cells_table(mine, "Attack", board))
