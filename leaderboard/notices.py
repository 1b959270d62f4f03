"""Notices of the pages: what is missing or refused, and the commands that help."""

from __future__ import annotations

import re
from typing import NamedTuple

from bench.core.cells import BALANCED_ORDER
from bench.results.fast_suite import mode_option
from bench.results.leaderboards import Leaderboard
from leaderboard.words import as_sentence, leaderboard_label, plain_text


class Notice(NamedTuple):
    """A notice on a page: a heading, sentences, and commands to run."""

    heading: str
    sentences: tuple[str, ...]
    commands: tuple[str, ...] = ()


FILL_COMMANDS = (
    "bench run                  # every required attack against the quick defenses",
    "bench run --defense all --attack all",
    "bench leaderboard          # show the results here",
)


def no_database(message: str) -> Notice:
    """The notice for a database file that does not exist."""
    advice = "Evaluate some cells from the same folder, then reload this page:"
    return Notice("No database yet", (as_sentence(message), advice), FILL_COMMANDS)


def unreadable_database(message: str) -> Notice:
    """The notice for a database that cannot be read; a command in the message comes first."""
    commands = re.findall(r"`(bench [^`]+)`", message)
    return Notice(
        "This database cannot be read",
        (as_sentence(message), "Nothing was changed. Examine it, or open another database:"),
        (*commands, "bench db check", "bench leaderboard --db sqlite:///other.db"),
    )


EMPTY_DATABASE = Notice(
    "The database is empty",
    ("It holds no evaluation cell yet. Evaluate some, then reload this page:",),
    FILL_COMMANDS,
)

NO_SUBMISSIONS = Notice(
    "No submissions yet",
    ("A submission is a folder with a card and a plugin. Check it before you submit it:",),
    ("bench new defense mine", "bench check mine", "bench submit mine"),
)

NOTHING_LEFT = Notice(
    "The filters hide every defense", ("Open “Filter and order” above, or press “Show all”.",)
)
NO_CLAIM = Notice("No claim", ("The authors claim no robust accuracy under a known threat model.",))
NO_IMAGES = Notice(
    "No images stored",
    ("The last candidates of the first examples are stored on request:",),
    ("bench run --keep-images sample",),
)


NO_JOINT_ATTACK = Notice(
    "No attack on classifier and detector together",
    ("Attacks that ignore the detector are weak evidence for it. Run a joint attack:",),
    ("bench run --attack joint-pgd",),
)


NO_CELL_CHOSEN = Notice(
    "No cell chosen",
    (
        "Every state in the tables of a defense, an attack and the matrix is a link to its cell."
        " Keys are also here:",
    ),
    ("bench report --json", "bench export images"),
)
NOTHING_TO_COMPARE = Notice(
    "Choose two to four defenses",
    ("They are compared on the same examples, over the attacks that all of them met.",),
    ("bench compare A B",),
)


def unknown_cell(message: str) -> Notice:
    """The notice for a key that names no cell, or several."""
    return Notice("No such cell", (as_sentence(message),))


def wrong_disputes(message: str) -> Notice:
    """The notice for a file of disputes that cannot be read."""
    return Notice("Disputes are not shown", (as_sentence(message),))


def refused_comparison(message: str) -> Notice:
    """The notice for entries that cannot be compared."""
    return Notice("These cannot be compared", (as_sentence(message),))


def not_evaluated(defense: str, leaderboard: Leaderboard) -> Notice:
    """The notice for a defense without a cell under the selected threat model."""
    return Notice(
        "Not evaluated under this threat model",
        (
            f"“{plain_text(defense)}” has not been evaluated under"
            f" “{plain_text(leaderboard_label(leaderboard))}” yet.",
        ),
        (f"bench run --threat {leaderboard.name} --defense {defense}{_mode(leaderboard)}",),
    )


def no_results(leaderboard: Leaderboard) -> Notice:
    """The notice for a threat model without results."""
    return Notice(
        "No results under this threat model yet",
        (
            f"“{leaderboard_label(leaderboard)}” is declared, but no defense has been evaluated"
            " under it.",
        ),
        (f"bench run --threat {leaderboard.name}{_mode(leaderboard)}",),
    )


def _mode(leaderboard: Leaderboard) -> str:
    mode = mode_option(leaderboard.mode)
    return mode if leaderboard.example_order == BALANCED_ORDER else f"{mode} --order file"


def stale_link(what: str, name: str) -> Notice:
    """The notice for a link to something that this database does not have."""
    return Notice(
        f"This link names an unknown {what}",
        (f"“{name}” is not in this database. The page below shows something else.",),
    )
