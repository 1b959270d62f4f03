"""A small database of synthetic outcomes: robust, masked, failed, unfinished, hostile names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from bench.core.cards import (
    AttackCard,
    Card,
    CertifierCard,
    Claim,
    DatasetCard,
    DefenseCard,
    DiagnosticCard,
    ThreatCard,
)
from bench.core.cells import CLEAN, Cell, CellState, Culprit, Failure
from bench.core.hashing import digest
from bench.core.outcomes import Chunk, KeptImage, Outcomes, Verdict
from bench.core.protocols import LeaderboardProtocol
from bench.store import CertificateRow, EvidenceRow, PlannedCell, Store

HOSTILE = "![x](http://evil.example/x.png)<img src=http://evil.example/y.png>:red[a]"
"""A name that the registry refuses; the pages must escape it all the same."""

N = 500
SET = "digits-first-500"


@dataclass(frozen=True)
class Strength:
    """Clean and robust accuracy of a synthetic defense."""

    clean: float
    """Clean accuracy."""
    margin: float
    """Typical radius at which an example breaks, relative to that of the threat model."""
    masked: bool = False
    """Whether gradient attacks break fewer examples than others."""


DEFENSES: Mapping[str, tuple[Strength, dict[str, Any]]] = {
    "undefended": (Strength(0.975, 0.35), {}),
    "adversarial-training": (
        Strength(0.94, 1.5),
        {"claims": (Claim("digits-linf", 0.62, "arXiv:1706.06083"),)},
    ),
    "trades": (
        Strength(0.93, 1.45),
        {"claims": (Claim("digits-linf", 0.81, "arXiv:1901.08573"),)},
    ),
    "bit-depth-3": (
        Strength(0.965, 0.6, masked=True),
        {
            "bpda": True,
            "claims": (Claim("digits-linf", 0.75, "arXiv:1704.01155"),),
        },
    ),
    "noisy-logits": (Strength(0.95, 0.55, masked=True), {"randomness": 10}),
    "lipschitz-margin": (Strength(0.88, 1.2), {}),
    HOSTILE: (Strength(0.9, 0.8), {}),
    "half-evaluated": (Strength(0.96, 1.0), {}),
    "detector": (Strength(0.96, 0.7), {"rejects": 0.05}),
}
ATTACKS: Mapping[str, tuple[float, dict[str, Any]]] = {
    "fgsm": (0.55, {"needs": "gradients", "steps": 1}),
    "pgd": (0.9, {"needs": "gradients", "steps": 40}),
    "apgd": (1.0, {"needs": "gradients", "steps": 100}),
    "deepfool": (0.8, {"needs": "gradients", "steps": 50, "minimises": True}),
    "square": (0.75, {"needs": "scores", "steps": 400}),
    "random-noise": (0.15, {"needs": "labels", "steps": 20, "samples": True}),
}
PAPER = "arXiv:1706.06083"
REQUIRED = ("apgd", "pgd", "square")
CASCADES = ("undefended", "trades", "lipschitz-margin")
"""Defenses that are evaluated in rank mode, too."""


def _threat(
    name: str, norm: str, eps: str, radius: float, order: int, **more: Any
) -> tuple[ThreatCard, float]:
    protocol = more.pop("protocol", LeaderboardProtocol(tuple(sorted(REQUIRED))))
    rules = {
        "dataset": "digits",
        "set": {"name": norm, "eps": eps, "radius": radius},
        "access": "gradients",
        "goal": {"kind": "untargeted", "rule": ""},
        "budget": {"gradients": None, "queries": None},
        **more,
    }
    own: dict[str, Any] = {"id": digest(rules)[:16], "examples": N, "order": order, **rules}
    summary = f"Real handwriting, {norm} up to {eps}."
    return ThreatCard(
        name=name, origin="built-in", summary=summary, protocol=protocol, **own
    ), radius


THREATS = (
    _threat("digits-linf", "Linf", "51/255", 0.2, 1),
    _threat("digits-l2", "L2", "1", 1.0, 2),
    _threat(
        "digits-linf-nearest", "Linf", "1", 1.0, 3,
        goal={"kind": "nearest", "rule": ""},
        protocol=LeaderboardProtocol(("deepfool",), ranked=False),
    ),
)  # fmt: skip
BUILT = [("digits-linf", 1.0), ("digits-l2", 1.0), ("digits-linf-nearest", 5.0)]


def cards() -> Iterator[Card]:
    """The cards of all plugins."""
    yield from (card for card, _ in THREATS)
    for name, (_, extra) in ATTACKS.items():
        yield AttackCard(
            name=name, origin="built-in", digest=digest(["attack", name]), cite=PAPER,
            summary="A synthetic attack.", **extra,
        )  # fmt: skip
    for name, (_, extra) in DEFENSES.items():
        origin = "submission" if name == HOSTILE else "built-in"
        yield DefenseCard(
            name=name, origin=origin, digest=digest(["defense", name]), cite=PAPER,
            summary=f"A synthetic defense called {name}.", surrogate="undefended", **extra,
        )  # fmt: skip
    yield DiagnosticCard(name="gradient-check", origin="built-in", summary="Are there gradients?")
    source = digest(["certifier", "margin-bound"])
    yield CertifierCard(name="margin-bound", origin="built-in", digest=source)
    yield DatasetCard(name="digits", origin="built-in", summary="Real handwriting, 8x8.")


@dataclass(frozen=True)
class _Digits:
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int16]


def _digits() -> _Digits:
    data = load_digits()
    images = np.rint(data.images[:N] * 255 / 16).astype(np.uint8)[:, None]
    return _Digits(images, data.target[:N].astype(np.int16))


def _judged(
    margin: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int16],
    radius: float, nearest: bool, steps: int,
) -> Outcomes:  # fmt: skip
    """Outcomes of one attack that breaks example i at radius `margin[i]`."""
    n = len(labels)
    broken = ~right | (margin <= radius)
    distance = np.where(right, margin if nearest else np.minimum(margin, radius), 0.0)
    late = np.ceil(steps * np.clip(margin / radius, 0, 1) ** 2).astype(np.int32)
    step = np.where(broken, np.where(right, late, 0), -1).astype(np.int32)
    share = np.where(broken, 0.17, 0.5 + 0.45 * np.clip(margin / (radius + margin), 0, 1))
    return Outcomes(
        item=np.arange(n, dtype=np.int32),
        verdict=np.where(broken, Verdict.BROKEN, Verdict.ROBUST).astype(np.uint8),
        eight_bit=broken,
        fragile=np.zeros(n, np.bool_),
        distance=distance,
        label=np.where(broken, (labels + 1) % 10, labels).astype(np.int16),
        confidence=np.full(n, 0.83, np.float32),
        forwards=np.where(broken, step + 1, steps).astype(np.int32),
        gradients=np.where(broken, step, steps).astype(np.int32),
        final_checks=np.ones(n, np.int32),
        step=step,
        restart=np.where(broken, 0, -1).astype(np.int32),
        rejection=np.full(n, -np.inf, np.float32),
        target=np.full(n, -1, np.int16),
        claimed=broken.astype(np.int8),
        true_confidence=share.astype(np.float32),
        true_rank=broken.astype(np.int16),
        loss=-np.log(share).astype(np.float32),
        share=np.full(n, -1, np.float32),
    )


def _kept(digits: _Digits, found: Outcomes, eps: float) -> tuple[KeptImage, ...]:
    rng = np.random.default_rng(7)
    won = np.flatnonzero((found.verdict == Verdict.BROKEN) & (found.step > 0))[:6]
    kept = []
    for item in won:
        original = digits.images[item]
        noise = rng.uniform(-eps, eps, original.shape)
        adversarial = np.clip(original / 255 + noise, 0, 1).astype(np.float32)
        kept.append(
            KeptImage(int(item), original, adversarial, int(digits.labels[item]),
                      int(digits.labels[item]), 0.97, int(found.label[item]), 0.83)
        )  # fmt: skip
    return tuple(kept)


def _cell(threat: ThreatCard | None, defense: str, attack: str) -> Cell:
    return Cell(
        threat=threat.name if threat else "",
        defense=defense,
        attack=attack,
        threat_id=threat.id if threat else "",
        defense_digest=digest(["defense", defense]),
        attack_digest=digest(["attack", attack]) if threat else "",
        examples=SET,
        items=N,
    )


def _scored(found: Outcomes, *, clean: bool) -> Outcomes:
    """Outcomes with rejection scores: attacked images score one more; broken ones are accepted."""
    score = np.random.default_rng(found.item.size + clean).normal(-1.7 + (not clean), 1, N)
    broken = found.verdict == Verdict.BROKEN
    if clean:
        broken |= score > 0
    else:
        score = np.where(broken, -np.abs(score), score)
    verdict = np.where(broken, Verdict.BROKEN, Verdict.ROBUST).astype(np.uint8)
    return found._replace(verdict=verdict, rejection=score.astype(np.float32))


def _play(store: Store, cell: Cell, found: Outcomes, images: tuple[KeptImage, ...] = ()) -> None:
    if "rejects" in DEFENSES[cell.defense][1]:
        found = _scored(found, clean=cell.attack == CLEAN)
    lease = store.lease(cell.key, "worker-1@tests:1")
    assert lease is not None
    store.record(lease, Chunk(found, seconds=2.5, images=images))
    store.finish(lease)


def fill(store: Store) -> None:
    """Store finished, failed, skipped and unfinished cells that the pages distinguish."""
    digits = _digits()
    store.record_cards(cards())
    classes = tuple(map(str, range(10)))
    store.keep_examples(SET, "digits", N, digits.labels, classes, (1, 8, 8))
    for number, (name, (strength, _)) in enumerate(DEFENSES.items()):
        rng = np.random.default_rng(number)
        right = rng.uniform(size=N) < strength.clean
        margin = rng.lognormal(np.log(strength.margin), 0.6, N)
        clean = _cell(None, name, CLEAN)
        store.plan([PlannedCell(clean, required=True)])
        _play(store, clean, _judged(np.full(N, 9.0), right, digits.labels, 1.0, False, 0))
        for (threat, radius), (_, scale) in zip(THREATS, BUILT, strict=True):
            _play_board(store, digits, threat, radius, name, strength, right, margin / scale)
        if name in CASCADES:
            _play_cascade(store, digits, name, right, margin)
    _say_more(store)


def _play_board(
    store: Store, digits: _Digits, threat: ThreatCard, radius: float, name: str, strength: Strength,
    right: npt.NDArray[np.bool_], margin: npt.NDArray[np.float64],
) -> None:  # fmt: skip
    nearest = threat.goal["kind"] == "nearest"
    for attack, (power, detail) in ATTACKS.items():
        cell = _cell(threat, name, attack)
        required = attack in threat.protocol.required
        minimises = bool(detail.get("minimises"))
        if nearest and not minimises:
            reason = f"{attack} does not look for the nearest wrong answer"
            store.plan([PlannedCell(cell, CellState.NOT_APPLICABLE, reason, required)])
            continue
        if name == "half-evaluated" and attack in ("square", "random-noise", "deepfool"):
            state = CellState.SKIPPED if attack == "random-noise" else CellState.MISSING
            store.plan([PlannedCell(cell, state, "left out by --attack", required)])
            continue
        store.plan([PlannedCell(cell, required=required)])
        if name == "noisy-logits" and attack == "deepfool":
            lease = store.lease(cell.key, "worker-1@tests:1")
            assert lease is not None
            store.fail(lease, Failure(Culprit.PLUGIN, "deepfool gave NaN on 3 images; mask them."))
            continue
        if name == "half-evaluated" and attack == "fgsm":
            store.lease(cell.key, "worker-2@elsewhere:1")
            continue
        weak = strength.masked and detail["needs"] == "gradients"
        reach = margin * radius / (power * (0.35 if weak else 1.0))
        found = _judged(reach, right, digits.labels, radius, nearest, int(detail["steps"]))
        images = () if nearest else _kept(digits, found, min(radius, 0.2))
        _play(store, cell, found, images)


def _play_cascade(
    store: Store, digits: _Digits, name: str, right: npt.NDArray[np.bool_],
    margin: npt.NDArray[np.float64],
) -> None:  # fmt: skip
    """Store the first threat model in rank mode: each attack meets the remaining examples."""
    (threat, radius), left, before = THREATS[0], np.arange(N), ""
    for attack in ("fgsm", "pgd", "apgd", "square"):
        power, detail = ATTACKS[attack]
        steps = int(detail["steps"])
        whole = _judged(margin * radius / power, right, digits.labels, radius, False, steps)
        found = Outcomes._make(column[left] for column in whole)
        cell = replace(_cell(threat, name, attack), mode="rank", before=before, items=len(left))
        store.plan([PlannedCell(cell, required=attack in REQUIRED)])
        _play(store, cell, found)
        before, left = cell.key, np.array(found.survivors())


def _say_more(store: Store) -> None:
    for name in DEFENSES:
        finding = "raised" if name == "bit-depth-3" else "clear"
        zero = 31 if finding == "raised" else 0
        sentence = f"the gradient is zero on {zero} of 32 images"
        found = EvidenceRow("gradient-check", finding, sentence, "")
        store.record_evidence(name, digest(["defense", name]), SET, found)
    proven = np.random.default_rng(1).uniform(size=N) < 0.3
    linf = THREATS[0][0]
    known = store.cells(threat="digits-linf", mode="full")
    key = next(
        c.key for c in known if (c.cell.defense, c.cell.attack) == ("lipschitz-margin", "apgd")
    )
    proven &= store.outcomes(key).verdict == Verdict.ROBUST
    square = next(
        c.key for c in known if (c.cell.defense, c.cell.attack) == ("lipschitz-margin", "square")
    )
    proven &= store.outcomes(square).verdict == Verdict.ROBUST
    whose = ("lipschitz-margin", digest(["defense", "lipschitz-margin"]))
    by = ("margin-bound", digest(["certifier", "margin-bound"]))
    store.record_certificate(
        linf.id, SET, CertificateRow(*whose, *by, exact=True, certified=proven)
    )
    store.record_submission_state("careful-entry", "received")
    store.record_submission_state("careful-entry", "queued")
    store.record_submission_state("careful-entry", "running")
    store.record_submission_state("careful-entry", "finished")
    store.record_submission_state(HOSTILE, "received")
    store.record_submission_state(
        HOSTILE, "rejected", f"card.toml: {HOSTILE} is not a name; use a-z, 0-9."
    )
    store.record_submission_state("waiting-entry", "received")
    store.record_submission_state("waiting-entry", "queued")


def add_attacks(store: Store, met: int, unmet: int) -> None:
    """Store more attacks of the first threat model: `met` with a cell, `unmet` without."""
    digits, (threat, radius) = _digits(), THREATS[0]
    for number in range(met + unmet):
        name = f"a-further-attack-{number}"
        card = AttackCard(name=name, origin="built-in", digest=digest(["attack", name]), steps=20)
        store.record_cards([card])
        cell = _cell(threat, "trades", name)
        if number < met:
            store.plan([PlannedCell(cell)])
            reach = np.random.default_rng(number).lognormal(0, 0.6, N) * radius
            right = np.ones(N, np.bool_)
            _play(store, cell, _judged(reach, right, digits.labels, radius, False, 20))
        else:
            store.plan([PlannedCell(cell, CellState.NOT_APPLICABLE, "not for this norm")])
