"""Counted, gated access of an attack to a model, with EOT and BPDA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.answers import checked_logits
from bench.plugin import Gradient, Jacobian
from bench.plugin.losses import Loss
from bench.threats.access import Access
from bench.threats.random_numbers import name_to_int64

ACCESS_NAMES = {Access.LABELS: "labels", Access.SCORES: "scores", Access.GRADIENTS: "gradients"}


class SeededNoise:
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
        self.resume(group)

    def resume(self, group: int) -> None:
        """Go on with a group where it stands: no draw is used twice."""
        self.group = group

    @contextmanager
    def scope(self) -> Iterator[None]:
        """One call of the model."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            call = self.calls[self.group]
            seed = name_to_int64(f"{self.seed} {self.role} {self.group} {call}") % 2**63
            # torch.manual_seed also writes down who called it, for devices that are not there yet.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            self.calls[self.group] += 1
            yield


class ModelAccess:
    """A built defense behind one door. It freezes the module and never changes its answers.

    A defense that rejects answers [n, K + 1]: the rejection score less its threshold comes last.
    Whoever asks for `logits`, `gradient` or `jacobian` gets this whole answer; what an attack sees
    of it, and what its loss climbs, is `shown`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        bpda: nn.Module | None = None,
        access: Access = Access.GRADIENTS,
        draws: int = 1,
        noise: SeededNoise | None = None,
        attack_name: str = "the attack",
        threat_model: str = "this board",
        rejects: bool = False,
        joint: bool = False,
    ) -> None:
        self.module = freeze(module)
        self.gradient_module = freeze(bpda) if bpda is not None else module
        self.has_bpda = bpda is not None
        self.access, self.draws, self.noise = access, draws, noise
        self.attack_name, self.threat_model = attack_name, threat_model
        self.rejects = rejects
        """Answers end with a rejection score."""
        self.hides_rejection = rejects and not joint
        """The asker does not see it."""

    def require(self, access: Access) -> None:
        """Refuse with a sentence what the board does not reveal."""
        if access > self.access:
            raise PluginError(
                f"{self.attack_name} asked for {ACCESS_NAMES[access]}, but {self.threat_model} reveals "
                f"{ACCESS_NAMES.get(self.access, 'nothing')} only; "
                f"declare needs = Access.{access.name}."
            )

    def visible(self, answer: Tensor) -> Tensor:
        """Of a whole answer what the asker sees: the logits [n, K], unless it goes for both."""
        return answer[:, :-1] if self.hides_rejection else answer

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

    def observable_answers(self, images: Tensor) -> Iterator[Tensor]:
        """All that an asker may hear of these images: logits, then, if open to it, a gradient."""
        yield self.logits(images)
        if self.access >= Access.GRADIENTS:
            yield self.gradient(images, label_free_loss).gradient

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
        return checked_logits(answer, len(images))

    def _gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Gradient:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            if not self.has_bpda:
                logits = self._call(self.module, leaf)
                value = loss(self.visible(logits))
                gradient = input_gradient(value.sum(), leaf)
                return Gradient(gradient, value.detach(), logits.detach())
            with torch.no_grad():
                logits = self._call(self.module, leaf)
            answer = logits.detach().requires_grad_()
            value = loss(self.visible(answer))
            weight = input_gradient(value.sum(), answer)
            gradient = input_gradient((self._call(self.gradient_module, leaf) * weight).sum(), leaf)
        return Gradient(gradient, value.detach(), logits.detach())

    def _jacobian(self, images: Tensor, classes: Tensor, minus: Tensor | None) -> Jacobian:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            answer = self._call(self.gradient_module, leaf)
            asked = answer.gather(1, classes)
            if minus is not None:
                asked = asked - answer.gather(1, minus[:, None])
            rows = [input_gradient(column.sum(), leaf, keep=True) for column in asked.unbind(1)]
        logits = self.single_draw_logits(images) if self.has_bpda else answer.detach()
        return Jacobian(torch.stack(rows, 1), logits)

    def single_draw_logits(self, images: Tensor) -> Tensor:
        """One draw's answer [n, K], whatever number of draws is declared."""
        with torch.no_grad():
            return self._call(self.module, images)


def label_free_loss(logits: Tensor) -> Tensor:
    """[n]: a loss that depends on every logit and on no label."""
    return logits.logsumexp(1)


def input_gradient(value: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
    """d value / d leaf; zero where no graph leads there (argmax, rounding, numpy inside)."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, retain_graph=keep)
    return torch.zeros_like(leaf) if gradient is None else gradient.detach().contiguous()


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode, no parameter asks for a gradient: only the input's gradient is computed."""
    return module.eval().requires_grad_(False)


def signed_loss(loss: Loss, label: Tensor, sign: int) -> Callable[[Tensor], Tensor]:
    """The attack's loss at its label; downhill when the board wants that label reached."""
    if sign > 0:
        return lambda logits: loss(logits, label)
    return lambda logits: -loss(logits, label)
