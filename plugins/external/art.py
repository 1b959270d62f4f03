"""Adversarial Robustness Toolbox (arXiv:1807.01069): black-box attacks that nobody else has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.plugin import Access, ExternalAttack, ExternalProblem, MissingLibrary, hookimpl
from plugins.external._library_attack import brought, offered, version

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Toolbox:
    """One evasion attack of ART, its options set, one example at a time as ART plays them.

    ART sees a function from arrays to arrays: no device, no mode and no gradient is its to handle.
    """

    name: str
    kind: str
    """The class in `art.attacks.evasion`."""
    norms: tuple[str, ...]
    cite: str
    summary: str
    needs: Access = Access.LABELS
    minimises: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    shares: bool = False
    """It wants probabilities instead of logits."""
    classes: int = 2
    """The fewest that it takes; columns that never win fill up."""
    rows: int = 1
    version: str = field(default_factory=lambda: version("adversarial-robustness-toolbox"))

    @property
    def goals(self) -> tuple[str, ...]:
        """A distance board is for those who shrink."""
        return ("untargeted", "nearest") if self.minimises else ("untargeted",)

    def prepare(self) -> None:
        """Import the library."""
        import_module("art.attacks.evasion")
        import_module("art.estimators.classification")

    def run(self, problem: ExternalProblem) -> Tensor:
        """Its images, from numpy and back."""
        classification = import_module("art.estimators.classification")
        estimator = classification.BlackBoxClassifierNeuralNetwork(
            self.predictor(problem), tuple(problem.x.shape[1:]), max(self.classes, problem.classes),
            channels_first=True, clip_values=(0.0, 1.0),
        )  # fmt: skip
        attack = getattr(import_module("art.attacks.evasion"), self.kind)
        labels = np.eye(estimator.nb_classes, dtype=np.float32)[problem.y.cpu().numpy()]
        images = attack(estimator, **self.options).generate(problem.x.cpu().numpy(), labels)
        found = torch.from_numpy(np.asarray(images, dtype=np.float32)).to(problem.x.device)
        return brought(problem, found, self.minimises)

    def predictor(self, problem: ExternalProblem) -> Any:
        """The defense as a function of arrays."""

        def predict(images: Array) -> Array:
            asked = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
            with torch.no_grad():
                logits = problem.model(asked.to(problem.x.device))
            answer: Array = (logits.softmax(1) if self.shares else logits).cpu().numpy()
            return np.pad(answer, ((0, 0), (0, max(0, self.classes - problem.classes))))

        return predict


@hookimpl
def bench_attacks() -> Iterator[ExternalAttack | MissingLibrary]:
    """Labels alone, then scores."""
    yield from offered("art", "adversarial-robustness-toolbox", attacks())


def attacks() -> Iterator[Toolbox]:
    """Some thousand questions an example each."""
    yield Toolbox(
        "art-sign-opt", "SignOPTAttack", ("L2",), "arXiv:1909.10773",
        "Whether a turn of the direction brings the border nearer: one question, one bit.",
        classes=3,  # its guard against a single output column catches two columns too
        options={"targeted": False, "k": 20, "max_iter": 20, "num_trial": 50, "query_limit": 2000},
    )  # fmt: skip
    yield Toolbox(
        "art-simba", "SimBA", ("L2",), "arXiv:1905.07121",
        "Pixel by pixel, up or down, whatever lowers the score of the label.",
        Access.SCORES, minimises=False, shares=True,
        options={"attack": "px", "epsilon": 0.2, "max_iter": 500, "verbose": False},
    )  # fmt: skip
    yield Toolbox(
        "art-zoo", "ZooAttack", ("L2",), "arXiv:1708.03999",
        "Carlini and Wagner's loss, its slope from differences of scores.",
        Access.SCORES,
        options={
            "max_iter": 40, "binary_search_steps": 3, "initial_const": 10.0, "learning_rate": 0.1,
            "use_resize": False, "use_importance": False, "nb_parallel": 16, "variable_h": 0.01,
            "verbose": False,
        },
    )  # fmt: skip
