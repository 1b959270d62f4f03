"""What every certifier and every diagnostic promises: a typed answer, and hands off the model."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bench.contract.check import DoesNotApply, checks_of
from bench.contract.fixtures import ModelState, RandomState
from bench.plugin import Certifier, Defense, Diagnostic, Evidence, Finding
from bench.threats.norms import L2, Linf, PerturbationSet


def mean_pixel_model() -> nn.Module:
    """Two classes told apart by one linear layer: what holds is known in closed form."""
    layer = nn.Linear(16, 2, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.ones(16), -torch.ones(16)]) / 8)
        layer.bias.copy_(torch.tensor([-1.0, 1.0]))
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


@dataclass(frozen=True)
class ToolFixture:
    """A certifier or a diagnostic, and a model that is known through and through."""

    tool: Any

    @cached_property
    def model(self) -> nn.Module:
        """Class 0 where the mean pixel is above 1/2."""
        return mean_pixel_model()

    @cached_property
    def x(self) -> Tensor:
        """[32, 1, 4, 4]: constant images, their grey from 0.1 to 0.9."""
        return torch.linspace(0.1, 0.9, 32)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()

    @cached_property
    def y(self) -> Tensor:
        """The right labels."""
        return (self.x.flatten(1).mean(1) < 0.5).long()

    def certified(self, ball: PerturbationSet) -> Tensor:
        """[32], where the certifier speaks of linear models."""
        certifier: Certifier = self.tool
        refusal = certifier.refuses(self.model, ball)
        if refusal:
            raise DoesNotApply(f"it refuses linear models: {refusal}")
        return certifier.certify(self.model, self.x, self.y, ball)

    def examined(self) -> Evidence:
        """What the diagnostic says of an honest model."""
        diagnostic: Diagnostic = self.tool
        return diagnostic.examine(
            self.model, self.x, self.y, Defense("greys", lambda loader: mean_pixel_model())
        )


def refusal_is_a_sentence(tool: ToolFixture) -> str:
    """`refuses` gives a sentence, or nothing."""
    found = tool.tool.refuses(nn.Sequential(nn.Flatten(), nn.Softplus()), Linf(Fraction(1, 10)))
    return "" if isinstance(found, str) else f"refuses gave {type(found).__name__}; a str is due."


def certificate_has_one_bit_a_row(tool: ToolFixture) -> str:
    """`certify` gives [n] bool."""
    found = tool.certified(Linf(Fraction(1, 10)))
    right = found.dtype is torch.bool and found.shape == (32,)
    return "" if right else f"certify gave {found.dtype} {list(found.shape)}; bool [32] is due."


def no_certificate_is_false(tool: ToolFixture) -> str:
    """Nothing is certified that the closed form can break, nor what is wrong already."""
    grey = tool.x.flatten(1).mean(1).double()
    for ball, reach in ((Linf(Fraction(1, 10)), 0.1), (L2(Fraction(2, 5)), 0.1)):
        false = tool.certified(ball) & ((grey - 0.5).abs() < reach * (1 - 1e-6))
        if false.any():
            return f"in {ball.name} it certified {int(false.sum())} images that break."
    wrong = tool.tool.certify(tool.model, tool.x, 1 - tool.y, Linf(Fraction(1, 10)))
    return "it certified images that are wrong already." if wrong.any() else ""


def smaller_balls_certify_more(tool: ToolFixture) -> str:
    """What holds in a ball holds in a smaller one."""
    large, small = (tool.certified(Linf(Fraction(1, n))) for n in (5, 20))
    lost = int((large & ~small).sum())
    return f"{lost} images hold in radius 1/5 and not in 1/20." if lost else ""


def evidence_is_a_finding_and_a_sentence(tool: ToolFixture) -> str:
    """`examine` gives Evidence: a Finding, and a sentence with its numbers."""
    found: object = tool.examined()
    if not isinstance(found, Evidence) or not isinstance(found.finding, Finding):
        return f"examine gave {found!r}; Evidence(Finding, sentence) is due."
    return "" if found.sentence.strip() else "the evidence has no sentence."


def honest_models_raise_no_flag(tool: ToolFixture) -> str:
    """A linear model raises no flag."""
    found = tool.examined()
    raised = found.finding is Finding.RAISED
    return f"an honest linear model was flagged: {found.sentence}" if raised else ""


def looking_is_repeatable(tool: ToolFixture) -> str:
    """Looking again gives the same evidence."""
    one, two = tool.examined(), tool.examined()
    return "" if one == two else f"first {one.sentence!r}, then {two.sentence!r}."


def model_is_left_alone(tool: ToolFixture) -> str:
    """Weights, modes, hooks and global generators stay as they are."""
    before, generators = ModelState.of(tool.model), RandomState.after_draws()
    try:
        _look(tool)
        moved = [*before.changed(tool.model), *generators.changed()]
    finally:
        generators.restore()
    return f"it changed {', '.join(moved[:3])}." if moved else ""


def _look(tool: ToolFixture) -> None:
    if hasattr(tool.tool, "examine"):
        tool.examined()
    else:
        tool.certified(Linf(Fraction(1, 10)))


CERTIFIER_CHECKS = checks_of(
    refusal_is_a_sentence,
    certificate_has_one_bit_a_row,
    no_certificate_is_false,
    smaller_balls_certify_more,
    model_is_left_alone,
)
DIAGNOSTIC_CHECKS = checks_of(
    evidence_is_a_finding_and_a_sentence,
    honest_models_raise_no_flag,
    looking_is_repeatable,
    model_is_left_alone,
)
