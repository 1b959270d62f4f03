"""Attacks of peer libraries, called as their documentation shows, with our radii and steps."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.errors import UnavailableError
from bench.plugin import L2, Fraction, Goal, PerturbationSet
from tests.benchmarks.cases import Case
from tests.benchmarks.our_runs import Runner
from tests.benchmarks.run_result import RunResult, counted, referee, verified_images
from tests.benchmarks.unit_cost import now

WHOLE_BOX = L2(Fraction(1000))
"""A ball that contains the pixel box: minimum-norm attacks may end anywhere in it."""
NEAREST = Goal("nearest")

Peer: TypeAlias = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]
"""(model, x, y, eps, seed) -> adversarial images [n, C, H, W]."""


def peer(package: str, call: Peer, ball: PerturbationSet | None = None) -> Runner:
    """The runner of a peer's attack; `ball` replaces the ball of the case in verification."""

    def runner(case: Case, seed: int) -> RunResult:
        require_package(package)
        return run_peer(case, call, ball, seed)

    return runner


def require_package(package: str) -> None:
    """Raises UnavailableError where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(f"{package} is not installed; `uv sync --extra peers` brings it.")


def run_peer(case: Case, call: Peer, ball: PerturbationSet | None, seed: int) -> RunResult:
    """Attack the examples that are classified correctly, timed; then verify every image.

    The model is a copy whose parameters require gradients, as those of a trained model do.
    """
    model = OpaqueModel(copy.deepcopy(case.model)).requires_grad_(True).eval()
    where = case.correct.nonzero()[:, 0]
    x, y, eps = case.x[where], case.y[where], float(case.ball.radius)
    image = case.x.clone()
    with quiet(), counted(model) as counter:
        torch.manual_seed(seed)
        np.random.seed(seed)
        since = now(x.device)
        found = call(model, x.clone(), y.clone(), eps, seed)
        seconds = now(x.device) - since
    image[where] = found.detach().to(image)
    rules = referee(
        case, ball or case.ball, Goal() if ball is None else NEAREST, minimises=ball is not None
    )
    broken, distance = verified_images(rules, image)
    count = len(case.x)
    return RunResult(
        broken | ~case.correct, distance, image, seconds,
        counter.forwards / count, counter.gradients / count, counter.calls,
    )  # fmt: skip


class OpaqueModel(nn.Module):
    """A model in one module: ART calls the layers of a Sequential one by one, past the counter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, K] of images [n, C, H, W]."""
        logits: Tensor = self.model(images)
        return logits


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and progress logs of the peers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """PGD-40 with steps of a tenth of the radius."""
    import torchattacks

    found: Tensor = torchattacks.PGD(model, eps=eps, alpha=eps / 10, steps=40)(x, y)
    return found


def torchattacks_restarts(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """PGD-40 from two random starts; the second runs on examples that the first left."""
    import torchattacks

    once = torchattacks.PGD(model, eps=eps, alpha=eps / 10, steps=40)
    found: Tensor = torchattacks.MultiAttack([once, once])(x, y)
    return found


def torchattacks_fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """FGSM: one step of the radius."""
    import torchattacks

    found: Tensor = torchattacks.FGSM(model, eps=eps)(x, y)
    return found


def torchattacks_deepfool(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """DeepFool with 50 steps."""
    import torchattacks

    found: Tensor = torchattacks.DeepFool(model, steps=50)(x, y)
    return found


def foolbox_run(attack: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float | None) -> Tensor:
    """Run a Foolbox attack on images [n, C, H, W]; return the clipped images."""
    from foolbox.models.pytorch import PyTorchModel

    wrapped = PyTorchModel(model, bounds=(0, 1), device=x.device)
    _, clipped, _ = attack(wrapped, x, y, epsilons=eps)
    found: Tensor = clipped
    return found


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """PGD-40 with steps of a tenth of the radius."""
    from foolbox.attacks.projected_gradient_descent import (
        LinfProjectedGradientDescentAttack as LinfPGD,
    )

    return foolbox_run(LinfPGD(steps=40, rel_stepsize=0.1), model, x, y, eps)


def foolbox_deepfool(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """DeepFool with 50 steps over 10 classes."""
    from foolbox.attacks.deepfool import L2DeepFoolAttack

    return foolbox_run(L2DeepFoolAttack(steps=50), model, x, y, None)


def foolbox_cw(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """C&W: 5 rounds of 100 steps of 0.05, initial constant 0.01."""
    from foolbox.attacks.carlini_wagner import L2CarliniWagnerAttack

    attack = L2CarliniWagnerAttack(
        binary_search_steps=5, steps=100, stepsize=0.05, initial_const=0.01
    )
    return foolbox_run(attack, model, x, y, None)


def art_estimator(model: nn.Module, x: Tensor) -> Any:
    """The model as an ART classifier."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
        device_type="gpu" if x.device.type == "cuda" else "cpu",
    )  # fmt: skip


def art_run(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    """Run an ART attack on images [n, C, H, W], through numpy."""
    return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy()))


def art_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """PGD-40 with steps of a tenth of the radius, in one batch."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    attack = ProjectedGradientDescentPyTorch(
        art_estimator(model, x), eps=eps, eps_step=eps / 10, max_iter=40, num_random_init=1,
        batch_size=len(x), verbose=False,
    )  # fmt: skip
    return art_run(attack, x, y)


def art_deepfool(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """DeepFool with 50 steps over 10 classes, in one batch."""
    from art.attacks.evasion import DeepFool

    attack = DeepFool(
        art_estimator(model, x), max_iter=50, epsilon=0.02, nb_grads=10, batch_size=len(x),
        verbose=False,
    )  # fmt: skip
    return art_run(attack, x, y)


def art_cw(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """C&W: 5 rounds of 100 steps, initial rate 0.05, initial constant 0.01."""
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(
        art_estimator(model, x), learning_rate=0.05, binary_search_steps=5, max_iter=100,
        initial_const=0.01, batch_size=len(x), verbose=False,
    )  # fmt: skip
    return art_run(attack, x, y)


def adv_lib_deepfool(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """DeepFool with 50 steps."""
    from adv_lib.attacks import df

    found: Tensor = df(model, x, y, steps=50)
    return found


def adv_lib_cw(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """C&W: 5 rounds of 100 steps of 0.05, initial constant 0.01."""
    from adv_lib.attacks import carlini_wagner_l2

    found: Tensor = carlini_wagner_l2(
        model, x, y, learning_rate=0.05, initial_const=0.01, binary_search_steps=5,
        max_iterations=100,
    )  # fmt: skip
    return found


def apgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """APGD-CE with 100 iterations, as in the standard suite."""
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(model, n_iter=100, eps=eps, seed=seed, loss="ce", device=x.device)
    return images_of(attack.perturb(x, y))


def square(queries: int) -> Peer:
    """Square with a schedule rescaled to the number of queries, the default of the library."""

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from pyautoattack.square import SquareAttack

        attack = SquareAttack(
            model, n_queries=queries, eps=eps, p_init=0.8, seed=seed, resc_schedule=True,
            device=x.device,
        )  # fmt: skip
        return images_of(attack.perturb(x, y))

    return call


def autoattack(*attacks: str) -> Peer:
    """The standard suite as a cascade, or only these attacks of it."""

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from pyautoattack import AutoAttack

        chosen = AutoAttack(model, eps=eps, seed=seed, device=x.device)
        if attacks:
            chosen.attacks_to_run = list(attacks)
        return images_of(chosen.run_standard_evaluation(x, y, batch_size=PEER_BATCH))

    return call


PEER_BATCH = 250
"""The default batch size of pyautoattack."""


def images_of(output: Any) -> Tensor:
    """The images [n, C, H, W] of an output that may also contain labels."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
