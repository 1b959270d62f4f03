"""Should I believe this defense? What it is, what it claims, what was measured, and the signs."""

import streamlit as st

from bench.core.cards import AttackCard, DefenseCard
from leaderboard import choice, dossier, figures, markup, panels, plots, reading, words

here = choice.board()
# Figures of one mode stand together, never beside those of the other.
known = {
    label: board
    for label, board in words.labels(reading.boards()).items()
    if board.mode == here.mode
}
cards = {card.name: card for card in reading.cards(DefenseCard)}
attacks = {card.name: card for card in reading.cards(AttackCard)}
ranked = [row.defense for row in reading.ranking(here)]
names = [*ranked, *(name for name in cards if name not in ranked)]

left, _ = st.columns([2, 3])
name = choice.pick(choice.DEFENSE, "Defense", names, what="defense", place=left)
card = cards[name]
st.html(markup.heading(name, markup.text(card.summary)))
if said := panels.mode(here):
    st.html(said)

rows = {label: reading.row(board, name) for label, board in known.items()}
left, right = st.columns([2, 3], gap="large")
with left:
    st.subheader("Identity", anchor="identity")
    st.html(dossier.identity(card))
with right:
    st.subheader("Claim and measurement", anchor="claims")
    st.html(
        dossier.claims(
            card, {known[label].name: row for label, row in reversed(rows.items()) if row}
        )
    )

st.subheader("Under every threat model", anchor="boards")
st.html(dossier.everywhere([(label, row) for label, row in rows.items() if row]))

if rows[choice.label()] is None:
    st.html(markup.notice(words.not_played(name, here)))
    st.stop()
entry = reading.entry(here, name)

st.subheader(f"Signs under {words.label(here)}", anchor="signs")
st.caption(words.SIGNS)
st.html(panels.flags(entry.row.flags))

left, right = st.columns(2, gap="large")
with left:
    st.subheader("As the attack goes on", anchor="steps")
    st.caption(figures.STEPS)
    drawn = plots.staircases(entry.steps, attacks)
    st.altair_chart(figures.described(figures.steps(drawn, "steps of the attack"), figures.STEPS))
with right:
    st.subheader("As the radius grows", anchor="radius")
    st.caption(words.RADII)
    drawn = plots.by_radius(entry.distances, entry.points)
    axis = f"radius in {words.norm(here.set['name'])}"
    mark = None if here.nearest else here.radius
    st.altair_chart(figures.described(figures.radii(drawn, axis, mark), words.RADII))

if entry.rocs:
    st.subheader("The detector", anchor="detector")
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.caption(words.DETECTOR)
        drawn = plots.rocs(entry.rocs)
        st.altair_chart(figures.described(figures.rocs(drawn), words.DETECTOR))
    with right:
        st.html(dossier.detector(entry.row, entry.squares, attacks))

st.subheader("What the attack brought", anchor="images")
if entry.images:
    left, _ = st.columns([2, 3])
    by = choice.pick("attack", "Attack", list(entry.images), what="attack with images", place=left)
    classes = reading.examples(here.examples).classes
    st.html(dossier.pictures(entry.images[by], classes))
else:
    st.html(markup.notice(words.NO_IMAGES))

st.subheader("Cells", anchor="cells")
for label, board in known.items():
    mine = [(s.attack, s) for s in reading.matrix(board) if s.defense == name]
    if mine:
        with st.expander(words.plain(label), expanded=board == here):
            st.html(panels.squares(mine, "Attack", board))
