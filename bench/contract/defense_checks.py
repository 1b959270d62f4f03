"""What every defense promises: an ordinary function of one image, and an honest word on the rest.

Comparisons that an honest float32 kernel may move in the last bits use `CLOSE`; honest noise is
near 1e-6 of the logit scale, a forward in train mode moves it by half (both measured).
"""

from __future__ import annotations

import torch
from safetensors.torch import load, save
from torch import Tensor

from bench.contract.check import DoesNotApply, checks_of
from bench.contract.defense_fixture import (
    DefenseFixture,
    gradient_of_weighted,
    logit_weights,
    logits_of,
    relative_difference,
    seeded_logits,
)
from bench.contract.fixtures import ModelState, RandomState
from bench.core.outcomes import REJECTED
from bench.data import datasets
from bench.data.datasets import to_float
from bench.engine.answers import column_mismatch

ROUNDING = 1e-4  # of the logit scale
DIFFERENCE_STEP = 2.0**-10  # of a pixel: above float32's noise, below most kinks


def _differs(what: str, one: Tensor, two: Tensor, hint: str) -> str:
    """A sentence when two answers that should be one are not close."""
    far = relative_difference(one, two)
    if far <= ROUNDING:
        return ""
    return (
        f"logits moved by {far:.2g} of their scale {what}; at most {ROUNDING:g} is rounding. {hint}"
    )


def _deterministic(subject: DefenseFixture) -> None:
    if subject.is_random:
        raise DoesNotApply("it declares randomness; its draws belong to the whole batch.")


def builds(subject: DefenseFixture) -> str:
    """`build` gives an nn.Module."""
    subject.build()  # the loader refuses anything else
    return ""


def logits_have_one_column_a_class(subject: DefenseFixture) -> str:
    """Images [n, C, H, W] become logits [n, K], for K classes; one that rejects adds a score."""
    found = tuple(logits_of(subject.build(), subject.x).shape)
    classes = len(subject.dataset.classes)
    if len(found) != 2 or found[0] != len(subject.x):
        wanted = (len(subject.x), classes + subject.rejects)
        return f"logits came as {found}; {wanted} was expected."
    return column_mismatch(found[1], classes, rejects=subject.rejects)


def logits_are_float32(subject: DefenseFixture) -> str:
    """Logits are float32."""
    found = logits_of(subject.build(), subject.x).dtype
    return "" if found is torch.float32 else f"logits came as {found}; return torch.float32."


def logits_are_finite(subject: DefenseFixture) -> str:
    """Every logit is a finite number."""
    bad = int((~torch.isfinite(logits_of(subject.build(), subject.x)).all(1)).sum())
    return f"{bad} of {len(subject.x)} images got NaN or infinite logits." if bad else ""


def black_and_white_are_images(subject: DefenseFixture) -> str:
    """Images that are 0 or 1 everywhere get finite logits."""
    edges = torch.cat([torch.zeros_like(subject.x[:16]), torch.ones_like(subject.x[:16])])
    answer = logits_of(subject.build(), edges)
    return "" if torch.isfinite(answer).all() else "all-black or all-white images got NaN logits."


def asking_twice_answers_twice_the_same(subject: DefenseFixture) -> str:
    """The same images get bitwise the same logits again."""
    module = subject.build()
    one, two = logits_of(module, subject.x), logits_of(module, subject.x)
    if torch.equal(one, two):
        return ""
    return f"the second answer differs by {relative_difference(one, two):.2g}; keep no state between calls."


def companions_do_not_matter(subject: DefenseFixture) -> str:
    """An image's logits do not depend on the other images of the batch."""
    module, mixed = subject.build(), subject.x.clone()
    mixed[16:] = subject.examples[0][-16:].flip(0)
    one, two = logits_of(module, subject.x)[:16], logits_of(module, mixed)[:16]
    hint = "Use no statistics of the batch; call .eval() inside build."
    return _differs("with other images beside them", one, two, hint)


def order_does_not_matter(subject: DefenseFixture) -> str:
    """Turning the batch round turns the answer round."""
    _deterministic(subject)
    module = subject.build()
    one, two = logits_of(module, subject.x), logits_of(module, subject.x.flip(0)).flip(0)
    return _differs("in reverse order", one, two, "Judge each image by itself.")


def one_image_is_a_batch(subject: DefenseFixture) -> str:
    """An image alone gets the logits that it gets in a batch."""
    _deterministic(subject)
    module = subject.build()
    one = logits_of(module, subject.x)[:4]
    two = torch.cat([logits_of(module, image[None]) for image in subject.x[:4]])
    return _differs("at batch size 1", one, two, "Judge each image by itself.")


def calls_leave_no_trace(subject: DefenseFixture) -> str:
    """Ten other calls do not change an answer."""
    module = subject.build()
    one = logits_of(module, subject.x)
    for call in range(10):
        logits_of(module, subject.examples[0][-32:].roll(call, 0), seed=call)
    two = logits_of(module, subject.x)
    return _differs("after ten other calls", one, two, "Keep no state between calls.")


def gradients_leave_no_trace(subject: DefenseFixture) -> str:
    """Asking for a gradient changes no later answer."""
    module = subject.build()
    one = logits_of(module, subject.x)
    gradient_of_weighted(module, subject.x, logit_weights(one))
    two = logits_of(module, subject.x)
    return _differs("after a gradient was taken", one, two, "Keep no state between calls.")


def gradients_are_of_the_same_answer(subject: DefenseFixture) -> str:
    """The logits are the same whether a gradient will be taken or not."""
    module = subject.build()
    one = logits_of(module, subject.x)
    leaf = subject.x.clone().requires_grad_()
    two = seeded_logits(module, leaf, 0).detach()
    return _differs("when a gradient was wanted", one, two, "Never look whether one is wanted.")


def eval_mode_is_kept(subject: DefenseFixture) -> str:
    """Every part is in eval mode after build, and after a call."""
    _visible(subject)
    module = subject.build()
    logits_of(module, subject.x)
    noisy = [name or "the module" for name, part in module.named_modules() if part.training]
    return f"{noisy[0]} is in train mode; call .eval() and leave it so." if noisy else ""


def weights_are_left_alone(subject: DefenseFixture) -> str:
    """Neither answers nor gradients change a weight, a buffer, a mode or a hook."""
    _visible(subject)
    module = subject.build()
    before = ModelState.of(module)
    answer = logits_of(module, subject.x)
    gradient_of_weighted(module, subject.x, logit_weights(answer))
    moved = before.changed(module)
    return f"a call changed {', '.join(moved[:3])}; a forward only reads." if moved else ""


def images_are_left_alone(subject: DefenseFixture) -> str:
    """The images that come in are not written to."""
    given = subject.x.clone()
    logits_of(subject.build(), given)
    return "" if torch.equal(given, subject.x) else "forward wrote into its input; work on a copy."


def global_random_state_is_left_alone(subject: DefenseFixture) -> str:
    """A call moves no global generator; declared randomness may draw from torch's."""
    module = subject.build()
    before = RandomState.after_draws()
    try:
        with torch.no_grad():
            module(subject.x)
        moved = [name for name in before.changed() if not (subject.is_random and name == "torch")]
    finally:
        before.restore()
    return f"a call moved the global generator of {', '.join(moved)}." if moved else ""


def randomness_is_declared(subject: DefenseFixture) -> str:
    """Answers vary with torch's seed exactly where `randomness` is declared."""
    module = subject.build()
    one, again, two = (logits_of(module, subject.x, seed) for seed in (0, 0, 1))
    if not torch.equal(one, again):
        return "one seed of torch gave two answers; draw from torch's global generator only."
    if torch.equal(one, two) == subject.is_random:
        found = "do not vary" if subject.is_random else "vary"
        return f"randomness is {subject.defense.randomness}, but answers {found} with the seed."
    return ""


def a_gradient_exists(subject: DefenseFixture) -> str:
    """Some logit has some slope, or a stand-in is declared."""
    _exempt(subject)
    if subject.defense.bpda is not None:
        raise DoesNotApply("it declares a stand-in.")
    module = subject.build()
    gradient = gradient_of_weighted(module, subject.x, logit_weights(logits_of(module, subject.x)))
    if not torch.isfinite(gradient).all():
        return "input gradients are not finite; declare a bpda or mend the slope."
    if gradient.any():
        return ""
    return "all input gradients are zero; declare a bpda, or robustness is shown as suspect."


def gradient_is_the_slope(subject: DefenseFixture) -> str:
    """The gradient agrees with finite differences, or a stand-in is declared."""
    _exempt(subject)
    if subject.defense.bpda is not None:
        raise DoesNotApply("it declares a stand-in.")
    module, x = (
        subject.build(),
        subject.examples[0][:64].clamp(DIFFERENCE_STEP, 1 - DIFFERENCE_STEP),
    )
    weight = logit_weights(logits_of(module, x))
    generator = torch.Generator().manual_seed(3)
    v = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    told = (gradient_of_weighted(module, x, weight) * v).flatten(1).sum(1).double()
    ahead, behind = (logits_of(module, x + h * v) for h in (DIFFERENCE_STEP, -DIFFERENCE_STEP))
    seen = ((ahead - behind).double() * weight).sum(1) / (2 * DIFFERENCE_STEP)
    cosine = float(told @ seen / (told.norm() * seen.norm()).clamp_min(1e-300))
    if cosine >= 0.9 or not (told.any() or seen.any()):
        return ""
    return (
        f"gradients and finite differences agree by {cosine:.2f} only (0.9 was expected); "
        "declare a bpda for the part without a true slope."
    )


def _visible(subject: DefenseFixture) -> None:
    if subject.sandboxed_module is not None:
        raise DoesNotApply("its parts are behind the walls of the sandbox.")


def _exempt(subject: DefenseFixture) -> None:
    """Raises DoesNotApply for a built-in control that declares why it hides its gradient."""
    if subject.is_built_in and subject.defense.control:
        raise DoesNotApply(f"declared a control: {subject.defense.control}.")


def bpda_answers_alike(subject: DefenseFixture) -> str:
    """A stand-in gives finite logits of the same shape, with a gradient that is not zero."""
    loader = subject.loader
    other = loader.bpda()
    if other is None:
        raise DoesNotApply("it declares no stand-in.")
    own, other_logits = logits_of(loader.build(), subject.x), logits_of(other, subject.x)
    if other_logits.shape != own.shape:
        return f"the stand-in's logits are {list(other_logits.shape)}, not {list(own.shape)}."
    gradient = gradient_of_weighted(other, subject.x, logit_weights(own))
    if not (torch.isfinite(other_logits).all() and torch.isfinite(gradient).all()):
        return "the stand-in gives NaN or infinite logits or gradients."
    return "" if gradient.any() else "the stand-in has no gradient either; it stands in for one."


def two_builds_are_one(subject: DefenseFixture) -> str:
    """Two builds give bitwise the same answers."""
    one, two = (logits_of(subject.loader.build(), subject.x) for _ in range(2))
    if torch.equal(one, two):
        return ""
    return f"two builds differ by {relative_difference(one, two):.2g}; load every weight, seed every draw."


def saved_is_loaded(subject: DefenseFixture) -> str:
    """Weights saved and loaded into another build give bitwise the same answers."""
    _visible(subject)
    module, other = subject.build(), subject.build()
    state = {name: value.clone().contiguous() for name, value in module.state_dict().items()}
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(load(save(state)))
    one, two = logits_of(module, subject.x), logits_of(other, subject.x)
    return "" if torch.equal(one, two) else "answers changed by saving and loading the state."


def names_are_known(subject: DefenseFixture) -> str:
    """Its data sets, its surrogate and the threat models of its claims are registered."""
    defense, registry = subject.defense, subject.registry
    for name in defense.datasets:
        registry.find("dataset", name)
    registry.find("defense", defense.surrogate)
    for claim in defense.claims:
        threat = registry.find("threat", claim.threat).value
        if threat.dataset not in defense.datasets:
            return f"it claims {claim.threat} on {threat.dataset}, which `datasets` leaves out."
    return ""


def claims_are_shares(subject: DefenseFixture) -> str:
    """A claim is a share of all examples, 0 to 1, one for each threat model."""
    claims = subject.defense.claims
    for claim in claims:
        if not 0 <= claim.robust <= 1:
            return f"{claim.threat} is claimed at {claim.robust}; a share is 0 to 1."
        if sum(other.threat == claim.threat for other in claims) > 1:
            return f"{claim.threat} is claimed twice; one share is one claim."
    return ""


def better_than_chance(subject: DefenseFixture) -> str:
    """Clean accuracy is above chance by three standard errors."""
    x, y = subject.examples
    right = float((subject.labels(subject.build(), x) == y).double().mean())
    chance = 1 / len(subject.dataset.classes)
    least = chance + 3 * (chance * (1 - chance) / len(y)) ** 0.5
    return "" if right > least else f"clean accuracy is {right:.3f}; above {least:.3f} is chance."


def clean_images_are_accepted(subject: DefenseFixture) -> str:
    """Of clean test images it rejects at most twice the declared share, up to chance."""
    share = subject.defense.rejects
    if share is None:
        raise DoesNotApply("it never rejects.")
    x, y = subject.examples
    found = float((subject.labels(subject.build(), x) == REJECTED).double().mean())
    most = 2 * share + 3 * (2 * share * max(1 - 2 * share, 0) / len(y)) ** 0.5
    if found <= most:
        return ""
    return (
        f"it rejects {found:.3f} of clean test images and declares {share:g}; above {most:.3f} "
        "the threshold is not what it says. Set it on images that nothing was fitted to."
    )


def not_looked_up(subject: DefenseFixture) -> str:
    """Noise of one grey level leaves nine answers of ten as they were."""
    module, x = subject.build(), subject.examples[0]
    generator = torch.Generator().manual_seed(4)
    grey = (torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1) / 255
    kept = subject.labels(module, x) == subject.labels(module, (x + grey).clamp(0, 1))
    share = float(kept.double().mean())
    return "" if share >= 0.9 else f"one grey level of noise kept only {share:.2f} of the answers."


def not_memorised(subject: DefenseFixture) -> str:
    """Test images are not better known than training images."""
    train = datasets.load_dataset(subject.dataset).train
    if train is None:
        raise DoesNotApply(f"{subject.dataset.name} comes without its training half.")
    x, y = subject.examples
    module, n = subject.build(), len(y)
    canary = to_float(torch.from_numpy(train.images[:n].copy()))
    truth = torch.from_numpy(train.labels[:n].copy())
    known = float((subject.labels(module, x) == y).double().mean())
    fresh = float((subject.labels(module, canary) == truth).double().mean())
    error = max(known * (1 - known) + fresh * (1 - fresh), 1 / n) ** 0.5 / n**0.5
    if known - fresh <= 0.02 + 3 * error:
        return ""
    return f"test images are right at {known:.3f}, training images at {fresh:.3f}: memorised."


DEFENSE_CHECKS = checks_of(
    builds,
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
    global_random_state_is_left_alone,
    randomness_is_declared,
    a_gradient_exists,
    gradient_is_the_slope,
    bpda_answers_alike,
    two_builds_are_one,
    saved_is_loaded,
    names_are_known,
    claims_are_shares,
    better_than_chance,
    clean_images_are_accepted,
    not_looked_up,
    not_memorised,
)
