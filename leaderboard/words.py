"""What the pages say: figures as text, rules as sentences, and every empty state."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.core.isolation import Isolation
from bench.core.statistics import Count
from bench.results.leaderboards import Leaderboard
from bench.results.ranking import CertifiedCount

PRODUCT = "Gauntlet"
MOTTO = "Every attack against every defense, under rules declared first and checked by a referee."
BASELINE = "undefended"
MAX_TEXT = 200
"""Characters of a stranger's text that a page prints before it cuts."""
MAX_REASON = 1000
"""The same where a judgement rests on the text: evidence of a sign, the reason of a state."""

NORM_SENTENCES = {
    "Linf": ("L∞", "no pixel may change by more than {eps} of the full range"),
    "L2": ("L2", "the Euclidean length of the whole change is at most {eps}"),
    "L1": ("L1", "the changes of all pixels together are at most {eps}"),
    "L0": ("L0", "at most {eps} pixels may change"),
}
ACCESS_SENTENCES = {
    "nothing": "Nothing: the attacker may not ask the defense at all.",
    "labels": "Labels: the attacker sees only the class that the defense answers.",
    "scores": "Scores: the attacker sees the defense's scores for every class.",
    "gradients": "White box: the attacker sees scores and gradients, and knows the defense.",
}
GOAL_SENTENCES = {
    "untargeted": "Untargeted: any wrong class is a success.",
    "targeted": "Targeted ({rule}): only the declared target class is a success.",
    "nearest": "Nearest: any wrong class, as close to the clean image as possible.",
}
VERDICT_LABELS = {"sound": "✓ sound", "suspect": "▲ suspect", "invalid": "✕ invalid"}
CLAIM_LABELS = {"holds": "✓ holds", "below": "✕ below the claim", "not testable": "○ not testable"}
CHECK_STATES = {"raised": "▲ raised", "clear": "✓ clear", "not tested": "○ not tested"}
ISOLATION_NOTES = {
    Isolation.SANDBOXED.value: "its code ran in a separate worker process: no network, no files",
    Isolation.UNSANDBOXED.value: "its code ran in the harness's process, by --allow-unsandboxed",
}
DEFENSE_TAGS = {
    "bpda": ("stand-in", "declares what an attacker should differentiate through"),
    "randomness": ("random", "answers differently on each call, and says so"),
    "rejects": ("rejects", "may refuse an image; a clean one refused counts as a mistake"),
}
STATE_LABELS = {
    "done": "done",
    "missing": "missing",
    "running": "running",
    "failed": "failed",
    "skipped": "skipped",
    "not applicable": "n/a",
}
STATE_EXPLANATIONS = {
    "done": "every example it met has been judged",
    "missing": "not played, or not with the code as it is now",
    "running": "a worker holds it; Submissions tells its last sign of life",
    "failed": "it stopped without a figure; the reason says who must act",
    "skipped": "left out on purpose",
    "not applicable": "this attack and this defense cannot meet under this threat model",
}


MODE_SENTENCES = {
    "full": "full: every attack meets every example",
    "rank": "rank: a cascade, later attacks meet only the survivors; cells are not comparable",
}
RANK_MODE = (
    "Rank mode: a cascade. The required attacks came first, the cheapest of them in front, and each"
    " later one met only the examples that were left.",
    "The worst case is whole, over the required attacks and over all; ranks come from the first.",
    "A cell says how many of the survivors that an attack met it left standing: cells of different"
    " attacks are not comparable, and none is called the strongest.",
)
SUBMISSIONS_LEAD = (
    "What happened to an entry, and what the workers are doing. A cell without a sign of life is"
    " called stalled, not running."
)
RULES_LEAD = "What the attacker may do on the chosen board, and how every figure here is made."

FOREST_CAPTION = (
    "Each dot is a figure, each line its 95 % interval. Overlapping lines do not decide anything:"
    " ranks come from the paired test on the same examples."
)
TRADE_OFF_CAPTION = (
    "Clean against robust accuracy. On the dashed line no attack took anything; the green staircase"
    " joins the defenses that no other ranked one beats in both. Names may stand above their point."
)
CHECKS_CAPTION = (
    "A high figure may only mean that the attacks could not see the slope. Clear and not tested are"
    " different facts."
)
RADIUS_CAPTION = (
    "Lines: smallest distances found by one attack, valid at every radius. Diamonds: the worst case"
    " over all attacks of a board with that fixed radius, and under it what is proved there; the"
    " truth lies between the two. The dashed line is the board's radius."
)

DETECTOR_CAPTION = (
    "Shares rejected as the threshold falls; the dot is the threshold that the defense has, on the"
    " dashed line it tells nothing. Attacked is what an attack brought: its first success against"
    " classifier and detector together, else its last iterate."
)


def method_sections() -> list[tuple[str, str]]:
    """How everything is computed: titles and static Markdown, the only Markdown of the pages."""
    whole = Path(__file__).with_name("method.md").read_text(encoding="utf-8")
    sections = whole.removeprefix("## ").split("\n## ")
    return [(title, text) for title, _, text in (section.partition("\n") for section in sections)]


class Notice(NamedTuple):
    """A state of the whole page: a heading, sentences, and commands that help."""

    heading: str
    sentences: tuple[str, ...]
    commands: tuple[str, ...] = ()


def plain_text(text: object, most: int = MAX_TEXT) -> str:
    """A stranger's text on one line: no control or direction marks, cut at so many characters."""
    kept = "".join(c if not unicodedata.category(c).startswith("C") else " " for c in str(text))
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def format_share(share: float, n: int) -> str:
    """A share as precisely as n examples support: one decimal, two from 10 000 on."""
    return f"{100 * share:.{2 if n >= 10_000 else 1}f} %"


def format_count(count: Count | None) -> str:
    """`62.0 %`, or a dash where nothing was measured."""
    return format_share(count.k / count.n, count.n) if count and count.n else "—"


def format_interval(count: Count | None) -> str:
    """`57.7-66.1 %, 310/500`."""
    if not count or not count.n:
        return "no figure"
    low, high = (format_share(edge, count.n).removesuffix(" %") for edge in (count.low, count.high))
    return f"{low}–{high} %, {count.k}/{count.n}"  # noqa: RUF001


def certificate_note(found: CertifiedCount) -> str:
    """Who proved it, and how often one of the proofs may be wrong."""
    sure = f"each wrong with probability {found.error:g} at most" if found.error else ""
    return ", ".join(filter(None, (f"by {found.certifier}", sure)))


def rank_range(best: int, worst: int) -> str:
    """`1` or `1-3`."""
    return str(best) if best == worst else f"{best}–{worst}"  # noqa: RUF001


def format_seconds(value: float) -> str:
    """A duration a person can read."""
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def norm_symbol(name: str) -> str:
    """`L∞` for `Linf`."""
    return NORM_SENTENCES.get(name, (name, ""))[0]


def perturbation_sentence(ball: Mapping[str, Any]) -> str:
    """What may be changed, in words and in both notations of the radius."""
    symbol, sentence = NORM_SENTENCES.get(str(ball["name"]), (str(ball["name"]), "radius {eps}"))
    eps, radius = str(ball["eps"]), float(ball["radius"])
    both = eps if "/" not in eps else f"{eps} (= {radius:.4g})"
    return f"{symbol}: {sentence.format(eps=both)}; pixels stay in [0, 1]."


def access_sentence(word: str) -> str:
    """What the attacker may ask, as a sentence."""
    return ACCESS_SENTENCES.get(word, word)


def goal_sentence(wish: Mapping[str, Any]) -> str:
    """What counts as a success, as a sentence."""
    kind = str(wish.get("kind", ""))
    return GOAL_SENTENCES.get(kind, kind).format(rule=wish.get("rule", ""))


def budget_sentence(limit: Mapping[str, Any]) -> str:
    """What may be spent on one example, as a sentence."""
    parts = [
        f"{limit[what]} {name}"
        for what, name in (("gradients", "gradients"), ("queries", "forward passes"))
        if limit.get(what) is not None
    ]
    return "At most " + " and ".join(parts) + " an example." if parts else "Without limit."


def plural(n: int, noun: str) -> str:
    """`1 defense`, `2 defenses`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


FILL_COMMANDS = (
    "bench run                  # every required attack against the quick defenses",
    "bench run --defense all --attack all",
    "bench leaderboard          # come back here",
)


def as_sentence(said: str) -> str:
    """A message of the program as a sentence on a page."""
    return said[:1].upper() + said[1:].replace("`", "")


def no_database(said: str) -> Notice:
    """There is nothing to read yet."""
    return Notice(
        "No database yet",
        (as_sentence(said), "Play the first cells from the same folder, then reload this page:"),
        FILL_COMMANDS,
    )


def unreadable_database(said: str) -> Notice:
    """There is a file, and it is not for us; the command that the program named comes first."""
    told = re.findall(r"`(bench [^`]+)`", said)
    return Notice(
        "This database cannot be read",
        (as_sentence(said), "Nothing was changed. These commands say more, or point to another file:"),
        (*told, "bench db check", "bench leaderboard --db sqlite:///other.db"),
    )


EMPTY_DATABASE = Notice(
    "The database is empty",
    ("It has no threat model and no cell yet. Fill it, then reload this page:",),
    FILL_COMMANDS,
)

NO_SUBMISSIONS = Notice(
    "No submissions yet",
    ("An entry is one folder with a card and a plugin. Check it before you hand it in:",),
    ("bench new defense mine", "bench check submissions/mine", "bench submit submissions/mine"),
)

NOTHING_LEFT = Notice(
    "The filter hides every defense", ("Clear the field above, or press “Show all”.",)
)
NO_CLAIM = Notice("No claim", ("The authors name no robust accuracy under a known threat model.",))
NO_IMAGES = Notice(
    "No images kept",
    ("The store keeps a sample of images where it is asked to, and only of broken examples:",),
    ("bench run --keep-images sample",),
)


NO_JOINT_ATTACK = Notice(
    "No attack has gone for both",
    ("Attacks that do not know of a detector say little of it. One that goes for both:",),
    ("bench run --attack joint-pgd",),
)


def best_defense_sentence(defense: str, robust: Count) -> str:
    """The one-sentence finding of the forest plot."""
    return f"{plain_text(defense)} stands first; all attacks left {format_count(robust)} ({format_interval(robust)})."


def not_evaluated(defense: str, board: Leaderboard) -> Notice:
    """A defense without a cell on the chosen board."""
    return Notice(
        "Not played under this threat model",
        (f"“{plain_text(defense)}” has met no attack under “{plain_text(leaderboard_label(board))}” yet.",),
        (f"bench run --threat {board.name} --defense {defense}{_mode(board)}",),
    )


def no_results(board: Leaderboard) -> Notice:
    """A threat model that nobody has played."""
    return Notice(
        "Nothing played under this threat model yet",
        (f"“{leaderboard_label(board)}” is declared, but no defense has met an attack under it.",),
        (f"bench run --threat {board.name}{_mode(board)}",),
    )


def _mode(board: Leaderboard) -> str:
    return " --mode rank" if board.mode == "rank" else ""


def leaderboard_label(board: Leaderboard) -> str:
    """The threat model's name; a cascade says that it is one."""
    return f"{board.name} in rank mode" if board.mode == "rank" else board.name


def stale_link(what: str, name: str) -> Notice:
    """A link to something that is no longer there."""
    return Notice(
        f"This link names a {what} that is not here",
        (f"“{name}” is not known to this database. What you see below is something else.",),
    )


def leaderboards_by_label(known: Sequence[Leaderboard]) -> dict[str, Leaderboard]:
    """Boards by the name that the URL carries: threat and mode, with n where it repeats."""
    named: dict[str, Leaderboard] = {}
    for board in known:
        for said in (
            leaderboard_label(board),
            f"{leaderboard_label(board)} ({board.n} examples)",
            f"{leaderboard_label(board)} ({board.n} examples, {board.examples[:8]})",
        ):
            if said not in named:
                named[said] = board
                break
    return named
