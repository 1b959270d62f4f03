"""Selections on the pages, stored in the URL, and notices for links to unknown things."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Literal

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from bench.core.errors import BenchError
from bench.results.disputes import Dispute
from bench.results.leaderboards import Leaderboard
from leaderboard import markup, notices, reading, words

THREAT_KEY = "threat"
DEFENSE_KEY = "name"
ATTACK_KEY = "attack"
CELL_KEY = "key"
COMPARE_KEY = "with"
FILTER_KEY = "q"
CONTROLS: ContextVar[DeltaGenerator] = ContextVar("controls")
"""The place beside the selection of the threat model, for controls of a page."""


def url_value(key: str) -> str | None:
    """The value in the URL, before a widget removes an unknown one."""
    return st.query_params.get(key)


def warn_when_stale(key: str, what: str, known: Sequence[str]) -> None:
    """Show a notice where the URL names something unknown; the widget would show another thing.

    The widget removes the value from the URL in its first run, so the value is kept in the session
    until the URL names something known. Once the widget exists, its value is not from a link.
    """
    wanted, memory = url_value(key), f"stale {key}"
    if wanted is not None and (wanted in known or key not in st.session_state):
        st.session_state[memory] = None if wanted in known else wanted
    missing = st.session_state.get(memory)
    if missing is not None:
        st.html(markup.notice(notices.stale_link(what, missing), "warn"))


def dismiss_stale_notice(key: str) -> None:
    """Remove the notice after a selection."""
    st.session_state[f"stale {key}"] = None


def theme() -> Literal["light", "dark"]:
    """The theme of the visitor's browser."""
    return "dark" if st.context.theme.type == "dark" else "light"


def select_option(
    key: str, label: str, options: Sequence[str], *, what: str,
    known: Sequence[str] | None = None, place: DeltaGenerator | None = None,
    label_visibility: Literal["visible", "collapsed"] = "visible",
) -> str:  # fmt: skip
    """The selected option, stored in the URL under `key`. Options are shown as plain text.

    `known` are the options of which a filter shows some; a link to a hidden one is not stale.
    """
    warn_when_stale(key, what, options if known is None else known)
    if st.session_state.get(key, url_value(key)) not in options:
        # The default is written into the URL, too: another option may come first later.
        if key not in st.session_state:
            st.query_params[key] = options[0]
        st.session_state[key] = options[0]
    chosen = (place or st).selectbox(
        label,
        list(options),
        index=None,
        format_func=words.plain_text,
        key=key,
        bind="query-params",
        on_change=dismiss_stale_notice,
        args=(key,),
        label_visibility=label_visibility,
    )
    return options[0] if chosen is None else chosen


def select_several(key: str, label: str, options: Sequence[str], *, most: int) -> list[str]:
    """The selected options, stored in the URL under `key`; unknown ones are named in a notice."""
    wanted = st.query_params.get_all(key)
    if key not in st.session_state:
        unknown = [name for name in wanted if name not in options]
        st.session_state[f"stale {key}"] = ", ".join(unknown) or None
        st.session_state[key] = [name for name in wanted if name in options][:most]
    if missing := st.session_state.get(f"stale {key}"):
        st.html(markup.notice(notices.stale_link("entry", missing), "warn"))
    chosen = st.multiselect(
        label,
        list(options),
        format_func=words.plain_text,
        key=key,
        max_selections=most,
        bind="query-params",
        on_change=dismiss_stale_notice,
        args=(key,),
    )
    return list(chosen)


def selected_label() -> str:
    """The label of the selected leaderboard, as in the URL."""
    chosen: str = st.session_state[THREAT_KEY]
    return chosen


def selected_leaderboard() -> Leaderboard:
    """The selected leaderboard."""
    return words.leaderboards_by_label(reading.read_leaderboards())[selected_label()]


def disputes_about(defenses: Sequence[str], leaderboard: Leaderboard) -> list[Dispute]:
    """The disputes about these defenses on a leaderboard; a notice where their file is wrong."""
    try:
        found = reading.read_disputes()
    except BenchError as error:
        st.html(markup.notice(notices.wrong_disputes(str(error)), "warn"))
        return []
    return [one for one in found if any(one.is_about(d, leaderboard.name) for d in defenses)]
