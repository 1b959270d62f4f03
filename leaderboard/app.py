"""The frame: title, navigation, the choice of the threat model, and every state without figures."""

from pathlib import Path

import streamlit as st

from bench.core.errors import BenchError
from bench.results.leaderboards import Leaderboard
from leaderboard import choice, markup, reading, words

HERE = Path(__file__).parent
VIEWS = {
    "ranking": "Ranking",
    "matrix": "Matrix",
    "defense": "Defense",
    "submissions": "Submissions",
    "rules": "Rules and method",
}
# Views that have something to say before the first cell is played.
WITHOUT_BOARD = {"submissions", "rules"}


def read_boards() -> list[Leaderboard] | None:
    """The boards; None where the database cannot be read, after saying why."""
    try:
        return reading.boards()
    except BenchError as error:
        missing = not reading.present()
        said = str(error)
        state = words.no_database(said) if missing else words.unreadable(said)
        st.html(markup.heading(words.PRODUCT, markup.text(words.MOTTO)))
        st.html(markup.notice(state, "warn" if missing else "bad"))
        return None


def choose_board(boards: list[Leaderboard]) -> None:
    """The selector of the threat model; its value travels in the URL from page to page."""
    left, _ = st.columns([2, 3])
    choice.pick(
        choice.THREAT, "Threat model", list(words.labels(boards)), what="threat model", place=left
    )


def main() -> None:
    """Handle what is broken or empty first, then run the chosen page."""
    pages = {
        name: st.Page(HERE / "views" / f"{name}.py", title=title, default=name == "ranking")
        for name, title in VIEWS.items()
    }
    page = st.navigation(list(pages.values()), position="top")
    st.set_page_config(
        page_title=f"{page.title} · {words.PRODUCT}", page_icon=HERE / "mark.svg", layout="wide"
    )
    st.logo(HERE / "logo.svg", icon_image=HERE / "mark.svg", size="large")
    st.html(HERE / "style.css")
    boards = read_boards()
    if boards is None:
        st.stop()
    here = next(name for name, known in pages.items() if known.title == page.title)
    if not boards and here not in WITHOUT_BOARD:
        st.html(markup.heading(words.PRODUCT, markup.text(words.MOTTO)))
        st.html(markup.notice(words.EMPTY))
        st.stop()
    if boards and here != "submissions":
        choose_board(boards)
    page.run()


main()
