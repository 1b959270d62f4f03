"""Facets and order of the ranking: all in the URL, with a note on what they hide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import streamlit as st

from bench.core.cards import DefenseCard
from bench.core.statistics import Count
from bench.results.leaderboards import Leaderboard
from bench.results.ranking import RankingRow
from leaderboard import choice, words

Record = TypeVar("Record")
Facet = Callable[[Record], Sequence[str]]
"""A record -> its values; it is shown where one of them is chosen."""

BOARD_FACETS: Mapping[str, tuple[str, Facet[Leaderboard]]] = {
    "data": ("Data set", lambda board: [board.dataset]),
    "norm": ("Perturbation set", lambda board: [words.norm_symbol(board.set["name"])]),
    "access": ("Attacker's access", lambda board: [board.access]),
}
"""Key in the URL -> label and facet of the threat models."""
NOT_RANKED = "not ranked"


def _verdicts(row: RankingRow) -> list[str]:
    return [row.verdict or "not evaluated", *([] if row.rank else [NOT_RANKED])]


def _traits(row: RankingRow, card: DefenseCard) -> list[str]:
    tags = words.DEFENSE_TAGS.items()
    found = [label for field, (label, _) in tags if getattr(card, field)]
    found += ["certified"] if row.certified and row.certified.count.k else []
    found += ["claim"] if row.claim else []
    found += ["attack written for it"] if row.adaptive else []
    return found or ["none of these"]


def _share(count: Count) -> float:
    return count.k / count.n if count.n else -1.0


ORDERS: Mapping[str, Callable[[RankingRow], float | str] | None] = {
    "rank": None,
    "robust accuracy": lambda row: -_share(row.robust),
    "clean accuracy": lambda row: -_share(row.clean),
    "drop from clean": lambda row: _share(row.clean) - _share(row.robust),
    "name": lambda row: row.defense,
}
"""Name of an order -> its key; None: as ranked."""
ORDER_KEY = "sort"


def choose_values(key: str, label: str, values: Sequence[str]) -> list[str]:
    """The values that are chosen under `key` in the URL, all where it is empty.

    Fewer than two values are no choice, and nothing is shown.
    """
    known = sorted(set(values))
    if len(known) < 2:
        return []
    wanted = [value for value in st.query_params.get_all(key) if value in known]
    if key not in st.session_state:
        st.session_state[key] = wanted
    st.session_state[key] = [value for value in st.session_state[key] or [] if value in known]
    return list(
        st.pills(label, known, selection_mode="multi", key=key, bind="query-params",
                 format_func=words.plain_text) or []
    )  # fmt: skip


def chosen_boards(known: Mapping[str, Leaderboard]) -> dict[str, Leaderboard]:
    """The leaderboards that the facets leave, by label; all of them where none is left."""
    left = dict(known)
    for key, (label, facet) in BOARD_FACETS.items():
        chosen = choose_values(key, label, [v for board in known.values() for v in facet(board)])
        left = {
            name: board
            for name, board in left.items()
            if not chosen or set(facet(board)) & set(chosen)
        }
    if not left:
        st.caption("No threat model has all of these; all are listed.")
    return left or dict(known)


def chosen_rows(
    rows: Sequence[RankingRow], cards: Mapping[str, DefenseCard]
) -> tuple[list[RankingRow], list[str]]:
    """The rows that name and facets leave, in the chosen order, and which of these hide others."""
    facets: Mapping[str, tuple[str, Facet[RankingRow]]] = {
        "verdict": ("Verdict", _verdicts),
        "origin": ("Origin", lambda row: [cards[row.defense].origin]),
        "trait": ("Properties", lambda row: _traits(row, cards[row.defense])),
    }
    left, hiding = list(rows), []
    name = st.text_input("Name contains", key=choice.FILTER_KEY, bind="query-params")
    left = [row for row in left if name.casefold() in row.defense.casefold()]
    if len(left) < len(rows):
        hiding.append("name")
    for key, (label, facet) in facets.items():
        chosen = choose_values(key, label, [value for row in rows for value in facet(row)])
        if chosen:
            left = [row for row in left if set(facet(row)) & set(chosen)]
            hiding.append(label.lower())
    order = choice.select_option(ORDER_KEY, "Order by", list(ORDERS), what="order")
    by = ORDERS[order]
    return (left if by is None else sorted(left, key=by)), hiding


def clear_all() -> None:
    """Clear every filter of the rows; the callback of a button."""
    st.session_state[choice.FILTER_KEY] = ""
    for key in ("verdict", "origin", "trait"):
        if key in st.session_state:
            st.session_state[key] = []
