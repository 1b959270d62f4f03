"""The state of a view is its URL: what is chosen, and what to say when a link is stale."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from bench.results.leaderboards import Leaderboard
from leaderboard import markup, reading, words

THREAT_KEY = "threat"
DEFENSE_KEY = "name"
FILTER_KEY = "q"


def url_value(key: str) -> str | None:
    """What the URL asks for, before a widget drops a value that it does not know."""
    return st.query_params.get(key)


def warn_when_stale(key: str, what: str, known: Sequence[str]) -> None:
    """Say so when a link names what is not there; the widget would silently show another thing.

    The widget removes the value from the URL with its first run, so the answer is kept until the
    URL names something that is known. Once the widget is there, its value is no link's.
    """
    wanted, memory = url_value(key), f"stale {key}"
    if wanted is not None and (wanted in known or key not in st.session_state):
        st.session_state[memory] = None if wanted in known else wanted
    missing = st.session_state.get(memory)
    if missing is not None:
        st.html(markup.notice(words.stale_link(what, missing), "warn"))


def dismiss_stale_notice(key: str) -> None:
    """The reader has chosen; the old link does not matter any more."""
    st.session_state[f"stale {key}"] = None


def clear_field(key: str) -> None:
    """Empty a field; for a button."""
    st.session_state[key] = ""


def select_option(
    key: str, label: str, options: Sequence[str], *, what: str, place: DeltaGenerator | None = None
) -> str:
    """One of `options`, held in the URL under `key`. Options are shown as plain text."""
    warn_when_stale(key, what, options)
    if st.session_state.get(key, url_value(key)) not in options:
        # Named in the URL like any other: what stands first today may not tomorrow.
        if key not in st.session_state:
            st.query_params[key] = options[0]
        st.session_state[key] = options[0]
    chosen = (place or st).selectbox(
        label,
        list(options),
        index=None,
        key=key,
        bind="query-params",
        on_change=dismiss_stale_notice,
        args=(key,),
    )
    return options[0] if chosen is None else chosen


def selected_label() -> str:
    """What the frame's selector shows: the board's name in the URL."""
    chosen: str = st.session_state[THREAT_KEY]
    return chosen


def selected_leaderboard() -> Leaderboard:
    """The board that the frame's selector shows."""
    return words.leaderboards_by_label(reading.read_leaderboards())[selected_label()]
