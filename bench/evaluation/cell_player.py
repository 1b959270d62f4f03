"""Evaluates one cell without a database: runs the attack, then the referee on its candidates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from bench.core.outcomes import Chunk, Outcomes
from bench.engine.precision_audit import PrecisionAudit
from bench.engine.runner import run_attack
from bench.evaluation.built_defense import BuiltDefense, Heartbeat, no_heartbeat
from bench.evaluation.events import Listener, ignore_event, missed_in_low_precision
from bench.evaluation.plan import PlannedPair
from bench.referee.referee import KEPT_IMAGES, judge


def engine_order(count: int) -> list[int] | None:
    """None: the engine chooses the order in which it evaluates `count` items."""
    return None


@dataclass
class CellPlayer:
    """Evaluates cells of built defenses; used by workers and to reproduce a cell."""

    keep_images: str = "sample"
    """Which adversarial images the chunks carry: `none`, `sample` or `all`."""
    order: Callable[[int], list[int] | None] = engine_order
    """Number of items -> the order in which they are evaluated; outcomes do not depend on it."""
    listener: Listener = ignore_event

    def chunks(
        self,
        pair: PlannedPair,
        defense: BuiltDefense,
        surrogate: BuiltDefense | None = None,
        *,
        finished: Sequence[int] = (),
        included: Collection[int] | None = None,
        heartbeat: Heartbeat = no_heartbeat,
    ) -> Iterator[Chunk]:
        """Run the attack of a pair and yield the referee's outcomes, chunk by chunk.

        Args:
            pair: threat model and attack.
            defense: the built defense.
            surrogate: the built surrogate model of a transfer attack; None for other attacks.
            finished: items that have an outcome already.
            included: the items of a cell in a cascade; None: all items.
            heartbeat: called between the groups of a clean pass and every few attack steps.
        """
        threat, attack = pair.threat, pair.attack
        for built in (defense, surrogate):
            if built is not None:
                built.clean_pass(heartbeat)
        referee = defense.referee(threat, attack)
        spec = replace(defense.cell_spec(threat, attack, surrogate), heartbeat=heartbeat)
        exact = None
        if defense.attacked_model(threat, attack).low_precision:
            exact = defense.cell_spec(threat, attack, surrogate, exact=True)
            exact = replace(exact, heartbeat=heartbeat)
        excluded = set() if included is None else set(range(len(spec.x))) - set(included)
        candidates = run_attack(
            spec, referee.confirm, finished=[*finished, *excluded], order=self.order(len(spec.x)),
            exact=exact, on_audit=lambda audit: self._report_audit(pair, audit),
        )  # fmt: skip
        judged = judge(
            candidates, referee, defense.clean_answers(threat),
            keep=() if self.keep_images == "none" else range(KEPT_IMAGES),
            keep_all=self.keep_images == "all",
        )  # fmt: skip
        # A declared-random defense is evaluated in whole groups, excluded items among them.
        return (chunk.without(excluded) for chunk in judged) if excluded else judged

    def _report_audit(self, pair: PlannedPair, audit: PrecisionAudit) -> None:
        if audit.broken:
            self.listener(missed_in_low_precision(pair, audit))

    def outcomes(
        self,
        pair: PlannedPair,
        defense: BuiltDefense,
        surrogate: BuiltDefense | None = None,
        *,
        included: Collection[int] | None = None,
    ) -> Outcomes:
        """The outcomes of a whole cell; torch's global random state is left unchanged."""
        device = defense.settings.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            chunks = list(self.chunks(pair, defense, surrogate, included=included))
        return Outcomes.concatenate([chunk.outcomes for chunk in chunks])
