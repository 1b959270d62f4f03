"""Evaluates one cell without a database: runs the attack, then the referee on its candidates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from bench.core.fitted import FittedPoint
from bench.core.outcomes import Chunk, Outcomes
from bench.engine.both_gradients import run_with_both_gradients
from bench.engine.cell_spec import Candidates, CellSpec
from bench.engine.precision_audit import PrecisionAudit
from bench.engine.runner import run_attack
from bench.engine.shared_point import offer_point
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.events import Listener, ignore_event, missed_in_low_precision
from bench.evaluation.plan import PlannedPair
from bench.evaluation.shared_fit import fitted_point
from bench.evaluation.surrogate_model import Heartbeat, PlannedSurrogate, no_heartbeat
from bench.plugin import Traits, is_shared
from bench.referee.referee import KEPT_IMAGES, judge

GROUPS = (None, 32, 8)
"""Items that the first, second and later attempts at a cell evaluate before they commit: an attempt
that ended before its first outcome may have had no time for more. None: as the batch allows."""


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
        surrogate: PlannedSurrogate | None = None,
        *,
        finished: Sequence[int] = (),
        included: Collection[int] | None = None,
        heartbeat: Heartbeat = no_heartbeat,
        group: int | None = None,
        fitted: FittedPoint | None = None,
    ) -> Iterator[Chunk]:
        """Run the attack of a pair and yield the referee's outcomes, chunk by chunk.

        Args:
            pair: threat model and attack.
            defense: the built defense.
            surrogate: the built surrogate model of a transfer attack; None for other attacks.
            finished: items that have an outcome already.
            included: the items of a cell in a cascade; None: all items.
            heartbeat: called between the groups of a clean pass and every few attack steps.
            group: evaluate so many items to their end before the next ones, where the attack and
                the defense allow it; None: as the batch allows. Outcomes do not depend on it.
            fitted: the point of a shared attack; None: it is fitted first. None for other attacks.
        """
        if fitted is None and is_shared(pair.attack):
            fitted = fitted_point(pair, defense, heartbeat)
        if group is None or not _divisible(pair, defense):
            yield from self._chunks(pair, defense, surrogate, finished, included, heartbeat, fitted)
            return
        possible = set(range(defense.item_count(pair.threat, pair.attack))) - set(finished)
        left = sorted(possible if included is None else possible & set(included))
        for first in range(0, len(left), group):
            part = left[first : first + group]
            yield from self._chunks(pair, defense, surrogate, finished, part, heartbeat, fitted)

    def _chunks(
        self, pair: PlannedPair, defense: BuiltDefense, surrogate: PlannedSurrogate | None,
        finished: Sequence[int], included: Collection[int] | None, heartbeat: Heartbeat,
        fitted: FittedPoint | None,
    ) -> Iterator[Chunk]:  # fmt: skip
        """The outcomes of the included items that are not finished."""
        threat, attack = pair.threat, pair.attack
        defense.clean_pass(heartbeat)
        queried = None if surrogate is None else surrogate.model(heartbeat)
        shared = None if fitted is None else torch.tensor(fitted.point).to(defense.settings.device)
        referee = defense.referee(threat, attack, shared)
        spec = replace(
            defense.cell_spec(threat, attack, queried), heartbeat=heartbeat,
            iterates=None if surrogate is None else surrogate.iterates,
        )  # fmt: skip
        exact = None
        if defense.attacked_model(threat, attack).low_precision:
            exact = defense.cell_spec(threat, attack, queried, exact=True)
            exact = replace(exact, heartbeat=heartbeat)
        possible = set(range(defense.item_count(threat, attack)))
        chosen = possible if included is None else possible & set(included)
        excluded = set(range(len(spec.x))) - chosen

        def run(cell: CellSpec, left_out: Sequence[int]) -> Iterator[Candidates]:
            if shared is not None:
                return offer_point(cell, shared, referee.confirm, chosen - set(finished))
            return run_attack(
                cell, referee.confirm, finished=[*finished, *excluded, *left_out],
                order=self.order(len(spec.x)), exact=exact,
                on_audit=lambda audit: self._report_audit(pair, audit),
            )  # fmt: skip

        true = defense.true_gradient_spec(threat, attack)
        candidates = (
            run(spec, ())
            if true is None
            else run_with_both_gradients(spec, replace(true, heartbeat=heartbeat), run)
        )
        judged = judge(
            candidates, referee, defense.clean_answers(threat),
            keep=() if self.keep_images == "none" else range(KEPT_IMAGES),
            keep_all=self.keep_images == "all",
        )  # fmt: skip
        judged = defense.guard.checked(
            judged,
            (referee.x, referee.y, referee.target),
            f"{attack.name} or {defense.defense.name}",
        )
        # A declared-random defense is evaluated in whole groups, excluded items among them.
        return (chunk.without(excluded) for chunk in judged) if excluded else judged

    def _report_audit(self, pair: PlannedPair, audit: PrecisionAudit) -> None:
        if audit.broken:
            self.listener(missed_in_low_precision(pair, audit))

    def outcomes(
        self,
        pair: PlannedPair,
        defense: BuiltDefense,
        surrogate: PlannedSurrogate | None = None,
        *,
        included: Collection[int] | None = None,
    ) -> Outcomes:
        """The outcomes of a whole cell; torch's global random state is left unchanged."""
        device = defense.settings.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            chunks = list(self.chunks(pair, defense, surrogate, included=included))
        return Outcomes.concatenate([chunk.outcomes for chunk in chunks])


def _divisible(pair: PlannedPair, defense: BuiltDefense) -> bool:
    """Whether the outcome of an item depends on no other item that is evaluated with it.

    An external attack gets whole batches, a declared-random defense whole noise groups, and the
    audit of low precision samples the survivors.
    """
    model = defense.attacked_model(pair.threat, pair.attack)
    random = defense.is_random(pair.threat)
    return not (Traits.is_external(pair.attack) or random or model.low_precision)
