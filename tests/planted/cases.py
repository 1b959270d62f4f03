"""What a planted case is: a defense or an attack, its truth, and what counts as caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from bench.plugin import Attack, Defense, ExternalAttack, Loader

Build = Callable[[Loader], nn.Module]
PREFIX = "planted-"


@dataclass(frozen=True)
class Case:
    """One planted defense or attack."""

    name: str
    group: str
    """The kind of fault; empty for an honest one."""
    what: str
    """What it does, in one sentence."""
    defense: Defense | None = None
    attack: Attack | ExternalAttack | None = None
    white_box: Build | None = None
    """Builds the white-box version: the same answers with exact gradients; None: `build`."""
    threat: str = "digits-linf"
    weakens: bool = False
    """Of an attack: whether the fault makes it weaker; others claim what they did not find."""

    @property
    def honest(self) -> bool:
        """Whether no check may raise a warning for it."""
        return not self.group


def honest(what: str, defense: Defense, *, threat: str = "digits-linf", **more: Any) -> Case:
    """A defense that keeps the contract and hides nothing."""
    return Case(defense.name, "", what, defense, threat=threat, **more)


def dishonest(
    name: str, group: str, what: str, build: Build, white_box: Build, **record: Any
) -> Case:
    """A defense on digits that misleads; `white_box` is its white-box version."""
    defense = Defense(f"{PREFIX}{name}", build, summary=what, quick=False, **record)
    return Case(defense.name, group, what, defense, white_box=white_box)


def broken_attack(attack: Attack | ExternalAttack, group: str, what: str, **more: Any) -> Case:
    """An attack that breaks its contract."""
    return Case(attack.name, group, what, attack=attack, **more)


def around(inner: str, forward: Callable[[Any, Tensor], Tensor], **state: Any) -> Build:
    """Builds a module whose `forward` is called with the module itself, then the images.

    The module has the built defense `inner` as `inner` and each value of `state`, copied.
    """
    return lambda loader: Around(loader.defense(inner), forward, state)


class Around(nn.Module):
    """A classifier inside a function of images [n, C, H, W] that returns logits [n, K]."""

    def __init__(
        self,
        inner: nn.Module,
        function: Callable[[Any, Tensor], Tensor],
        state: dict[str, Any],
    ) -> None:
        super().__init__()
        self.inner = inner
        self.function = function
        self.calls = 0
        self.seen: list[Any] = []
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, K]."""
        return self.function(self, images)


def inner(name: str) -> Build:
    """Builds a registered defense as it is."""
    return lambda loader: loader.defense(name)


def renamed(case: Case, name: str) -> Case:
    """The same case under another name."""
    return replace(case, name=name)
