"""Access of an attack to a model: access levels, EOT, BPDA and seeded randomness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.core.batches import FRESH_ROWS
from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, PluginError
from bench.engine.answers import checked_logits, vote_counts
from bench.engine.plugin_calls import plugin_error
from bench.engine.values import checked_column
from bench.plugin import Gradient, Jacobian
from bench.plugin.losses import Loss
from bench.threats.access import Access
from bench.threats.random_numbers import name_to_int64

ACCESS_NAMES = {Access.LABELS: "labels", Access.SCORES: "scores", Access.GRADIENTS: "gradients"}


class SeededNoise:
    """The random state of a declared-random defense, seeded by (seed, role, group, call).

    A module draws from torch's global generator, which has no keys. So each call runs in a forked
    generator state, which makes results with random defenses reproducible.

    Args:
        seed: of the cell.
        role: what the draws are for; each has draws of its own.
        device: of the model.
        rows: items whose draws belong together; group k holds the items from k * rows on.
    """

    def __init__(
        self, seed: int, role: str, device: torch.device, *, rows: int = FRESH_ROWS
    ) -> None:
        self.seed, self.role, self.device, self.rows = seed, role, device, rows
        self.group = 0
        self.calls = Counter[int]()
        """The number of calls of each group."""

    def begin(self, group: int) -> None:
        """Starts a group of rows: its draws depend on no call before it."""
        self.calls[group] = 0
        self.resume(group)

    def resume(self, group: int) -> None:
        """Continues a group at its next call, so that no draw is used twice."""
        self.group = group

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Seeds torch for one call of the model, and restores its generators afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            call = self.calls[self.group]
            seed = name_to_int64(f"{self.seed} {self.role} {self.group} {call}") % 2**63
            # torch.manual_seed would also queue a lazy call for devices that are not initialised.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            self.calls[self.group] += 1
            yield


class ModelAccess:
    """Access to a built model at a declared level; freezes its parameters.

    The model gets a copy of the images, and its answer is copied: whatever it keeps or writes into
    is its own. Whatever it raises becomes a PluginError.

    A rejecting defense returns [n, K + 1]: logits, then the rejection score less its threshold.
    `logits`, `gradient` and `jacobian` return this whole answer; `visible` is the part that an
    attack sees and that its loss is computed from.

    Args:
        module: the model.
        bpda: its BPDA approximation, whose gradients are used; None: its own gradients.
        access: what the attack may see.
        draws: answers and gradients of a random model are means over so many draws (EOT).
        votes: `labels` are the majority over so many draws of a random model.
        noise: the random state of a declared-random model; None for a deterministic one.
        attack_name: of the attack, for messages.
        threat_model: its name, for messages.
        rejects: whether answers end with a rejection score.
        joint: whether the attack sees that score.
        title: the model, for messages.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        bpda: nn.Module | None = None,
        access: Access = Access.GRADIENTS,
        draws: int = 1,
        votes: int = 1,
        noise: SeededNoise | None = None,
        attack_name: str = "the attack",
        threat_model: str = "this threat model",
        rejects: bool = False,
        joint: bool = False,
        title: str = "the defense",
    ) -> None:
        self.title = title
        self.module = freeze(module)
        self.gradient_module = freeze(bpda) if bpda is not None else module
        self.has_bpda = bpda is not None
        self.access, self.draws, self.noise = access, draws, noise
        self.votes = votes if noise is not None else 1
        """Draws that vote for each label; 1: `labels` are those of the mean over `draws`."""
        self.attack_name, self.threat_model = attack_name, threat_model
        self.rejects = rejects
        """Whether answers end with a rejection score."""
        self.hides_rejection = rejects and not joint
        """Whether the attack does not see that score."""

    def require(self, access: Access) -> None:
        """Raises PluginError where the threat model does not reveal what is requested."""
        if access > self.access:
            raise PluginError(
                f"{self.attack_name} requested {ACCESS_NAMES[access]}, but {self.threat_model} "
                f"reveals {ACCESS_NAMES.get(self.access, 'nothing')} only; "
                f"declare needs = Access.{access.name}."
            )

    def visible(self, answer: Tensor) -> Tensor:
        """The part of an answer [n, K + 1] or [n, K] that the attack sees: logits, unless joint."""
        return answer[:, :-1] if self.hides_rejection else answer

    def logits(self, images: Tensor) -> Tensor:
        """Answers [n, K] to images [n, C, H, W], without a graph; the mean over declared draws."""
        return self._mean(lambda: self.single_draw_logits(images))

    def draws_at(self, access: Access) -> int:
        """The number of draws, and of queries, behind an answer at an access level."""
        return self.votes if access == Access.LABELS and self.votes > 1 else self.draws

    def label_answers(self, images: Tensor) -> Tensor:
        """Answers [n, K] to images [n, C, H, W] whose largest entry is the label.

        With `votes` above 1 an entry is the number of draws with that label, so that a tie goes to
        the smallest class; otherwise these are the answers of `logits`.
        """
        if self.votes == 1:
            return self.logits(images)
        draws = [self.single_draw_logits(images) for _ in range(self.votes)]
        return vote_counts(torch.stack(draws), rejects=self.rejects)

    def gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Gradient:
        """Gradient [n, C, H, W], loss [n] and logits [n, K]; the mean over the declared draws.

        With a BPDA approximation the logits and the loss are those of the defense, and the
        gradient is that of the approximation at the same image (arXiv:1802.00420).
        """
        parts = [self._gradient(images, loss) for _ in range(self.draws)]
        if len(parts) == 1:
            return parts[0]
        return Gradient._make(torch.stack(column).mean(0) for column in zip(*parts, strict=True))

    def jacobian(self, images: Tensor, classes: Tensor, minus: Tensor | None = None) -> Jacobian:
        """The gradients [n, k, C, H, W] of the logits `classes` [n, k], with one forward.

        With `minus` [n], the gradients of the differences to the logit of that class.
        """
        parts = [self._jacobian(images, classes, minus) for _ in range(self.draws)]
        if len(parts) == 1:
            return parts[0]
        return Jacobian._make(torch.stack(column).mean(0) for column in zip(*parts, strict=True))

    def observable_answers(self, images: Tensor) -> Iterator[Tensor]:
        """Yields what the access level allows of images [n, C, H, W]: logits, then a gradient."""
        yield self.logits(images)
        if self.access >= Access.GRADIENTS:
            yield self.gradient(images, label_free_loss).gradient

    def _mean(self, answer: Callable[[], Tensor]) -> Tensor:
        if self.draws == 1:
            return answer()
        return torch.stack([answer() for _ in range(self.draws)]).mean(0)

    def _call(self, module: nn.Module, images: Tensor) -> Tensor:
        """The checked answer of a module to images [n, C, H, W], which it may write into."""
        try:
            if self.noise is None:
                answer = module(images)
            else:
                with self.noise.scope():
                    answer = module(images)
        except (BenchError, MemoryError, torch.OutOfMemoryError):
            raise
        except PLUGIN_EXCEPTIONS as error:
            raise plugin_error(self._title_of(module), error) from error
        return checked_logits(answer, len(images), self._title_of(module))

    def _title_of(self, module: nn.Module) -> str:
        bpda = self.has_bpda and module is self.gradient_module
        return f"the BPDA approximation of {self.title}" if bpda else self.title

    def _gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Gradient:
        leaf = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            if not self.has_bpda:
                logits = self._call(self.module, leaf)
                value = self._loss(loss, logits)
                gradient = self._derivative(value.sum(), leaf)
                return Gradient(gradient, value.detach(), logits.detach().clone())
            logits = self.single_draw_logits(images)
            answer = logits.clone().requires_grad_()
            value = self._loss(loss, answer)
            weight = input_gradient(value.sum(), answer)
            approximation = self._call(self.gradient_module, leaf)
            gradient = self._derivative((approximation * weight).sum(), leaf)
        return Gradient(gradient, value.detach(), logits)

    def _loss(self, loss: Callable[[Tensor], Tensor], answer: Tensor) -> Tensor:
        """The attack's loss [n] of the visible part of an answer [n, K]."""
        value = loss(self.visible(answer))
        return checked_column(value, len(answer), f"the loss of {self.attack_name} is", None)

    def _derivative(self, value: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
        """A copy of the gradient of the scalar `value` at `leaf`, [n, C, H, W] both."""
        try:
            return input_gradient(value, leaf, keep=keep).clone()
        except (BenchError, MemoryError, torch.OutOfMemoryError):
            raise
        except PLUGIN_EXCEPTIONS as error:
            what = f"the gradient of {self.title}, or of the loss of {self.attack_name},"
            raise plugin_error(what, error) from error

    def _jacobian(self, images: Tensor, classes: Tensor, minus: Tensor | None) -> Jacobian:
        leaf = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            answer = self._call(self.gradient_module, leaf)
            chosen = answer.gather(1, classes)
            if minus is not None:
                chosen = chosen - answer.gather(1, minus[:, None])
            rows = [self._derivative(one.sum(), leaf, keep=True) for one in chosen.unbind(1)]
        logits = self.single_draw_logits(images) if self.has_bpda else answer.detach().clone()
        return Jacobian(torch.stack(rows, 1), logits)

    def answer_with_graph(self, images: Tensor) -> Tensor:
        """The answer [n, K] of a single draw to images [n, C, H, W], with a graph where they have.

        With a BPDA approximation it is that of the defense with the gradient of the approximation
        (arXiv:1802.00420).
        """
        if not self.has_bpda or not images.requires_grad or not torch.is_grad_enabled():
            return self._call(self.module, images.clone()).clone()
        answer = self.single_draw_logits(images)
        approximation = self._call(self.gradient_module, images.clone())
        return answer + (approximation - approximation.detach())

    def single_draw_logits(self, images: Tensor) -> Tensor:
        """The answer [n, K] of a single draw to images [n, C, H, W], however many are declared."""
        with torch.no_grad():
            return self._call(self.module, images.clone()).clone()


def label_free_loss(logits: Tensor) -> Tensor:
    """A loss [n] that depends on every logit [n, K] and on no label."""
    return logits.logsumexp(1)


def input_gradient(value: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of the scalar `value` at `leaf`, [n, C, H, W] both; zero without a graph.

    There is no graph where the model computes an argmax, rounds, or leaves torch.
    """
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, retain_graph=keep)
    return torch.zeros_like(leaf) if gradient is None else gradient.detach().contiguous()


def freeze(module: nn.Module) -> nn.Module:
    """Sets eval mode and disables parameter gradients; only input gradients are computed."""
    return module.eval().requires_grad_(False)


def signed_loss(loss: Loss, label: Tensor, sign: int) -> Callable[[Tensor], Tensor]:
    """The attack's loss [n] of logits [n, K] at `label` [n]; negated where `sign` is negative.

    It is negated on targeted threat models, whose goal is to reach the label.
    """
    if sign > 0:
        return lambda logits: loss(logits, label)
    return lambda logits: -loss(logits, label)
