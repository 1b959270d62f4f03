"""The frame: title, navigation, the choice of the threat model, and every state without figures."""

from pathlib import Path

import streamlit as st

from bench.core.errors import BenchError
from bench.results.leaderboards import Leaderboard
from leaderboard import choice, markup, reading, words

APP_FOLDER = Path(__file__).parent
PAGE_TITLES = {
    "ranking": "Ranking",
    "matrix": "Matrix",
    "defense": "Defense",
    "submissions": "Submissions",
    "rules": "Rules and method",
}
# Views that have something to say before the first cell is played.
PAGES_WITHOUT_RESULTS = {"submissions", "rules"}


def load_leaderboards() -> list[Leaderboard] | None:
    """The boards; None where the database cannot be read, after saying why."""
    try:
        return reading.read_leaderboards()
    except BenchError as error:
        missing = not reading.database_exists()
        said = str(error)
        state = words.no_database(said) if missing else words.unreadable_database(said)
        st.html(markup.heading(words.PRODUCT, markup.text(words.MOTTO)))
        st.html(markup.notice(state, "warn" if missing else "bad"))
        return None


def choose_leaderboard(boards: list[Leaderboard]) -> None:
    """The selector of the threat model; its value travels in the URL from page to page."""
    left, _ = st.columns([2, 3])
    choice.select_option(
        choice.THREAT_KEY,
        "Threat model",
        list(words.leaderboards_by_label(boards)),
        what="threat model",
        place=left,
    )


def main() -> None:
    """Handle what is broken or empty first, then run the chosen page."""
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
    st.logo(APP_FOLDER / "logo.svg", icon_image=APP_FOLDER / "mark.svg", size="large")
    st.html(APP_FOLDER / "style.css")
    boards = load_leaderboards()
    if boards is None:
        st.stop()
    here = next(name for name, known in pages.items() if known.title == page.title)
    if not boards and here not in PAGES_WITHOUT_RESULTS:
        st.html(markup.heading(words.PRODUCT, markup.text(words.MOTTO)))
        st.html(markup.notice(words.EMPTY_DATABASE))
        st.stop()
    if boards and here != "submissions":
        choose_leaderboard(boards)
    page.run()


main()
