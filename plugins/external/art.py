"""Black-box attacks of the Adversarial Robustness Toolbox (arXiv:1807.01069)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.plugin import Access, ExternalAttack, ExternalProblem, MissingLibrary, hookimpl
from plugins.external._library_attack import LibraryAttack, registered, version

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Toolbox(LibraryAttack):
    """One evasion attack of ART with its options, one example at a time as ART runs them.

    ART receives the defense as a function of arrays, so it handles no device, no train mode and no
    gradient.
    """

    needs: Access = Access.LABELS
    probabilities: bool = False
    """The attack expects probabilities instead of logits."""
    classes: int = 2
    """Smallest number of classes that the attack accepts; columns of zeros fill up."""
    rows: int = 1
    version: str = field(default_factory=lambda: version("adversarial-robustness-toolbox"))

    modules: ClassVar[tuple[str, ...]] = ("art.attacks.evasion", "art.estimators.classification")

    def generate(self, problem: ExternalProblem) -> Tensor:
        """The images [n, C, H, W] that ART returns, converted from numpy."""
        classification = import_module(self.modules[1])
        estimator = classification.BlackBoxClassifierNeuralNetwork(
            self.predictor(problem), tuple(problem.x.shape[1:]), max(self.classes, problem.classes),
            channels_first=True, clip_values=(0.0, 1.0),
        )  # fmt: skip
        labels = np.eye(estimator.nb_classes, dtype=np.float32)[problem.y.cpu().numpy()]
        attack = self.implementation(estimator, **self.options)
        images = attack.generate(problem.x.cpu().numpy(), labels)
        return torch.from_numpy(np.asarray(images, dtype=np.float32)).to(problem.x.device)

    def predictor(self, problem: ExternalProblem) -> Callable[[Array], Array]:
        """The defense as a function from images [b, C, H, W] to logits or probabilities [b, K]."""

        def predict(images: Array) -> Array:
            """Logits or probabilities [b, K] of images [b, C, H, W]."""
            queries = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
            with torch.no_grad():
                logits = problem.model(queries.to(problem.x.device))
            output: Array = (logits.softmax(1) if self.probabilities else logits).cpu().numpy()
            return np.pad(output, ((0, 0), (0, max(0, self.classes - problem.classes))))

        return predict


@hookimpl
def bench_attacks() -> Iterator[ExternalAttack | MissingLibrary]:
    """Register one attack that needs labels and two that need scores."""
    yield from registered("art", "adversarial-robustness-toolbox", attacks())


def attacks() -> Iterator[Toolbox]:
    """The attacks, each with a few thousand queries an example."""
    yield Toolbox(
        "art-sign-opt", "SignOPTAttack", ("L2",), "arXiv:1909.10773",
        "Sign-OPT: estimates from labels in which directions the decision boundary is nearer.",
        classes=3,  # ART's check for a single output column also rejects two columns
        options={"targeted": False, "k": 20, "max_iter": 20, "num_trial": 50, "query_limit": 2000},
    )  # fmt: skip
    yield Toolbox(
        "art-simba", "SimBA", ("L2",), "arXiv:1905.07121",
        "SimBA: changes one pixel at a time, up or down, where that lowers the label's score.",
        Access.SCORES, minimises=False, probabilities=True,
        options={"attack": "px", "epsilon": 0.2, "max_iter": 500, "verbose": False},
    )  # fmt: skip
    yield Toolbox(
        "art-zoo", "ZooAttack", ("L2",), "arXiv:1708.03999",
        "ZOO: the loss of Carlini and Wagner with gradients estimated from differences of scores.",
        Access.SCORES,
        options={
            "max_iter": 40, "binary_search_steps": 3, "initial_const": 10.0, "learning_rate": 0.1,
            "use_resize": False, "use_importance": False, "nb_parallel": 16, "variable_h": 0.01,
            "verbose": False,
        },
    )  # fmt: skip
