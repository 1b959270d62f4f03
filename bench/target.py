"""The one door to a built defense: it answers, counts, gates by access and refuses over budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.kit import Loss, word
from bench.plugin import Gradient, Jacobian
from bench.records import NO_ANSWER, REJECTED, Access, Budget, PluginError

WORDS = {Access.LABELS: "labels", Access.SCORES: "scores", Access.GRADIENTS: "gradients"}


class Ledger:
    """What each row has spent: exact counts, and refusal beyond the budget."""

    def __init__(self, rows: int, budget: Budget, device: torch.device) -> None:
        self.forwards = torch.zeros(rows, dtype=torch.int64, device=device)
        self.gradients = torch.zeros_like(self.forwards)
        self.refused = torch.zeros(rows, dtype=torch.bool, device=device)
        """Rows that asked for more than their budget."""
        self.budget = budget

    @property
    def limited(self) -> bool:
        """Whether anything can be refused at all."""
        return self.budget != Budget()

    def open(self, rows: Tensor) -> None:
        """New rows, which have spent nothing."""
        self.forwards[rows] = 0
        self.gradients[rows] = 0
        self.refused[rows] = False

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.forwards, self.gradients = self.forwards[rows], self.gradients[rows]
        self.refused = self.refused[rows]

    def charge(self, where: Tensor, forwards: int, gradients: int) -> Tensor:
        """Charge the rows `where` [n] bool; [n] bool of those that could pay."""
        if self.limited:
            fits = self._fits(self.forwards + forwards, self.budget.queries)
            fits &= self._fits(self.gradients + gradients, self.budget.gradients)
            self.refused |= where & ~fits
            where = where & fits
        self.forwards.add_(where, alpha=forwards)
        if gradients:
            self.gradients.add_(where, alpha=gradients)
        return where

    def _fits(self, count: Tensor, limit: int | None) -> Tensor:
        return torch.ones_like(self.refused) if limit is None else count <= limit


class Noise:
    """The random state of a declared-random defense: seeded by (seed, group, call).

    A module draws where keys cannot reach, from torch's global generator; so each call runs in a
    forked state, and a board with randomness is still reproducible.
    """

    def __init__(self, seed: int, role: str, device: torch.device) -> None:
        self.seed, self.role, self.device = seed, role, device
        self.group = 0
        self.calls = Counter[int]()
        """How often each group has been asked."""

    def begin(self, group: int) -> None:
        """Start a group of rows: its draws depend on nothing before it."""
        self.calls[group] = 0
        self.turn(group)

    def turn(self, group: int) -> None:
        """Go on with a group where it stands: no draw is used twice."""
        self.group = group

    @contextmanager
    def scope(self) -> Iterator[None]:
        """One call of the model."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            call = self.calls[self.group]
            seed = word(f"{self.seed} {self.role} {self.group} {call}") % 2**63
            # torch.manual_seed also writes down who called it, for devices that are not there yet.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            self.calls[self.group] += 1
            yield


class Target:
    """A built defense behind one door. It freezes the module and never changes its answers.

    A defense that rejects answers [n, K + 1]: the rejection score less its threshold comes last.
    Whoever asks for `logits`, `gradient` or `jacobian` gets this whole answer; what an attack sees
    of it, and what its loss climbs, is `shown`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        stand_in: nn.Module | None = None,
        access: Access = Access.GRADIENTS,
        draws: int = 1,
        noise: Noise | None = None,
        asker: str = "the attack",
        board: str = "this board",
        rejects: bool = False,
        joint: bool = False,
    ) -> None:
        self.module = freeze(module)
        self.slope = freeze(stand_in) if stand_in is not None else module
        self.has_stand_in = stand_in is not None
        self.access, self.draws, self.noise = access, draws, noise
        self.asker, self.board = asker, board
        self.rejects = rejects
        """Answers end with a rejection score."""
        self.veiled = rejects and not joint
        """The asker does not see it."""

    def require(self, access: Access) -> None:
        """Refuse with a sentence what the board does not reveal."""
        if access > self.access:
            raise PluginError(
                f"{self.asker} asked for {WORDS[access]}, but {self.board} reveals "
                f"{WORDS.get(self.access, 'nothing')} only; declare needs = Access.{access.name}."
            )

    def shown(self, answer: Tensor) -> Tensor:
        """Of a whole answer what the asker sees: the logits [n, K], unless it goes for both."""
        return answer[:, :-1] if self.veiled else answer

    def logits(self, images: Tensor) -> Tensor:
        """[n, K], the mean over the declared draws; no graph is kept."""
        with torch.no_grad():
            return self._mean(lambda: self._call(self.module, images))

    def gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Gradient:
        """Gradient [n, C, H, W], loss [n] and logits [n, K]; the mean over the declared draws.

        With a stand-in the logits and the loss are the defense's own, and the gradient takes the
        stand-in's slope at the same image (arXiv:1802.00420).
        """
        parts = [self._gradient(images, loss) for _ in range(self.draws)]
        if len(parts) == 1:
            return parts[0]
        return Gradient._make(torch.stack(column).mean(0) for column in zip(*parts, strict=True))

    def jacobian(self, images: Tensor, classes: Tensor, minus: Tensor | None = None) -> Jacobian:
        """The gradients [n, k, C, H, W] of the logits `classes` [n, k], one forward for all.

        With `minus` [n], of the differences to the logit of that class.
        """
        parts = [self._jacobian(images, classes, minus) for _ in range(self.draws)]
        if len(parts) == 1:
            return parts[0]
        return Jacobian._make(torch.stack(column).mean(0) for column in zip(*parts, strict=True))

    def said(self, images: Tensor) -> Iterator[Tensor]:
        """All that an asker may hear of these images: logits, then, if open to it, a gradient."""
        yield self.logits(images)
        if self.access >= Access.GRADIENTS:
            yield self.gradient(images, smooth).gradient

    def _mean(self, answer: Callable[[], Tensor]) -> Tensor:
        if self.draws == 1:
            return answer()
        return torch.stack([answer() for _ in range(self.draws)]).mean(0)

    def _call(self, module: nn.Module, images: Tensor) -> Tensor:
        if self.noise is None:
            answer = module(images)
        else:
            with self.noise.scope():
                answer = module(images)
        return checked(answer, len(images))

    def _gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Gradient:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            if not self.has_stand_in:
                logits = self._call(self.module, leaf)
                value = loss(self.shown(logits))
                gradient = slope(value.sum(), leaf)
                return Gradient(gradient, value.detach(), logits.detach())
            with torch.no_grad():
                logits = self._call(self.module, leaf)
            answer = logits.detach().requires_grad_()
            value = loss(self.shown(answer))
            weight = slope(value.sum(), answer)
            gradient = slope((self._call(self.slope, leaf) * weight).sum(), leaf)
        return Gradient(gradient, value.detach(), logits.detach())

    def _jacobian(self, images: Tensor, classes: Tensor, minus: Tensor | None) -> Jacobian:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            answer = self._call(self.slope, leaf)
            asked = answer.gather(1, classes)
            if minus is not None:
                asked = asked - answer.gather(1, minus[:, None])
            rows = [slope(column.sum(), leaf, keep=True) for column in asked.unbind(1)]
        logits = self.logits_once(images) if self.has_stand_in else answer.detach()
        return Jacobian(torch.stack(rows, 1), logits)

    def logits_once(self, images: Tensor) -> Tensor:
        """One draw's answer [n, K], whatever number of draws is declared."""
        with torch.no_grad():
            return self._call(self.module, images)


class Unguarded(nn.Module):
    """A rejecting defense whose detector is not asked: images to logits [n, K]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] to [n, K]."""
        logits: Tensor = self.module(images)[:, :-1]
        return logits


def misfit(columns: int, classes: int, *, rejects: bool) -> str:
    """Why answers of so many columns are none about these classes; empty when they are."""
    if columns == classes + rejects:
        return ""
    score = ", then the rejection score less its threshold" if rejects else ""
    return (
        f"answers came with {columns} columns; {classes + rejects} were expected: "
        f"one logit for each of {classes} classes{score}."
    )


def named(answer: Tensor, *, rejects: bool) -> Tensor:
    """[..., n] int64: the class that answers [..., n, K] name; NO_ANSWER where one is not finite.

    With `rejects` they are [..., n, K + 1], and REJECTED where the last column is positive.
    """
    label = (answer[..., :-1] if rejects else answer).argmax(-1)
    if rejects:
        label = torch.where(answer[..., -1] > 0, REJECTED, label)
    return torch.where(answer.isfinite().all(-1), label, NO_ANSWER)


def reaches(label: Tensor, known: Tensor, *, targeted: bool, rejects: bool) -> Tensor:
    """[..., n] bool: the label is the known one (targeted), or an accepted other one.

    With `rejects` labels may be REJECTED; what is rejected reaches no goal. No answer at all is a
    defense that has failed: it reaches every goal.
    """
    if targeted:
        return (label == known) | (label == NO_ANSWER)
    other = label != known
    return other & (label != REJECTED) if rejects else other


def smooth(logits: Tensor) -> Tensor:
    """[n]: a loss that depends on every logit and on no label."""
    return logits.logsumexp(1)


def slope(value: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
    """d value / d leaf; zero where no graph leads there (argmax, rounding, numpy inside)."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, retain_graph=keep)
    return torch.zeros_like(leaf) if gradient is None else gradient.detach().contiguous()


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode, no parameter asks for a gradient: only the input's gradient is computed."""
    return module.eval().requires_grad_(False)


def checked(answer: object, rows: int) -> Tensor:
    """The answer, if it is a matrix of logits."""
    if not isinstance(answer, Tensor):
        raise PluginError(
            f"the defense answered with {type(answer).__name__}; a tensor of logits "
            f"[{rows}, classes] was expected."
        )
    if answer.dim() != 2 or answer.shape[0] != rows or not answer.is_floating_point():
        raise PluginError(
            f"the defense answered {answer.dtype} {tuple(answer.shape)} for {rows} images; "
            f"floating point logits [{rows}, classes] were expected."
        )
    return answer


def aimed(loss: Loss, label: Tensor, sign: int) -> Callable[[Tensor], Tensor]:
    """The attack's loss at its label; downhill when the board wants that label reached."""
    if sign > 0:
        return lambda logits: loss(logits, label)
    return lambda logits: -loss(logits, label)
