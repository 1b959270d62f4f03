"""Names of all gradient-masking checks: what a warning suggests, and what answers it.

The protocol of a threat model names the follow-up attacks of each check; `answered_by` names the
kinds of attacks that suit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EOT = "EOT"
"""Attacks that average each gradient over more draws (arXiv:1707.07397)."""
RESCALED = "rescaled logits"
"""Attacks on rescaled and shifted logits."""
SURROGATE = "learned surrogate"
"""Transfer attacks from a surrogate model learned from the defense's labels."""
BANK = "fixed adversarial examples"
"""Adversarial examples of public models that are fixed for the protocol."""
SCORES = "score-based attack"
DECISION = "decision-based attack"
MORE_STEPS = "more steps"
"""Gradient attacks with more steps and restarts."""

ANSWERS = (MORE_STEPS, RESCALED, EOT, BANK, SURROGATE, SCORES, DECISION)
"""All kinds, in the order in which follow-up attacks run: those that need the least come last."""

_WITHOUT_GRADIENTS = (SURROGATE, BANK, SCORES, DECISION)


@dataclass(frozen=True)
class CheckMeaning:
    """What a warning of one check suggests."""

    suggests: str
    """A clause about the defense, without a full stop."""
    answered_by: tuple[str, ...] = ()
    """Kinds of attacks that answer it; empty: no attack can."""
    invalidates: bool = False
    """Whether the row's figure is then no fact about the defense."""


MASKING_CHECKS: Mapping[str, CheckMeaning] = {
    "one-step-beats-iterative": CheckMeaning(
        "iterative attacks are misled by its gradient", (MORE_STEPS, RESCALED, *_WITHOUT_GRADIENTS)
    ),
    "black-box-beats-white-box": CheckMeaning(
        "its gradient does not lead to adversarial examples that exist",
        (EOT, RESCALED, *_WITHOUT_GRADIENTS),
    ),
    "random-beats-gradient": CheckMeaning(
        "its gradient leads away from adversarial examples that exist",
        (EOT, RESCALED, *_WITHOUT_GRADIENTS),
    ),
    "larger-bound-does-not-help": CheckMeaning(
        "attacks are misled, since each radius contains the smaller ones",
        (RESCALED, *_WITHOUT_GRADIENTS),
    ),
    "unbounded-falls-short": CheckMeaning(
        "attacks are misled, since adversarial images exist in the whole pixel box",
        (RESCALED, *_WITHOUT_GRADIENTS),
    ),
    "not-converged": CheckMeaning("attacks with more steps break more", (MORE_STEPS,)),
    "canaries": CheckMeaning("the code that evaluated it computes wrong results", invalidates=True),
    "soundness-error": CheckMeaning("a certificate is wrong", invalidates=True),
    "finite-logits": CheckMeaning(
        "losses and gradients of attacks are not finite", (SURROGATE, BANK, DECISION)
    ),
    "logit-resolution": CheckMeaning(
        "losses and gradients of attacks are rounded", (RESCALED, *_WITHOUT_GRADIENTS)
    ),
    "probabilities": CheckMeaning(
        "losses that expect logits have tiny gradients", (RESCALED, *_WITHOUT_GRADIENTS)
    ),
    "zero-gradients": CheckMeaning("gradients are shattered", _WITHOUT_GRADIENTS),
    "logit-jumps": CheckMeaning(
        "logits jump at decision boundaries, where no gradient leads", _WITHOUT_GRADIENTS
    ),
    "gradient-scale": CheckMeaning("gradients vanish or explode", (RESCALED, *_WITHOUT_GRADIENTS)),
    "stochastic-gradients": CheckMeaning("gradients are stochastic", (EOT, DECISION)),
    "gradient-agrees": CheckMeaning("gradients are not those of the logits", _WITHOUT_GRADIENTS),
    "gradient-ascends": CheckMeaning(
        "gradients help an attack no more than random directions",
        (EOT, RESCALED, *_WITHOUT_GRADIENTS),
    ),
    "approximation-ascends": CheckMeaning(
        "the declared BPDA approximation misleads attacks", _WITHOUT_GRADIENTS
    ),
    "label-leaking": CheckMeaning(
        "it recognises one-step adversarial examples", (MORE_STEPS, *_WITHOUT_GRADIENTS)
    ),
    "inner-optimisation": CheckMeaning(
        "it is dynamic, and attacks spend fewer steps than it does",
        (MORE_STEPS, *_WITHOUT_GRADIENTS),
    ),
    "declared-randomness": CheckMeaning(
        "its randomness hides what it answers on average", (EOT, DECISION)
    ),
    "deterministic": CheckMeaning("its answers vary without a cause", invalidates=True),
    "batch-independent": CheckMeaning(
        "the answer to an image depends on other images", invalidates=True
    ),
    "stateless": CheckMeaning("its answers depend on earlier queries", invalidates=True),
    "fresh-process": CheckMeaning("its answers depend on the process", invalidates=True),
    "gradient-mode": CheckMeaning(
        "its answers depend on whether a gradient is computed", invalidates=True
    ),
    "memorised-images": CheckMeaning("it recognises the test images", invalidates=True),
}
"""Check -> its meaning."""

INVALIDATING = frozenset(name for name, meaning in MASKING_CHECKS.items() if meaning.invalidates)
"""Checks whose warning makes a row invalid: its figure is not a fact about the defense."""
