"""Texts of the pages: figures, the rules of a leaderboard as sentences, and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.core.cells import BALANCED_ORDER
from bench.core.isolation import Isolation
from bench.core.outcomes import Refusals
from bench.core.statistics import Count
from bench.core.visible_text import visible_text
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import NOT_TESTED, PASSED, WARNING
from bench.results.matrix import MatrixCell
from bench.results.ranking import CertifiedCount

PRODUCT = "Gauntlet"
PRODUCT_VERSION = version("gauntlet-bench")
MOTTO = (
    "Adversarial attacks against defenses under declared threat models. Every adversarial example"
    " is re-verified by an independent referee."
)
BASELINE = "undefended"
MAX_TEXT = 200
"""Characters of a submitted text that a page prints."""
MAX_REASON = 1000
"""The same for evidence of a check and the reason of a state."""

NORM_SENTENCES = {
    "Linf": ("L∞", "no pixel may change by more than {eps} of the full range"),
    "L2": ("L2", "the L2 norm of the perturbation is at most {eps}"),
    "L1": ("L1", "the sum of all absolute changes is at most {eps}"),
    "L0": ("L0", "at most {eps} pixels may change"),
}
ACCESS_SENTENCES = {
    "nothing": "None: the attacker cannot query the defense.",
    "labels": "Labels: the attacker sees the predicted class only.",
    "scores": "Scores: the attacker sees the logits of every class.",
    "gradients": "White box: the attacker sees logits and gradients, and knows the defense.",
}
GOAL_SENTENCES = {
    "untargeted": "Untargeted: any wrong class is a success.",
    "targeted": "Targeted ({rule}): only the declared target class is a success.",
    "nearest": "Minimum norm: any wrong class, as close to the clean image as possible.",
}
NOT_ADAPTIVE = (
    "no attack that was written for this defense has been run; such an attack may break more"
)
VERDICT_LABELS = {
    "sound": "✓ sound", "suspect": "▲ suspect", "invalid": "✕ invalid", "": "○ not evaluated",
}  # fmt: skip
CLAIM_LABELS = {"holds": "✓ holds", "below": "✕ below the claim", "not testable": "○ not testable"}
CHECK_STATES = {WARNING: "▲ warning", PASSED: "✓ passed", NOT_TESTED: "○ not tested"}
"""State of a gradient-masking check -> its label, in the order of display."""
CHECK_NAMES = {state: label.partition(" ")[2] for state, label in CHECK_STATES.items()}
"""The same without the symbols."""
ISOLATION_NOTES = {
    Isolation.SANDBOXED.value: "its code ran in a sandboxed process without network and files",
    Isolation.UNSANDBOXED.value: "its code ran in the harness's process, by --allow-unsandboxed",
}
DEFENSE_TAGS = {
    "bpda": ("BPDA", "declares a BPDA approximation for attackers to differentiate through"),
    "randomness": ("randomized", "declares that its outputs are random"),
    "rejects": ("rejects", "may reject an image; a rejected clean image counts as an error"),
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
    "done": "every example has a verified outcome",
    "missing": "not evaluated, or not with the current code",
    "running": "being evaluated; the page Submissions shows the last update",
    "failed": "ended without a result; the reason names the cause",
    "skipped": "excluded deliberately",
    "not applicable": "the attack does not apply to this defense under this threat model",
}


ORDER_WORDS = {
    "balanced": "of its balanced order, a keyed shuffle that alternates between the classes",
    "file": "of its file, in the file's order",
}
MODE_SENTENCES = {
    "full": "full: every attack meets every example",
    "rank": "rank: later attacks meet only examples not broken yet; cells are not comparable",
    "fast": "fast: the suite fast; ranks are not those of standard",
}
FAST_MODE = (
    "The suite fast: APGD with early stops meets every example; the standard suite meets the"
    " survivors nearest to falling and, as an audit, a random sample of the others.",
    "Each row states how many of the sample fell, and an upper bound on what standard would still"
    " break.",
    "A row with a warning, or of whose sample one fell, meets the whole standard suite and has no"
    " rank here; ranks of both suites are never mixed.",
)
RANK_MODE = (
    "Rank mode: a cascade. The required attacks run first, the cheapest ones at the beginning, and"
    " each later attack meets only the examples that are not broken yet.",
    "The worst case over the required attacks decides ranks; it and the worst case over all attacks"
    " are complete. Warnings call for follow-up attacks in full mode only.",
    "A cell shows how many of the examples that its attack met stayed robust: cells of different"
    " attacks are not comparable, and no attack is called the strongest.",
)
SUBMISSIONS_LEAD = (
    "The state of every submission and of every evaluation cell. A running cell without a recent"
    " update is shown as stalled."
)
RULES_LEAD = "The rules of the selected threat model, and how every figure is computed."

FOREST_CAPTION = (
    "Dots are accuracies, lines their 95 % intervals. Overlapping intervals do not imply a tie:"
    " ranks come from paired tests on the same examples."
)
TRADE_OFF_CAPTION = (
    "On the dashed line robust accuracy equals clean accuracy; the green line joins the ranked"
    " defenses that no other ranked defense exceeds in both (the Pareto front). Names may be"
    " shifted upwards."
)
CHECKS_CAPTION = (
    "Masked gradients can make an attack fail without making the model robust. A check that was not"
    " tested is no evidence in favour of the defense."
)
RADIUS_CAPTION = (
    "Lines: from the smallest distances that one attack found, valid at every radius. Diamonds: the"
    " worst case over all attacks under the threat model of that radius, and the certified accuracy"
    " there; the true robust accuracy lies between the two. Dashed line: the radius of this threat"
    " model."
)

DETECTOR_CAPTION = (
    "Rejection rates as the threshold decreases; the dot is the threshold of the defense, the"
    " dashed line is chance. Attacked images are, per example, the attack's first success against"
    " classifier and detector together, or else its last iterate."
)


MEASURES_CAPTION = (
    "Over all attacks that were run. Attacks that stop at their first success reduce confidence no"
    " further, so the falls of confidence and the risk under attack are lower bounds."
)
CORRUPTIONS_CAPTION = (
    "Not adversarial: no attacker chooses these images, and no rank reads these figures. Right are"
    " the examples that are classified correctly on the clean and on the corrupted image."
)
ATTACK_CAPTION = (
    "Broken are examples that are right on the clean image. Only by it: no other attack that was"
    " run breaks them. A dash is a cell without a figure."
)
COMPARE_CAPTION = (
    "Exact McNemar tests on the same examples, over the attacks that all of them met, corrected"
    " after Holm over the pairs shown here."
)
DIFFERENCE_MEANS = (
    "robust accuracy of A minus that of B in points, with the 95 % interval (Clopper-Pearson) given"
    " how many examples differ"
)
CELL_LEAD = "One attack against one defense: everything that its figures depend on."
REPRODUCE_LEAD = (
    "The command evaluates the cell with today's plugins and compares every verdict; the outcomes"
    " are stored beside the first ones. Where a plugin has changed it says so instead."
)
NOT_REPRODUCIBLE = (
    "Only finished cells of attacks are evaluated again; this one has no outcomes to compare with."
)
NOT_MEASURED = "Not measured."


def target_caption(*, targeted: bool) -> str:
    """The caption of the matrix of source and target classes."""
    if targeted:
        return "Examples of each true class that an attack turned into the declared target class."
    return "Examples of each true class that some attack turned into the other class."


def root_sentence(root: str) -> str:
    """The root of all results, and the command that compares it."""
    return f"Root of all results in this database: {root} (`bench db check --root` compares it)."


def method_sections() -> list[tuple[str, str]]:
    """Titles and texts of the method page, the only Markdown of the pages."""
    text = Path(__file__).with_name("method.md").read_text(encoding="utf-8")
    sections = text.removeprefix("## ").split("\n## ")
    return [(title, body) for title, _, body in (section.partition("\n") for section in sections)]


def plain_text(text: object, most: int = MAX_TEXT) -> str:
    """Submitted text on one line, without hidden characters, cut at `most` characters."""
    kept = visible_text(str(text))
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def format_share(share: float, n: int) -> str:
    """A share of n examples in percent: one decimal, two from n = 10 000."""
    return f"{100 * share:.{2 if n >= 10_000 else 1}f} %"


def format_count(count: Count | None) -> str:
    """`62.0 %`, or a dash without a measurement."""
    return format_share(count.k / count.n, count.n) if count and count.n else "—"


def format_interval(count: Count | None) -> str:
    """The 95 % interval and k of n: `57.7-66.1 %, 310/500`."""
    if not count or not count.n:
        return "no result"
    low, high = (format_share(edge, count.n).removesuffix(" %") for edge in (count.low, count.high))
    return f"{low}–{high} %, {count.k}/{count.n}"  # noqa: RUF001


def figure_with_interval(count: Count) -> str:
    """`61.2 % (95 % interval 56.9 to 65.4, 306 of 500)`."""
    low, high = (format_share(edge, count.n).removesuffix(" %") for edge in (count.low, count.high))
    return f"{format_count(count)} (95 % interval {low} to {high}, {count.k} of {count.n})"


def day(at: float | None) -> str:
    """The day (UTC) of a Unix time, or `no date`."""
    return "no date" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def certificate_note(found: CertifiedCount) -> str:
    """The certifier, its version if older, and the probability that a certificate is wrong."""
    bound = f"each wrong with probability at most {found.error:g}" if found.error else ""
    older = "of an older version" if found.older else ""
    return ", ".join(filter(None, (f"by {found.certifier}", bound, older)))


def rank_range(best: int, worst: int) -> str:
    """A range of ranks: `1` or `1-3`."""
    return str(best) if best == worst else f"{best}–{worst}"  # noqa: RUF001


def grouped(value: int | None) -> str:
    """A whole number in groups of three digits, or a dash.

    >>> grouped(1234567), grouped(None)
    ('1 234 567', '—')
    """
    return "—" if value is None else f"{value:,}".replace(",", " ")


def format_seconds(value: float) -> str:
    """A duration in seconds, minutes or hours."""
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def norm_symbol(name: str) -> str:
    """The symbol of a norm: `L∞` for `Linf`."""
    return NORM_SENTENCES.get(name, (name, ""))[0]


def perturbation_sentence(ball: Mapping[str, Any]) -> str:
    """The perturbation set as a sentence, with the radius as fraction and decimal."""
    symbol, sentence = NORM_SENTENCES.get(str(ball["name"]), (str(ball["name"]), "radius {eps}"))
    eps, radius = str(ball["eps"]), float(ball["radius"])
    both = eps if "/" not in eps else f"{eps} (= {radius:.4g})"
    return f"{symbol}: {sentence.format(eps=both)}; pixels stay in [0, 1]."


def access_sentence(word: str) -> str:
    """The attacker's access as a sentence."""
    return ACCESS_SENTENCES.get(word, word)


def goal_sentence(rules: Mapping[str, Any]) -> str:
    """The attacker's goal as a sentence."""
    kind = str(rules.get("kind", ""))
    return GOAL_SENTENCES.get(kind, kind).format(rule=rules.get("rule", ""))


def budget_sentence(limit: Mapping[str, Any]) -> str:
    """The attacker's budget per example as a sentence."""
    parts = [
        f"{limit[what]} {name}"
        for what, name in (("gradients", "gradient evaluations"), ("queries", "queries"))
        if limit.get(what) is not None
    ]
    return "At most " + " and ".join(parts) + " per example." if parts else "No limit."


REFUSAL_REASONS = {
    "norm": "outside the set", "box": "outside [0, 1]", "not_finite": "not finite",
    "not_adversarial": "not adversarial",
}  # fmt: skip
"""Reason of the referee -> words for it."""


def refused(found: Refusals | None) -> str:
    """The number of refused candidates and their reasons: `0`, or `3: 2 outside the set, ...`."""
    if found is None:
        return "—"
    counts = [(getattr(found, name), word) for name, word in REFUSAL_REASONS.items()]
    reasons = ", ".join(f"{count} {word}" for count, word in counts if count)
    return f"{found.total}: {reasons}" if reasons else "0"


def provenance(cell: MatrixCell) -> str:
    """The machine classes of a cell, and what evaluating it again has shown."""
    return "; ".join([*cell.machines, *(one.sentence for one in cell.second)]) or "—"


def plural(n: int, noun: str) -> str:
    """A number with its noun: `1 defense`, `2 defenses`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def as_sentence(message: str) -> str:
    """A message of an error as a sentence on a page."""
    return message[:1].upper() + message[1:].replace("`", "")


def best_defense_sentence(defense: str, robust: Count) -> str:
    """The description of the interval plot."""
    accuracy = f"{format_count(robust)} ({format_interval(robust)})"
    return f"{plain_text(defense)} is first; its robust accuracy is {accuracy}."


def leaderboard_label(leaderboard: Leaderboard) -> str:
    """The name of the threat model, with the mode and the order where they are not the usual."""
    order = "" if leaderboard.example_order == BALANCED_ORDER else " in file order"
    mode = {"full": "", "fast": " by the suite fast"}.get(leaderboard.mode, " in rank mode")
    return f"{leaderboard.name}{order}{mode}"


def leaderboards_by_label(known: Sequence[Leaderboard]) -> dict[str, Leaderboard]:
    """Leaderboards by their name in the URL: threat model and mode, with n where ambiguous."""
    named: dict[str, Leaderboard] = {}
    for leaderboard in known:
        label, n = leaderboard_label(leaderboard), leaderboard.n
        for name in (
            label,
            f"{label} ({n} examples)",
            f"{label} ({n} examples, {leaderboard.examples[:8]})",
        ):
            if name not in named:
                named[name] = leaderboard
                break
    return named
