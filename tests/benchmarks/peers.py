"""The peers, called as their own users call them, each with the same radius and steps as ours."""

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
from tests.benchmarks.models import World
from tests.benchmarks.ours import Side
from tests.benchmarks.outcome import Outcome, counted, judged, referee
from tests.benchmarks.unit_cost import now

FAR = L2(Fraction(1000))
"""Where a minimum-norm attack may end: anywhere in the box."""
NEAREST = Goal("nearest")

Peer: TypeAlias = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]
"""(model, x, y, eps, seed) -> adversarial images [n, C, H, W]."""


def peer(package: str, call: Peer, ball: PerturbationSet | None = None) -> Side:
    """The side that calls a peer; `ball`: judged by it rather than by the world's own."""

    def side(world: World, seed: int) -> Outcome:
        installed(package)
        return run(world, call, ball, seed)

    return side


def installed(package: str) -> None:
    """Raise UnavailableError where the peer is not here."""
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(f"{package} is not installed; `uv sync --extra peers` brings it.")


def run(world: World, call: Peer, ball: PerturbationSet | None, seed: int) -> Outcome:
    """Attack what is right on the clean images, on the clock; then judge every image.

    The model is a copy whose parameters ask for gradients, as every trained model's do.
    """
    model = Asked(copy.deepcopy(world.model)).requires_grad_(True).eval()
    where = world.right.nonzero()[:, 0]
    x, y, eps = world.x[where], world.y[where], float(world.ball.radius)
    image = world.x.clone()
    with quiet(), counted(model) as counter:
        torch.manual_seed(seed)
        np.random.seed(seed)
        since = now(x.device)
        found = call(model, x.clone(), y.clone(), eps, seed)
        seconds = now(x.device) - since
    image[where] = found.detach().to(image)
    rules = referee(
        world, ball or world.ball, Goal() if ball is None else NEAREST, minimises=ball is not None
    )
    broken, distance = judged(rules, image)
    count = len(world.x)
    return Outcome(
        broken | ~world.right, distance, image, seconds,
        counter.forwards / count, counter.gradients / count, counter.calls,
    )  # fmt: skip


class Asked(nn.Module):
    """A model in one piece: ART walks through the layers of a Sequential, past every counter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, K]."""
        logits: Tensor = self.model(images)
        return logits


@contextmanager
def quiet() -> Iterator[None]:
    """Peers warn of their own age and log their progress; neither belongs in the table."""
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
    """PGD-40 from two random starts; what the first breaks meets no second."""
    import torchattacks

    once = torchattacks.PGD(model, eps=eps, alpha=eps / 10, steps=40)
    found: Tensor = torchattacks.MultiAttack([once, once])(x, y)
    return found


def torchattacks_fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """One step of the radius."""
    import torchattacks

    found: Tensor = torchattacks.FGSM(model, eps=eps)(x, y)
    return found


def torchattacks_deepfool(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Fifty steps."""
    import torchattacks

    found: Tensor = torchattacks.DeepFool(model, steps=50)(x, y)
    return found


def foolbox_run(attack: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float | None) -> Tensor:
    """Foolbox's attack on Foolbox's model."""
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
    """Fifty steps, ten classes."""
    from foolbox.attacks.deepfool import L2DeepFoolAttack

    return foolbox_run(L2DeepFoolAttack(steps=50), model, x, y, None)


def foolbox_cw(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Five rounds of a hundred steps of 0.05, the first price 0.01."""
    from foolbox.attacks.carlini_wagner import L2CarliniWagnerAttack

    attack = L2CarliniWagnerAttack(
        binary_search_steps=5, steps=100, stepsize=0.05, initial_const=0.01
    )
    return foolbox_run(attack, model, x, y, None)


def art_estimator(model: nn.Module, x: Tensor) -> Any:
    """ART's view of the model."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
        device_type="gpu" if x.device.type == "cuda" else "cpu",
    )  # fmt: skip


def art_run(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    """numpy in, numpy out."""
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
    """Fifty steps, ten classes, in one batch."""
    from art.attacks.evasion import DeepFool

    attack = DeepFool(
        art_estimator(model, x), max_iter=50, epsilon=0.02, nb_grads=10, batch_size=len(x),
        verbose=False,
    )  # fmt: skip
    return art_run(attack, x, y)


def art_cw(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Five rounds of a hundred steps of at first 0.05, the first price 0.01."""
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(
        art_estimator(model, x), learning_rate=0.05, binary_search_steps=5, max_iter=100,
        initial_const=0.01, batch_size=len(x), verbose=False,
    )  # fmt: skip
    return art_run(attack, x, y)


def adv_lib_deepfool(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Fifty steps."""
    from adv_lib.attacks import df

    found: Tensor = df(model, x, y, steps=50)
    return found


def adv_lib_cw(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Five rounds of a hundred steps of 0.05, the first price 0.01."""
    from adv_lib.attacks import carlini_wagner_l2

    found: Tensor = carlini_wagner_l2(
        model, x, y, learning_rate=0.05, initial_const=0.01, binary_search_steps=5,
        max_iterations=100,
    )  # fmt: skip
    return found


def apgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """APGD-CE with 100 iterations, as `standard` sets it."""
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(model, n_iter=100, eps=eps, seed=seed, loss="ce", device=x.device)
    return moved(attack.perturb(x, y))


def square(queries: int) -> Peer:
    """Square alone, with its schedule stretched over the queries, which is its own default."""

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from pyautoattack.square import SquareAttack

        attack = SquareAttack(
            model, n_queries=queries, eps=eps, p_init=0.8, seed=seed, resc_schedule=True,
            device=x.device,
        )  # fmt: skip
        return moved(attack.perturb(x, y))

    return call


def autoattack(*attacks: str) -> Peer:
    """The whole of `standard` as a cascade, or only these of its attacks."""

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from pyautoattack import AutoAttack

        chosen = AutoAttack(model, eps=eps, seed=seed, device=x.device)
        if attacks:
            chosen.attacks_to_run = list(attacks)
        return moved(chosen.run_standard_evaluation(x, y, batch_size=BATCH))

    return call


BATCH = 250
"""pyautoattack's own default."""


def moved(answer: Any) -> Tensor:
    """The images, whether they came alone or with labels."""
    found: Tensor = answer[0] if isinstance(answer, tuple) else answer
    return found
