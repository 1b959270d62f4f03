"""Prepares a built defense for diagnostics: copies of images, training images, a fresh process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.core.isolation import Isolation
from bench.data import datasets
from bench.data.image_rows import to_float
from bench.engine.answer_work import work_of_answer
from bench.engine.answers import ClassifierOnly
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.fresh_process import BuildRequest, fresh_process
from bench.plugin import AnswerWork, Subject
from bench.sandbox.defense_proxy import DefenseProxy

TRAINING_IMAGES = 512  # at most, for comparison with the test images


def subject_of(built: BuiltDefense, images: int) -> Subject:
    """What diagnostics examine: the first clean images, copied, and what surrounds them."""
    return Subject(
        module=built.classifier,
        x=built.x[:images].clone(),
        y=built.y[:images].clone(),
        defense=built.defense,
        bpda=_without_detector(built),
        training=_training_images(built),
        fresh_process=_fresh_logits(built),
        answer_work=_answer_work(built.module),
    )


def _answer_work(module: torch.nn.Module) -> Callable[[Tensor], AnswerWork]:
    """What a defense computes for one answer; that of a sandboxed one is counted in its worker."""
    return (
        module.answer_work if isinstance(module, DefenseProxy) else partial(work_of_answer, module)
    )


def _without_detector(built: BuiltDefense) -> torch.nn.Module | None:
    """The BPDA approximation, whose answers are logits [n, K] like those of the classifier."""
    if built.bpda is None or not built.rejects:
        return built.bpda
    return ClassifierOnly(built.bpda)


def _training_images(built: BuiltDefense) -> tuple[Tensor, Tensor] | None:
    """The first training images [m, C, H, W] and their labels [m]; None without a training half."""
    half = datasets.load_dataset(built.dataset).train
    if half is None or not len(half.labels):
        return None
    device = built.settings.device
    images = torch.tensor(half.images[:TRAINING_IMAGES], device=device)
    return to_float(images), torch.tensor(half.labels[:TRAINING_IMAGES], device=device)


def _fresh_logits(built: BuiltDefense) -> Callable[[Tensor], Tensor | str]:
    """Logits [n, K] of images [n, C, H, W] from the defense, built in another process."""

    def sandboxed(images: Tensor) -> Tensor:
        module = built.builder.build()  # starts a sandbox of its own
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(0)
            answer: Tensor = module(images)
        return answer[:, :-1] if built.rejects else answer

    def in_a_new_interpreter(images: Tensor) -> Tensor | str:
        answer = fresh_process().logits(_request(built), images.cpu())
        if isinstance(answer, str):
            return answer
        return (answer[:, :-1] if built.rejects else answer).to(images.device)

    return sandboxed if isinstance(built.module, DefenseProxy) else in_a_new_interpreter


def _request(built: BuiltDefense) -> BuildRequest:
    """What another process needs to build the same defense."""
    registration, folder = built.builder.registration, built.builder.source.folder
    submissions = registration.folder.resolve().parent if registration.folder else None
    return BuildRequest(
        defense=built.defense.name,
        dataset=built.dataset.name,
        digest=built.digest,
        submissions=str(submissions) if submissions else "",
        allow_unsandboxed=registration.isolation is Isolation.UNSANDBOXED,
        folder=str(folder.resolve()) if folder else "",
        weights=built.builder.recipes,
    )
