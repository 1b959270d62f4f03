"""The referee: re-verifies every candidate against ball, box, finiteness and a fresh model."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.core.cpu_time import cpu_seconds
from bench.core.errors import PluginError
from bench.core.outcomes import Chunk, KeptImage, Outcomes, Verdict
from bench.data.image_rows import CleanImages
from bench.engine.answers import reaches_goal
from bench.engine.cell_spec import Candidates
from bench.engine.machine import this_machine
from bench.engine.model_access import SeededNoise
from bench.referee.fresh_model import VOTE_SHARE, FreshAnswers, FreshModel
from bench.threats.norms import PerturbationSet, per_row
from bench.threats.threat_model import Goal

# Of 10 confirmation draws; a success at VOTE_SHARE itself would fail half of the final votes.
CONFIRMATION_MISSES = 1
FRAGILE = 1e-4  # share of the logit scale; smaller margins are marked fragile
GRID_SLACK = 1e-3  # of a grey level, because k/255 is not exact in float32
KEPT_IMAGES = 16  # items whose images are kept for the leaderboard


def goal_reached(
    votes: Tensor, y: Tensor, target: Tensor, goal: Goal, share: float = VOTE_SHARE
) -> Tensor:
    """[n] bool: a share of the votes [draws, n] reaches the goal, for labels and targets [n]."""
    return vote_reaches(votes, y, target, goal).double().mean(0) >= share - 1e-9


def vote_reaches(votes: Tensor, y: Tensor, target: Tensor, goal: Goal) -> Tensor:
    """Whether each of the votes [..., n] reaches the goal, for labels and targets [n].

    A missing answer reaches every goal, a rejected image none.
    """
    targeted = goal.kind == "targeted"
    return reaches_goal(votes, target if targeted else y, targeted=targeted, rejects=True)


def reached_on_most(
    votes: Generator[Tensor], legal: Tensor, y: Tensor, target: Tensor, goal: Goal
) -> Tensor:
    """[n] bool: where `legal` [n], all votes [n] but CONFIRMATION_MISSES reach the goal.

    No vote is drawn once every image has missed too often.
    """
    misses = torch.zeros_like(y)
    with closing(votes):
        for vote in votes:
            misses += ~vote_reaches(vote, y, target, goal)
            if not (legal & (misses <= CONFIRMATION_MISSES)).any():
                break
    return legal & (misses <= CONFIRMATION_MISSES)


def clean_errors(votes: Tensor, y: Tensor) -> Tensor:
    """[n] bool: VOTE_SHARE of the votes [draws, n] reject a clean image or miss its label [n]."""
    return (votes != y).double().mean(0) >= VOTE_SHARE - 1e-9


class Referee:
    """Verifies the candidates of one evaluation cell; it refuses and never clips.

    Args:
        fresh_model: a copy of the defense that no attack has queried.
        ball: the perturbation set.
        goal: the goal of the threat model.
        x: [n, C, H, W] clean images of all items; of large sets rows that are read when needed.
        y: [n] int64 labels.
        target: [n] int64 declared target classes, -1 without.
        minimises: the attack minimises its perturbation, so candidates may lie outside the ball.
        confirmation_noise: random state of the confirmation draws of a declared-random defense.
        shared: [1, ...], the one point that every candidate must have; None: each has its own.
        share: of the draws of a nuisance on which the goal must be reached; None without one.
    """

    def __init__(
        self,
        fresh_model: FreshModel,
        ball: PerturbationSet,
        goal: Goal,
        x: CleanImages,
        y: Tensor,
        target: Tensor,
        *,
        minimises: bool = False,
        confirmation_noise: SeededNoise | None = None,
        shared: Tensor | None = None,
        share: float | None = None,
    ) -> None:
        self.share = share
        self.fresh_model, self.ball, self.goal = fresh_model, ball, goal
        self.x, self.y, self.target = x, y, target
        self.minimises = minimises
        self.confirmation_noise = confirmation_noise
        self.shared = shared

    def legality(self, items: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Verdict codes [k] and distances [k] of points [k, ...] for the items [k], in float64.

        The code is ROBUST where the point is finite and in the set, and its image in the box.

        Raises:
            PluginError: the points have another shape or are no floating-point numbers.
        """
        x = self.x[items]
        start = self.ball.start(x)
        if points.shape != start.shape or not points.is_floating_point():
            raise PluginError(
                f"the attack returned {points.dtype} {tuple(points.shape)}; float "
                f"{'points' if self.ball.parametric else 'images'} {tuple(start.shape)} were "
                "expected."
            )
        finite = points.flatten(1).isfinite().all(1)
        points = torch.where(per_row(finite, points), points, start)
        flat = self.ball.apply(points, x).flatten(1)
        finite &= flat.isfinite().all(1)
        boxed = (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
        exact, clean = points.double(), x.double()
        distance = self.ball.distance(exact, clean)
        inside = self._inside(points, x, distance)
        code = torch.full_like(items, Verdict.ROBUST)
        code = torch.where(inside | self.minimises, code, int(Verdict.OUT_OF_BALL))
        code = torch.where(boxed, code, int(Verdict.OUT_OF_BOX))
        code = torch.where(finite, code, int(Verdict.NOT_FINITE))
        return code, distance

    def confirm(self, items: Tensor, points: Tensor) -> Tensor:
        """[k] bool: points [k, ...] of the items [k] reach the goal on the fresh model.

        The engine retires an item only where this holds, because the attack may have queried a
        faster form of the defense. A random defense must be wrong on 9 of 10 draws.
        """
        items = items.to(self.x.device)
        code, distance = self.legality(items, points)
        x = self.x[items]
        confirmed = (code == Verdict.ROBUST) & self._inside(points, x, distance)
        images = self.ball.apply(points, x)
        y, target = self.y[items], self.target[items]
        if self.confirmation_noise is None:
            return confirmed & goal_reached(self.fresh_model.labels(images), y, target, self.goal)
        size = self.confirmation_noise.rows
        for group in torch.unique(items // size).tolist():
            rows = (items // size == group).nonzero()[:, 0]
            # Several restarts of one item may wait for their check: more rows than a group has.
            for where in rows.split(size):
                votes = self.fresh_model.confirmation_votes(
                    images[where], group, self.confirmation_noise
                )
                legal = confirmed[where]
                confirmed[where] = reached_on_most(votes, legal, y[where], target[where], self.goal)
        return confirmed

    def images(self, candidates: Candidates) -> Tensor:
        """The images [k, C, H, W] of candidates, made from their points and the clean images."""
        return self.ball.apply(candidates.image, self.x[candidates.item.to(self.x.device)])

    def judge(self, candidates: Candidates) -> Outcomes:
        """The outcomes of one chunk of candidates."""
        items = candidates.item.to(self.x.device)
        x, points = self.x[items], candidates.image
        code, distance = self.legality(items, points)
        admissible = code == Verdict.ROBUST
        points = torch.where(per_row(admissible, points), points, self.ball.start(x))
        images = self.ball.apply(points, x)
        answer = self.fresh_model.answer(images, self._groups(items))
        reached = self._reached(answer.votes, items)
        inside = admissible & self._inside(points, x, distance)
        broken = inside & reached
        code = torch.where(broken, int(Verdict.BROKEN), code)
        success = broken.cpu()
        return Outcomes(
            item=candidates.item.numpy().astype(np.int32),
            verdict=_numpy(code, np.uint8),
            eight_bit=_numpy(self._eight_bit(items, images, broken), np.bool_),
            fragile=_numpy(broken & self._fragile(answer.logits, items), np.bool_),
            distance=_numpy(distance, np.float64),
            label=_numpy(torch.where(admissible, answer.label, -1), np.int16),
            confidence=_numpy(torch.where(admissible, answer.confidence, 0), np.float32),
            forwards=candidates.forwards.numpy().astype(np.int32),
            gradients=candidates.gradients.numpy().astype(np.int32),
            final_checks=candidates.final_checks.numpy().astype(np.int32),
            step=_numpy(torch.where(success, candidates.step.clamp_min(0), -1), np.int32),
            restart=_numpy(torch.where(success, candidates.restart.clamp_min(0), -1), np.int32),
            rejection=_numpy(torch.where(admissible, answer.rejection, -torch.inf), np.float32),
            target=_numpy(self.target[items], np.int16),
            claimed=(candidates.step >= 0).numpy().astype(np.int8),
            **_true_class(answer, self.y[items], inside),
            share=self._shares(answer.votes, items, inside),
        )

    def _reached(self, votes: Tensor, items: Tensor) -> Tensor:
        """[k] bool: votes [draws, k] for the items [k] reach the goal."""
        share = VOTE_SHARE if self.share is None else self.share
        return goal_reached(votes, self.y[items], self.target[items], self.goal, share)

    def _shares(self, votes: Tensor, items: Tensor, known: Tensor) -> npt.NDArray[np.float32]:
        """The share [k] of votes [draws, k] that reach the goal; -1 where not `known` [k] bool."""
        reached = vote_reaches(votes, self.y[items], self.target[items], self.goal)
        counted = known & (self.share is not None)
        found = torch.where(counted, reached.double().mean(0), -1)
        return np.asarray(_numpy(found, np.float32))

    def _inside(self, points: Tensor, x: Tensor, distance: Tensor) -> Tensor:
        """[k] bool: points [k, ...] are in the set; in a norm ball by their distance in float64.

        Of a shared point, also that they are that point.
        """
        if self.shared is not None:
            same = (points == self.shared).flatten(1).all(1)
            return same & self.ball.contains(points, x)
        if self.ball.parametric:
            return self.ball.contains(points, x)
        return distance <= self.ball.radius + self.ball.tolerance(x[0].numel())

    def _groups(self, items: Tensor) -> list[int]:
        """The group of each block of rows: for random defenses the one in which they ran."""
        size = self.fresh_model.rows
        first: list[int] = items[::size].tolist()
        return [item // size for item in first]

    def _eight_bit(self, items: Tensor, images: Tensor, broken: Tensor) -> Tensor:
        """[k] bool: still broken with each pixel rounded to k/255.

        In a norm ball towards the clean pixel, so that the image stays in it; in a parametric set
        to the nearest, as a file would be.
        """
        if not broken.any():
            return broken
        clean = self.x[items].double()
        if self.ball.parametric:
            rounded = ((images.double() * 255).round() / 255).to(images.dtype)
            answer = self.fresh_model.answer(rounded, self._groups(items))
            return broken & self._reached(answer.votes, items)
        level = (clean * 255).round()
        change = images.double() * 255 - level
        steps = (change.abs() + GRID_SLACK).floor() * change.sign()
        rounded = ((level + steps) / 255).to(images.dtype)
        answer = self.fresh_model.answer(rounded, self._groups(items))
        reached = self._reached(answer.votes, items)
        distance = self.ball.distance(rounded.double(), clean)
        return broken & reached & self._inside(rounded, self.x[items], distance)

    def _fragile(self, logits: Tensor, items: Tensor) -> Tensor:
        """[k] bool: the margin is below FRAGILE of the logit scale."""
        own = (self.target if self.goal.kind == "targeted" else self.y)[items][:, None]
        value = logits.double().gather(1, own)[:, 0]
        others = logits.double().scatter(1, own, -torch.inf).amax(1)
        return (value - others).abs() < FRAGILE * logits.double().abs().amax(1)


def judge(
    candidates: Iterable[Candidates],
    referee: Referee,
    clean: FreshAnswers,
    *,
    keep: Collection[int] = range(KEPT_IMAGES),
    keep_all: bool = False,
) -> Iterator[Chunk]:
    """Yields the outcomes of each chunk of candidates as it comes.

    Args:
        candidates: the chunks that the engine yields.
        referee: the referee of the cell.
        clean: the answers to the clean images, for the labels of kept images.
        keep: items whose images are kept for the leaderboard.
        keep_all: keep every image exactly.
    """
    wanted, machine = set(keep), this_machine(referee.x.device)
    since = cpu_seconds()
    for part in candidates:
        outcomes = referee.judge(part)
        rows = [row for row, item in enumerate(part.item.tolist()) if item in wanted]
        adv = referee.images(part).float().cpu().numpy()
        images = tuple(_kept(referee, part, adv, outcomes, clean, row) for row in rows)
        exact = (outcomes.item, adv) if keep_all else None
        own = referee.ball.parametric and referee.shared is None
        points = part.image.float().cpu().numpy() if own else None
        now = cpu_seconds()
        yield Chunk(outcomes, now - since, images, exact, machine, points)
        since = now


def _kept(
    referee: Referee,
    part: Candidates,
    adv: npt.NDArray[np.float32],
    outcomes: Outcomes,
    clean: FreshAnswers,
    row: int,
) -> KeptImage:
    item = int(part.item[row])
    return KeptImage(
        item=item,
        original=_numpy((referee.x[item].double() * 255).round(), np.uint8),
        adversarial=adv[row],
        true_label=int(referee.y[item]),
        clean_label=int(clean.label[item]),
        clean_confidence=float(clean.confidence[item]),
        label=int(outcomes.label[row]),
        confidence=float(outcomes.confidence[row]),
    )


def clean_outcomes(answer: FreshAnswers, y: Tensor) -> Outcomes:
    """The outcomes of the clean images with labels [n]: broken where misclassified or rejected."""
    broken = clean_errors(answer.votes, y)
    count = len(y)
    zero = np.zeros(count, dtype=np.int32)
    none = np.full(count, -1, dtype=np.int32)
    return Outcomes(
        item=np.arange(count, dtype=np.int32),
        verdict=_numpy(torch.where(broken, int(Verdict.BROKEN), int(Verdict.ROBUST)), np.uint8),
        eight_bit=_numpy(broken, np.bool_),
        fragile=np.zeros(count, dtype=np.bool_),
        distance=np.zeros(count),
        label=_numpy(answer.label, np.int16),
        confidence=_numpy(answer.confidence, np.float32),
        forwards=zero, gradients=zero, final_checks=zero, step=none, restart=none,
        rejection=_numpy(answer.rejection, np.float32),
        target=np.full(count, -1, np.int16),
        claimed=np.zeros(count, np.int8),
        **_true_class(answer, y, torch.ones_like(broken)),
        share=np.full(count, -1, np.float32),
    )  # fmt: skip


def _true_class(answer: FreshAnswers, y: Tensor, known: Tensor) -> dict[str, Any]:
    """The columns of the true classes [n]: not recorded where not `known` [n] bool."""
    shares = answer.log_shares
    own = shares.gather(1, y[:, None])
    first = torch.arange(shares.shape[1], device=y.device) < y[:, None]
    # Of equal classes the first is predicted, so it ranks above the others.
    rank = ((shares > own) | ((shares == own) & first)).sum(1)
    finite, loss = answer.label >= 0, -own[:, 0]
    return {
        "true_confidence": _numpy(
            torch.where(known, torch.where(finite, own[:, 0].exp(), 0), torch.nan), np.float32
        ),
        "true_rank": _numpy(
            torch.where(known, torch.where(finite, rank, shares.shape[1]), -1), np.int16
        ),
        "loss": _numpy(torch.where(known & finite, loss, torch.nan), np.float32),
    }


def _numpy(tensor: Tensor, kind: type[Any]) -> Any:
    return tensor.detach().cpu().numpy().astype(kind)
