"""Defenses that cheat by state, and attacks that report what they have not done."""

from __future__ import annotations

from functools import partial

from tests.sandbox.hostile.case import End, HostileCase, attack, defense

stateful = partial(HostileCase, family="state", end=End.REJECTED, code="contract", checked=True)
cheating = partial(HostileCase, family="attacks", kind="attack", code="not_adversarial",
                   end=End.REFUSED)  # fmt: skip

STATE = (
    stateful(
        name="counts-its-calls", sentence="calls-leave-no-trace|asking-twice",
        source=defense(after="logits = logits + self.calls"),
    ),
    stateful(
        name="keeps-clean-images",
        sentence="calls-leave-no-trace|asking-twice|companions|a-gradient-exists",
        source=defense(after="""
            known = getattr(self, "known", None)
            if known is None: self.known = images.detach().clone()
            elif known.shape == images.shape and (known - images).abs().max() < 0.5:
                logits = self.layer(known.flatten(1)) + 0 * logits
        """),
    ),
    stateful(
        name="sees-the-gradient-pass", sentence="gradient",
        source=defense(after="logits = logits * (1 if not images.requires_grad else -1)"),
    ),
    stateful(
        name="sees-the-batch-size", sentence="one-image-is-a-batch|companions|order",
        source=defense(after="logits = logits + len(images)"),
    ),
    stateful(
        name="reads-its-process-number", sentence="two-builds-are-one|better-than-chance",
        source=defense(after="import os\nlogits = logits + os.getpid() % 97 * torch.arange(10)"),
    ),
    stateful(
        name="hides-its-gradient", sentence="a-gradient-exists|gradient",
        source=defense(forward="images = images.detach() + 0 * images"),
    ),
)  # fmt: skip

ATTACKS = (
    cheating(
        name="returns-the-clean-images", end=End.FINISHED, code="ok",
        source=attack(after="adv = problem.x.clone()"),
    ),
    cheating(
        name="returns-other-images", code="out_of_ball",
        source=attack(after="adv = problem.x.roll(1, 0)"),
    ),
    cheating(
        name="far-outside-the-ball", code="out_of_ball",
        source=attack(after="adv = 1 - problem.x"),
    ),
    cheating(
        name="slightly-outside-the-ball", code="out_of_ball",
        source=attack(after="adv = (problem.x + (adv - problem.x) * 1.7)"),
    ),
    cheating(
        name="outside-the-box", code="out_of_box",
        source=attack(after="adv = problem.x + (adv - problem.x).sign() * 0.19 - 0.05"),
    ),
    cheating(
        name="pixels-not-a-number", code="not_finite_pixels",
        source=attack(after="adv[:, :, 0, 0] = float('nan')"),
    ),
    cheating(
        name="double-precision-images", code="bad_output", end=End.FAILED,
        source=attack(after="adv = adv.double()"),
    ),
    cheating(
        name="one-image-less", code="bad_output", end=End.FAILED,
        source=attack(after="adv = adv[1:]"),
    ),
    cheating(
        name="changes-the-originals", code="ok", end=End.UNCHANGED,
        source=attack(step="x = problem.x.clone()",
                      after="given = problem.x.clone()\nproblem.x.data.add_(5)\n"
                            "problem.x.data.copy_(given)"),
    ),
    cheating(
        name="moves-the-originals", code="ok", end=End.FINISHED,  # of copies, without effect
        source=attack(step="problem.x.data.copy_(1 - problem.x)\nadv = problem.x.clone()"),
    ),
    cheating(
        name="claims-success-in-its-state", code="plugin_error", end=End.FAILED,
        source=attack(after="problem.success = problem.broken = torch.ones(len(adv)).bool()\n"
                            "raise ValueError('nothing takes a claim')"),
        sentence="nothing takes a claim",
    ),
    cheating(
        name="gradients-from-a-black-box-attack", code="access", end=End.FAILED,
        sentence="gradients", source=attack().replace("Access.GRADIENTS", "Access.SCORES"),
    ),
    cheating(
        name="writes-after-it-has-answered", code="ok", end=End.UNCHANGED,
        source=attack(after="""
            import threading, time
            def later(kept):
                time.sleep(0.01)
                kept.fill_(7)
            threading.Thread(target=later, args=(adv,), daemon=True).start()
            adv = adv.clone()
        """),
    ),
    cheating(
        name="raises-on-the-second-step", code="plugin_error", end=End.FAILED,
        sentence="only the first step",
        source=attack(step='if self.calls > 1: raise ValueError("only the first step")'),
    ),
)  # fmt: skip
