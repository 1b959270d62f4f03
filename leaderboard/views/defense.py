"""Page of one defense: its declarations, claims, gradient-masking checks, curves and images."""

from collections.abc import Mapping

import streamlit as st

from bench.core.cards import AttackCard, DefenseCard
from bench.core.corruptions import CORRUPTION_SET
from bench.results.defense_report import DefenseReport
from bench.results.leaderboards import Leaderboard
from bench.results.ranking import RankingRow
from leaderboard import (
    chart_rows,
    charts,
    choice,
    defense_tables,
    markup,
    measure_tables,
    notices,
    reading,
    tables,
    words,
)


def main() -> None:
    """Show the page."""
    selected, label = choice.selected_leaderboard(), choice.selected_label()
    # Results of one mode are shown together, never beside those of the other.
    leaderboards = {
        name: leaderboard
        for name, leaderboard in words.leaderboards_by_label(reading.read_leaderboards()).items()
        if leaderboard.mode == selected.mode
    }
    card = select_defense(selected)
    st.html(markup.heading(card.name, markup.text(card.summary)))
    if note := tables.mode_note(selected):
        st.html(note)
    rows = {name: reading.read_row(leaderboards[name], card.name) for name in leaderboards}
    found = {name: row for name, row in rows.items() if row}
    show_declarations(card, {leaderboards[name].name: row for name, row in reversed(found.items())})
    if notes := tables.disputes_list(choice.disputes_about([card.name], selected)):
        st.html(notes)
    st.subheader("All threat models", anchor="threat-models")
    st.html(defense_tables.threat_models_table(list(found.items())))
    show_corruptions(card.name, selected, leaderboards)
    if label not in found:
        st.html(markup.notice(notices.not_evaluated(card.name, selected)))
        return
    show_report(selected, reading.read_defense_report(selected, card.name))
    show_cells(card.name, selected, leaderboards)


def select_defense(selected: Leaderboard) -> DefenseCard:
    """The card of the selected defense; the ranked defenses come first in the list."""
    cards = {card.name: card for card in reading.read_cards(DefenseCard)}
    ranked = [row.defense for row in reading.read_ranking(selected)]
    names = [*ranked, *(name for name in cards if name not in ranked)]
    left, _ = st.columns([2, 3])
    key = choice.DEFENSE_KEY
    return cards[choice.select_option(key, "Defense", names, what="defense", place=left)]


def show_declarations(card: DefenseCard, rows: Mapping[str, RankingRow]) -> None:
    """Show what the defense declares, and its claims compared with the measurements."""
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.subheader("Identity", anchor="identity")
        st.html(defense_tables.identity_list(card))
    with right:
        st.subheader("Claims", anchor="claims")
        st.html(defense_tables.claims_table(card, rows))


def show_corruptions(
    defense: str, selected: Leaderboard, leaderboards: Mapping[str, Leaderboard]
) -> None:
    """Show the accuracy under corruptions of the same data set; nothing without results."""
    for leaderboard in leaderboards.values():
        is_meant = leaderboard.set["name"] == CORRUPTION_SET
        if not is_meant or leaderboard.dataset != selected.dataset:
            continue
        if row := reading.read_row(leaderboard, defense):
            cells = [one for one in reading.read_matrix(leaderboard) if one.defense == defense]
            st.subheader("Corruptions", anchor="corruptions")
            st.caption(words.CORRUPTIONS_CAPTION)
            st.html(defense_tables.corruptions_by_severity(row.clean, cells) or words.NOT_MEASURED)


def show_report(selected: Leaderboard, report: DefenseReport) -> None:
    """Show checks, curves, the detector and adversarial examples under one threat model."""
    attacks = {card.name: card for card in reading.read_cards(AttackCard)}
    title = f"Gradient-masking checks under {words.leaderboard_label(selected)}"
    st.subheader(title, anchor="checks")
    if note := tables.version_note(report.row):
        st.html(note)
    st.caption(words.CHECKS_CAPTION)
    st.html(tables.checks_table(report.row.flags, report.row.follow_ups))
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Robust accuracy vs iterations", anchor="steps")
        st.caption(charts.STEPS_CAPTION)
        drawn = chart_rows.accuracy_rows(report.steps, attacks)
        chart = charts.steps_chart(drawn, "steps of the attack")
        st.altair_chart(charts.with_description(chart, charts.STEPS_CAPTION))
    with right:
        st.subheader("Robust accuracy vs radius", anchor="radius")
        st.caption(words.RADIUS_CAPTION)
        drawn = chart_rows.radius_rows(report.distances, report.radii)
        axis = f"radius in {words.norm_symbol(selected.set['name'])}"
        mark = None if selected.is_nearest else selected.radius
        chart = charts.radius_chart(drawn, axis, mark)
        st.altair_chart(charts.with_description(chart, words.RADIUS_CAPTION))
    show_measures(selected, report)
    show_detector(report, attacks)
    show_images(selected, report)


def show_measures(selected: Leaderboard, report: DefenseReport) -> None:
    """Show the measures besides robust accuracy, and what would change the rank."""
    st.subheader("Measures", anchor="measures")
    st.caption(words.MEASURES_CAPTION)
    st.html(measure_tables.measure_tiles(report))
    if sentence := measure_tables.rank_sentence(report):
        st.html(sentence)
    found, classes = report.measures, reading.read_examples(selected.examples).classes
    left, right = st.columns(2, gap="large")
    with left:
        st.html(measure_tables.target_table(found.targets, classes) or words.NOT_MEASURED)
    with right:
        st.html(measure_tables.confidence_table(found.confidence) or words.NOT_MEASURED)
        st.html(measure_tables.cost_table(found.costs) or words.NOT_MEASURED)


def show_detector(report: DefenseReport, attacks: Mapping[str, AttackCard]) -> None:
    """Show the ROC curves and rejection rates of a detector; nothing without one."""
    if not report.rocs:
        return
    st.subheader("Detector", anchor="detector")
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.caption(words.DETECTOR_CAPTION)
        chart = charts.roc_chart(chart_rows.roc_rows(report.rocs))
        st.altair_chart(charts.with_description(chart, words.DETECTOR_CAPTION))
    with right:
        st.html(defense_tables.detector_table(report.row, report.cells, attacks))


def show_images(selected: Leaderboard, report: DefenseReport) -> None:
    """Show the stored adversarial examples of the selected attack."""
    st.subheader("Adversarial examples", anchor="images")
    if not report.images:
        st.html(markup.notice(notices.NO_IMAGES))
        return
    left, _ = st.columns([2, 3])
    names = list(report.images)
    attack = choice.select_option(
        choice.ATTACK_KEY, "Attack", names, what="attack with images", place=left
    )
    classes = reading.read_examples(selected.examples).classes
    points = report.points.get(attack)
    st.html(defense_tables.example_pictures(report.images[attack], classes, points))


def show_cells(
    defense: str, selected: Leaderboard, leaderboards: Mapping[str, Leaderboard]
) -> None:
    """Show the cells of the defense under every threat model."""
    st.subheader("Cells", anchor="cells")
    for label, leaderboard in leaderboards.items():
        matrix = reading.read_matrix(leaderboard)
        cells = [(cell.attack, cell) for cell in matrix if cell.defense == defense]
        if cells:
            with st.expander(markup.label_text(label), expanded=leaderboard == selected):
                st.html(tables.cells_table(cells, "Attack", leaderboard))


main()
