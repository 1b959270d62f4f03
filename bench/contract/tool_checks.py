"""Checks of certifiers and diagnostics: typed results, no false certificate, no side effects."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.contract.check import Check, DoesNotApply, checks_of
from bench.contract.fixtures import ModelState, RandomState
from bench.engine.values import checked_column
from bench.plugin import Certifier, Defense, Diagnostic, Evidence, Finding
from bench.threats.norms import L2, Linf, PerturbationSet


def mean_pixel_model() -> nn.Module:
    """A linear classifier of two classes by mean pixel, whose robust radius is known exactly.

    Class 0 where the mean pixel is above 1/2.
    """
    layer = nn.Linear(16, 2, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.ones(16), -torch.ones(16)]) / 8)
        layer.bias.copy_(torch.tensor([-1.0, 1.0]))
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


class ToolInputs(NamedTuple):
    """What a certifier or diagnostic gets."""

    model: nn.Module
    x: Tensor
    """[32, 1, 4, 4]."""
    y: Tensor
    """[32] int64."""


@dataclass(frozen=True)
class ToolFixture:
    """A certifier or diagnostic with a linear model, images and labels, made anew each time."""

    tool: Any

    @property
    def model(self) -> nn.Module:
        """The classifier of `mean_pixel_model`."""
        return mean_pixel_model()

    @property
    def x(self) -> Tensor:
        """Constant images [32, 1, 4, 4] of grey 0.1 to 0.9."""
        return torch.linspace(0.1, 0.9, 32)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()

    @property
    def y(self) -> Tensor:
        """Their true labels [32]."""
        return (self.x.flatten(1).mean(1) < 0.5).long()

    def inputs(self) -> ToolInputs:
        """A new model, images and labels."""
        return ToolInputs(self.model, self.x, self.y)

    def certified(self, ball: PerturbationSet, inputs: ToolInputs | None = None) -> Tensor:
        """Which of the images the certifier certifies, bool [32].

        Raises DoesNotApply where it refuses linear models.
        """
        certifier: Certifier = self.tool
        model, x, y = inputs or self.inputs()
        refusal = certifier.refuses(model, ball)
        if refusal:
            raise DoesNotApply(f"it refuses linear models: {refusal}")
        return certifier.certify(model, x, y, ball)

    def examined(self, inputs: ToolInputs | None = None) -> Evidence:
        """The diagnostic's evidence on the linear model."""
        diagnostic: Diagnostic = self.tool
        record = Defense("mean-pixel", lambda loader: mean_pixel_model())
        return diagnostic.examine(*(inputs or self.inputs()), record)


def refusal_is_a_sentence(fixture: ToolFixture) -> str:
    """`refuses` returns a sentence, or an empty string."""
    found = fixture.tool.refuses(nn.Sequential(nn.Flatten(), nn.Softplus()), Linf(Fraction(1, 10)))
    if isinstance(found, str):
        return ""
    return f"refuses returned {type(found).__name__}; str was expected."


def certificate_has_one_bit_a_row(fixture: ToolFixture) -> str:
    """`certify` returns bool [n]."""
    found = fixture.certified(Linf(Fraction(1, 10)))
    checked_column(found, 32, "certify returned")
    return ""


def no_certificate_is_false(fixture: ToolFixture) -> str:
    """No image is certified that is misclassified, or that a known perturbation breaks."""
    grey = fixture.x.flatten(1).mean(1).double()
    for ball, reach in ((Linf(Fraction(1, 10)), 0.1), (L2(Fraction(2, 5)), 0.1)):
        false = fixture.certified(ball) & ((grey - 0.5).abs() < reach * (1 - 1e-6))
        if false.any():
            return f"in {ball.name} it certified {int(false.sum())} images that can be broken."
    wrong = fixture.tool.certify(fixture.model, fixture.x, 1 - fixture.y, Linf(Fraction(1, 10)))
    return "it certified misclassified images." if wrong.any() else ""


def smaller_balls_certify_more(fixture: ToolFixture) -> str:
    """Images that are certified in a ball are certified in a smaller one."""
    large, small = (fixture.certified(Linf(Fraction(1, n))) for n in (5, 20))
    lost = int((large & ~small).sum())
    return f"{lost} images are certified at radius 1/5 and not at 1/20." if lost else ""


def evidence_is_a_finding_and_a_sentence(fixture: ToolFixture) -> str:
    """`examine` returns Evidence: a Finding, and a sentence with the numbers behind it."""
    found: object = fixture.examined()
    if not isinstance(found, Evidence) or not isinstance(found.finding, Finding):
        return f"examine returned {found!r}; Evidence(Finding, sentence) was expected."
    return "" if found.sentence.strip() else "the evidence has no sentence."


def honest_models_raise_no_flag(fixture: ToolFixture) -> str:
    """There is no warning on a linear model, which hides nothing."""
    found = fixture.examined()
    warned = found.finding is Finding.WARNING
    return f"there is a warning on a linear model: {found.sentence}" if warned else ""


def looking_is_repeatable(fixture: ToolFixture) -> str:
    """Examining a second time gives the same evidence."""
    one, two = fixture.examined(), fixture.examined()
    return "" if one == two else f"first {one.sentence!r}, then {two.sentence!r}."


def examined_model_is_left_alone(fixture: ToolFixture) -> str:
    """No weight, mode, hook or global random generator changes."""
    inputs = fixture.inputs()
    before, generators = ModelState.of(inputs.model), RandomState.after_draws()
    try:
        _use(fixture, inputs)
        changed = [*before.changed(), *generators.changed()]
    finally:
        generators.restore()
    return f"it changed {', '.join(changed[:3])}." if changed else ""


def examined_images_are_left_alone(fixture: ToolFixture) -> str:
    """It does not write into the images and labels that it gets."""
    inputs = fixture.inputs()
    versions = inputs.x._version, inputs.y._version
    _use(fixture, inputs)
    for what, given, wanted, version in (
        ("images", inputs.x, fixture.x, versions[0]),
        ("labels", inputs.y, fixture.y, versions[1]),
    ):
        if given._version != version or not torch.equal(given, wanted):
            return f"it wrote into the {what} that it got; work on a copy."
    return ""


def _use(fixture: ToolFixture, inputs: ToolInputs) -> None:
    if hasattr(fixture.tool, "examine"):
        fixture.examined(inputs)
    else:
        fixture.certified(Linf(Fraction(1, 10)), inputs)


LEFT_ALONE = (
    Check(examined_model_is_left_alone, "model-is-left-alone"),
    Check(examined_images_are_left_alone, "images-are-left-alone"),
)
CERTIFIER_CHECKS = (
    *checks_of(refusal_is_a_sentence),
    *checks_of(certificate_has_one_bit_a_row, decide=True),
    *checks_of(no_certificate_is_false, smaller_balls_certify_more),
    *LEFT_ALONE,
)
DIAGNOSTIC_CHECKS = (
    *checks_of(evidence_is_a_finding_and_a_sentence, decide=True),
    *checks_of(honest_models_raise_no_flag, looking_is_repeatable),
    *LEFT_ALONE,
)
