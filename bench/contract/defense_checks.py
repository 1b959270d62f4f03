"""Checks of a defense: a deterministic function of each image, with true declarations.

Logits that may differ in float32 rounding are compared up to `LOGIT_ROUNDING`. Measured: rounding
is near 1e-6 of the largest logit, a forward in train mode changes logits by half of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from bench.contract.check import Check, DoesNotApply, checks_of
from bench.contract.defense_fixture import (
    DefenseFixture,
    gradient_of_weighted,
    logit_weights,
    logits_of,
    relative_difference,
    same_logits,
    seeded_logits,
)
from bench.contract.fixtures import ModelState, RandomState
from bench.contract.gradient_checks import GRADIENT_CHECKS
from bench.core.outcomes import REJECTED
from bench.data import datasets
from bench.data.image_rows import to_float
from bench.engine import model_access
from bench.engine.answers import column_mismatch

LOGIT_ROUNDING = 1e-4  # of the largest logit
KEEP_NO_STATE = "Keep no state between calls."


def _why_different(what: str, one: Tensor, two: Tensor, hint: str) -> str:
    """A sentence where logits [n, K] that should be equal differ by more than rounding."""
    far = relative_difference(one, two)
    if far <= LOGIT_ROUNDING:
        return ""
    if far == inf:
        return f"logits that are finite otherwise are not finite {what}, or the other way. {hint}"
    return (
        f"logits changed by {far:.2g} of their scale {what}; at most {LOGIT_ROUNDING:g} was "
        f"expected. {hint}"
    )


def _why_not_equal(what: str, one: Tensor, two: Tensor, hint: str) -> str:
    """A sentence where logits [n, K] that should be equal differ in any bit."""
    if same_logits(one, two):
        return ""
    far = relative_difference(one, two)
    by = "in which logits are finite" if far == inf else f"by {far:.2g} of the logits"
    return f"{what} {by}; {hint}"


def _deterministic_build(fixture: DefenseFixture) -> nn.Module:
    """A build of the defense. Raises DoesNotApply where it declares randomness."""
    if fixture.is_random:
        raise DoesNotApply("it declares randomness, and random draws depend on the whole batch.")
    return fixture.build()


def _visible_build(fixture: DefenseFixture) -> nn.Module:
    """A build of the defense. Raises DoesNotApply where it runs in the sandbox."""
    if fixture.sandboxed_module is not None:
        raise DoesNotApply("its modules cannot be read in the sandbox.")
    return fixture.build()


def builds(fixture: DefenseFixture) -> str:
    """`build` returns an nn.Module."""
    fixture.build()  # raises PluginError for anything else
    return ""


def answers_are_logits(fixture: DefenseFixture) -> str:
    """A call returns a floating-point tensor [n, K] for n images."""
    fixture.logits(fixture.build())  # raises PluginError for anything else
    return ""


def logits_have_one_column_a_class(fixture: DefenseFixture) -> str:
    """Logits are [n, K] for K classes; with `rejects` there is one more column, the score."""
    columns = fixture.logits(fixture.build()).shape[1]
    return column_mismatch(columns, len(fixture.dataset.classes), rejects=fixture.rejects)


def logits_are_float32(fixture: DefenseFixture) -> str:
    """Logits are float32."""
    found = fixture.logits(fixture.build()).dtype
    return "" if found is torch.float32 else f"logits are {found}; return torch.float32."


def logits_are_finite(fixture: DefenseFixture) -> str:
    """All logits are finite."""
    bad = int((~torch.isfinite(fixture.logits(fixture.build())).all(1)).sum())
    return f"{bad} of {len(fixture.x)} images have NaN or infinite logits." if bad else ""


def black_and_white_are_images(fixture: DefenseFixture) -> str:
    """All-black and all-white images have finite logits."""
    edges = torch.cat([torch.zeros_like(fixture.x[:16]), torch.ones_like(fixture.x[:16])])
    finite = torch.isfinite(logits_of(fixture.build(), edges)).all()
    return "" if finite else "all-black or all-white images have NaN or infinite logits."


def asking_twice_answers_twice_the_same(fixture: DefenseFixture) -> str:
    """A second query of the same images gives the same logits, to the bit."""
    module = fixture.build()
    one, two = fixture.logits(module), fixture.logits(module)
    return _why_not_equal("the second answer differs", one, two, "keep no state between calls.")


def companions_do_not_matter(fixture: DefenseFixture) -> str:
    """The logits of an image do not depend on the other images of the batch."""
    module, kept = fixture.build(), max(1, len(fixture.x) // 2)
    # Inverted images are other companions also where the data set has few images.
    others = 1 - fixture.examples[0].flip(0)[: max(1, len(fixture.x) - kept)]
    one = fixture.logits(module)[:kept]
    two = logits_of(module, torch.cat([fixture.x[:kept], others]))[:kept]
    hint = "Use no statistics of the batch; call .eval() inside build."
    return _why_different("with other images in the batch", one, two, hint)


def order_does_not_matter(fixture: DefenseFixture) -> str:
    """A batch in reverse order gives the same logits in reverse order."""
    module = _deterministic_build(fixture)
    one, two = fixture.logits(module), logits_of(module, fixture.x.flip(0)).flip(0)
    return _why_different("in reverse order", one, two, "Classify each image on its own.")


def one_image_is_a_batch(fixture: DefenseFixture) -> str:
    """An image in a batch of one, and in a full one, has the same logits as in one of 32."""
    module, x = _deterministic_build(fixture), fixture.examples[0]
    one, hint = fixture.logits(module), "Classify each image on its own."
    two = torch.cat([logits_of(module, image[None]) for image in fixture.x[:4]])
    large = logits_of(module, x[torch.arange(fixture.full_batch) % len(x)])
    return _why_different("at batch size 1", one[:4], two, hint) or _why_different(
        f"at batch size {fixture.full_batch}", one, large[: len(one)], hint
    )


def calls_leave_no_trace(fixture: DefenseFixture) -> str:
    """Ten other calls do not change the logits of an image."""
    module = fixture.build()
    one = fixture.logits(module)
    for call in range(10):
        logits_of(module, fixture.examples[0][-32:].roll(call, 0), seed=call)
    return _why_different("after ten other calls", one, fixture.logits(module), KEEP_NO_STATE)


def gradients_leave_no_trace(fixture: DefenseFixture) -> str:
    """Computing a gradient does not change later logits."""
    module = fixture.build()
    one = fixture.logits(module)
    gradient_of_weighted(module, fixture.x, logit_weights(one))
    two = fixture.logits(module)
    return _why_different("after a gradient was computed", one, two, KEEP_NO_STATE)


def gradients_are_of_the_same_answer(fixture: DefenseFixture) -> str:
    """Logits are the same with and without a gradient."""
    module = fixture.build()
    one = fixture.logits(module)
    two = seeded_logits(module, fixture.x.clone().requires_grad_(), 0).detach()
    return _why_different("with a gradient", one, two, "Do not look at requires_grad.")


def eval_mode_is_kept(fixture: DefenseFixture) -> str:
    """All modules are in eval mode after `build`, and after a call."""
    module = _visible_build(fixture)
    fixture.logits(module)
    bad = [name or "the module" for name, part in module.named_modules() if part.training]
    return f"{bad[0]} is in train mode; call .eval() in build and keep that mode." if bad else ""


def weights_are_left_alone(fixture: DefenseFixture) -> str:
    """Neither calls nor gradients change a weight, buffer, mode or hook."""
    module = _visible_build(fixture)
    before = ModelState.of(module)
    gradient_of_weighted(module, fixture.x, logit_weights(fixture.logits(module)))
    changed = before.changed()
    return f"a call changed {', '.join(changed[:3])}; forward must only read." if changed else ""


def images_are_left_alone(fixture: DefenseFixture) -> str:
    """`forward` does not write into its input: in any batch, with and without gradients."""
    for images in _batches(fixture):
        module, given = fixture.build(), []
        for graph in (False, True, False, True):
            batch = images.clone().requires_grad_(graph)
            given.append((batch, batch._version))
            logits = _queried(module, batch) if graph else logits_of(module, batch)
            if not logits.isfinite().all():
                break
        # An operation in place raises the version also where it changes no value.
        if any(version != b._version or not torch.equal(b, images) for b, version in given):
            rows = f"batch of {len(images)}" if len(images) > 1 else "single image"
            return f"forward wrote into its input, a {rows}; work on a copy, as images.clone()."
    return ""


def _queried(module: nn.Module, images: Tensor) -> Tensor:
    """Logits [n, K] of images [n, C, H, W], after a backward pass through them."""
    with torch.enable_grad():
        logits = seeded_logits(module, images, 0)
        model_access.input_gradient((logits * logit_weights(logits)).sum(), images)
    return logits.detach()


def _batches(fixture: DefenseFixture) -> Iterator[Tensor]:
    """Batches of images [n, C, H, W] off the grid of 8 bits: 1, 32, and as large as a run's."""
    x = fixture.examples[0]
    generator = torch.Generator().manual_seed(5)
    for rows in (1, 32, max(fixture.full_batch, len(x))):
        images = x[torch.arange(rows) % len(x)]
        yield (images + (torch.rand(images.shape, generator=generator) - 0.5) / 128).clamp(0, 1)


def defense_uses_no_global_random_state(fixture: DefenseFixture) -> str:
    """A call uses no global random generator; with declared randomness it may use torch's."""
    module = fixture.build()
    before = RandomState.after_draws()
    try:
        with torch.no_grad():
            module(fixture.x)
        changed = before.changed()
    finally:
        before.restore()
    names = [name for name in changed if not (fixture.is_random and name == "torch")]
    return f"a call used the global random generator of {', '.join(names)}." if names else ""


def randomness_is_declared(fixture: DefenseFixture) -> str:
    """Logits vary with torch's seed if, and only if, `randomness` is declared."""
    module = fixture.build()
    one, again, two = (logits_of(module, fixture.x, seed) for seed in (0, 0, 1))
    if not same_logits(one, again):
        return "one seed of torch gave two results; use torch's global random generator only."
    if same_logits(one, two) == fixture.is_random:
        found = "do not vary" if fixture.is_random else "vary"
        return f"randomness is {fixture.defense.randomness}, but logits {found} with the seed."
    return ""


def two_builds_are_one(fixture: DefenseFixture) -> str:
    """Two builds give the same logits, to the bit."""
    first = fixture.build()  # in the sandbox the one that the other checks use
    one, two = (fixture.logits(module) for module in (first, fixture.loader.build()))
    hint = "load all weights, seed all random numbers."
    return _why_not_equal("two builds differ", one, two, hint)


def saved_is_loaded(fixture: DefenseFixture) -> str:
    """A build with the saved weights of another one gives the same logits, to the bit."""
    module, other = _visible_build(fixture), fixture.build()
    state = {name: value.clone().contiguous() for name, value in module.state_dict().items()}
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(load(save(state)))
    one, two = fixture.logits(module), fixture.logits(other)
    return "" if same_logits(one, two) else "logits changed by saving and loading the state_dict."


def names_are_known(fixture: DefenseFixture) -> str:
    """Its data sets, its surrogate and the threat models of its claims are registered."""
    defense, registry = fixture.defense, fixture.registry
    for name in defense.datasets:
        registry.find("dataset", name)
    registry.find("defense", defense.surrogate)
    for claim in defense.claims:
        threat = registry.find("threat", claim.threat).value
        if threat.dataset not in defense.datasets:
            return f"it claims {claim.threat} on {threat.dataset}, which is not in `datasets`."
    return ""


def claims_are_shares(fixture: DefenseFixture) -> str:
    """Each claim is a share of all examples, 0 to 1, and there is one per threat model."""
    claims = fixture.defense.claims
    for claim in claims:
        if not 0 <= claim.robust <= 1:
            return f"{claim.threat} is claimed at {claim.robust}; a share is 0 to 1."
        if sum(other.threat == claim.threat for other in claims) > 1:
            return f"{claim.threat} is claimed twice; make one claim per threat model."
    return ""


def better_than_chance(fixture: DefenseFixture) -> str:
    """Clean accuracy is above chance by three standard errors."""
    x, y = fixture.examples
    right = fixture.accuracy(fixture.build(), x, y)
    chance = 1 / len(fixture.dataset.classes)
    least = chance + 3 * (chance * (1 - chance) / len(y)) ** 0.5
    wrong = f"clean accuracy is {right:.3f}; more than {least:.3f} was expected."
    return "" if right > least else wrong


def clean_images_are_accepted(fixture: DefenseFixture) -> str:
    """It rejects at most twice the declared share of clean test images, up to chance.

    Raises DoesNotApply for a defense that does not reject images.
    """
    share = fixture.defense.rejects
    if share is None:
        raise DoesNotApply("it does not reject images.")
    x, y = fixture.examples
    found = float((fixture.labels(fixture.build(), x) == REJECTED).double().mean())
    most = 2 * share + 3 * (2 * share * max(1 - 2 * share, 0) / len(y)) ** 0.5
    if found <= most:
        return ""
    return (
        f"it rejects {found:.3f} of clean test images and declares {share:g}; at most {most:.3f} "
        "was expected. Set the threshold on images that were not used for training."
    )


def not_looked_up(fixture: DefenseFixture) -> str:
    """Noise of one grey level changes at most one prediction in ten."""
    module, x = fixture.build(), fixture.examples[0]
    generator = torch.Generator().manual_seed(4)
    grey = (torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1) / 255
    kept = fixture.labels(module, x) == fixture.labels(module, (x + grey).clamp(0, 1))
    share = float(kept.double().mean())
    wrong = f"noise of one grey level kept only {share:.2f} of the predictions; 0.9 was expected."
    return "" if share >= 0.9 else wrong


def not_memorised(fixture: DefenseFixture) -> str:
    """Accuracy on test images is not higher than on training images, up to chance.

    Raises DoesNotApply where the data set has no training half.
    """
    x, y = fixture.examples
    n = len(y)
    train_x, train_y = _training_examples(fixture, n)
    module = fixture.build()
    known, fresh = fixture.accuracy(module, x, y), fixture.accuracy(module, train_x, train_y)
    error = max(known * (1 - known) + fresh * (1 - fresh), 1 / n) ** 0.5 / n**0.5
    if known - fresh <= 0.02 + 3 * error:
        return ""
    return (
        f"accuracy is {known:.3f} on test images and {fresh:.3f} on training images: the test "
        "images are memorised."
    )


def _training_examples(fixture: DefenseFixture, n: int) -> tuple[Tensor, Tensor]:
    """The first `n` training images [n, C, H, W] and labels [n]; DoesNotApply without any."""
    train = datasets.load_dataset(fixture.dataset).train
    if train is None:
        raise DoesNotApply(f"{fixture.dataset.name} has no training half.")
    images = to_float(torch.from_numpy(train.images[:n].copy()))
    return images, torch.from_numpy(train.labels[:n].copy())


DEFENSE_CHECKS = (
    *checks_of(builds, answers_are_logits, decide=True),
    *checks_of(
        logits_have_one_column_a_class,
        logits_are_float32,
        logits_are_finite,
        black_and_white_are_images,
        asking_twice_answers_twice_the_same,
        companions_do_not_matter,
        order_does_not_matter,
        one_image_is_a_batch,
        calls_leave_no_trace,
        gradients_leave_no_trace,
        gradients_are_of_the_same_answer,
        eval_mode_is_kept,
        weights_are_left_alone,
        images_are_left_alone,
    ),
    Check(defense_uses_no_global_random_state, "global-random-state-is-left-alone"),
    *checks_of(randomness_is_declared),
    *GRADIENT_CHECKS,
    *checks_of(
        two_builds_are_one,
        saved_is_loaded,
    ),
    *checks_of(names_are_known, claims_are_shares, stand_alone=True),
    *checks_of(
        better_than_chance,
        clean_images_are_accepted,
        not_looked_up,
        not_memorised,
    ),
)
