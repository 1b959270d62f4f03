"""The app: navigation, selection of the threat model, and notices where there are no results."""

from pathlib import Path

import streamlit as st

from bench.core.errors import BenchError
from bench.results.leaderboards import Leaderboard
from leaderboard import choice, filters, markup, notices, origin, reading, words

APP_FOLDER = Path(__file__).parent
PAGE_TITLES = {
    "ranking": "Ranking",
    "matrix": "Matrix",
    "defense": "Defense",
    "attack": "Attack",
    "compare": "Compare",
    "union": "Several sets",
    "cell": "Cell",
    "submissions": "Submissions",
    "rules": "Rules and method",
}
# Pages that have content before the first cell has been evaluated.
PAGES_WITHOUT_RESULTS = {"submissions", "rules"}
PAGES_OF_ALL_THREAT_MODELS = {"cell", "submissions"}
"""Pages without a selection of the threat model."""


def load_leaderboards() -> list[Leaderboard] | None:
    """The leaderboards; None, after a notice, where the database cannot be read."""
    try:
        return reading.read_leaderboards()
    except BenchError as error:
        missing = not reading.database_exists()
        message = str(error)
        state = notices.no_database(message) if missing else notices.unreadable_database(message)
        st.html(markup.heading(words.PRODUCT, markup.text(words.MOTTO)))
        st.html(markup.notice(state, "warn" if missing else "bad"))
        return None


def choose_leaderboard(all_leaderboards: list[Leaderboard]) -> None:
    """Show the selection of the threat model; its value is part of the URL of every page."""
    known = words.leaderboards_by_label(all_leaderboards)
    with st.container(horizontal=True, vertical_alignment="center", key="controls"):
        # The facets are read first, although they stand on the right.
        place = st.container(width=360)
        with st.popover("Find a threat model", type="tertiary"):
            found = filters.chosen_boards(known)
        choice.CONTROLS.set(st.container(width="stretch"))
    choice.select_option(
        choice.THREAT_KEY, "Threat model", list(found), what="threat model", known=list(known),
        place=place, label_visibility="collapsed",
    )  # fmt: skip


def main() -> None:
    """Show a notice for a missing or empty database, else the selected page."""
    pages = {
        name: st.Page(APP_FOLDER / "views" / f"{name}.py", title=title, default=name == "ranking")
        for name, title in PAGE_TITLES.items()
    }
    page = st.navigation(list(pages.values()), position="top")
    st.set_page_config(
        page_title=f"{page.title} · {words.PRODUCT}",
        page_icon=APP_FOLDER / "mark.svg",
        layout="wide",
    )
    st.logo(APP_FOLDER / "logo.svg", size="large")
    st.html(APP_FOLDER / "style.css")
    all_leaderboards = load_leaderboards()
    if all_leaderboards is None:
        st.stop()
    if facts := reading.read_published():
        st.html(origin.published_notice(facts, reading.read_changed_code()))
    here = next(name for name, known in pages.items() if known.title == page.title)
    if not all_leaderboards and here not in PAGES_WITHOUT_RESULTS:
        st.html(markup.heading(words.PRODUCT, markup.text(words.MOTTO)))
        st.html(markup.notice(notices.EMPTY_DATABASE))
        st.stop()
    if all_leaderboards and here not in PAGES_OF_ALL_THREAT_MODELS:
        choose_leaderboard(all_leaderboards)
    page.run()


main()
