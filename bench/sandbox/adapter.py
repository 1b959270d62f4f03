"""Registers submissions whose code runs in sandboxed worker processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench.core.errors import BenchError, PluginError
from bench.core.folders import cache_folder
from bench.core.hashing import digest
from bench.core.isolation import Isolation
from bench.core.json_cache import read_cached, write_cached
from bench.plugin import (
    Attack,
    Claim,
    Defense,
    ExternalAttack,
    Loader,
    Randomness,
    ThreatModel,
    hookimpl,
)
from bench.registry.card_index import code_key
from bench.registry.discovery import Plugin
from bench.registry.registry import HOOK_OF_KIND, Registry
from bench.registry.submission import Submission
from bench.sandbox import isolation
from bench.sandbox.attack_proxy import AttackProxy, SingleProcess
from bench.sandbox.declarations import AttackDeclarations, DefenseDeclarations
from bench.sandbox.defense_proxy import DefenseProxy
from bench.sandbox.external_proxy import ExternalAttackProxy
from bench.sandbox.process import (
    SPARE_PROCESS,
    Exchange,
    Message,
    RequestHandler,
    SandboxProcess,
    printable,
)
from bench.sandbox.protocol import Frame
from bench.sandbox.threat_declarations import ThreatDeclarations, unknown_names
from bench.training.defense_builder import DefenseBuilder

UNSANDBOXED_HINT = "--allow-unsandboxed runs it in this process, with all your permissions"
MAX_REQUESTS = 200  # for weights, of one build; the harness reads and digests a file for each
ATTACK_PROCESS = SingleProcess()
"""The worker process of the sandboxed attack that was used last."""


def isolate_submissions(
    registry: Registry, wanted: Mapping[str, Collection[str]] | None = None
) -> None:
    """Register submissions as proxies of worker processes.

    The registry records for each other submission why its code is not used.

    Args:
        registry: has read the cards of the submissions.
        wanted: kind -> names of the submissions that are needed; None, or a missing kind: all.
            A worker process is started for each, to read its declarations. The surrogates of
            wanted defenses are added.
    """
    names = dict(wanted or {})
    # Threat models come last: they name attacks that may be submissions.
    for name in sorted(registry.not_imported(), key=lambda n: _kind(registry, n) == "threat"):
        kind = _kind(registry, name)
        if kind in SANDBOXED_KINDS and name not in names.get(kind, [name]):
            continue
        reason = isolate_submission(registry, registry.submissions[name])
        registry.reasons_not_imported.pop(name, None)
        if reason:
            registry.reasons_not_imported[name] = reason
    sandboxed = [d for d in registry.defenses.values() if d.isolation is Isolation.SANDBOXED]
    surrogates = {registered.value.surrogate for registered in sandboxed}
    missing = surrogates & set(registry.not_imported()) - set(registry.reasons_not_imported)
    if missing:
        isolate_submissions(registry, {"defense": missing, "attack": [], "threat": []})


def _kind(registry: Registry, name: str) -> str:
    return registry.submissions[name].card.kind


def isolate_submission(registry: Registry, submission: Submission) -> str:
    """Register one submission as a proxy of worker processes; why not, or an empty string."""
    reason = why_not_sandboxed(submission)
    if reason:
        return reason
    before, card = len(registry.problems), submission.card
    try:
        registry.add_plugins([proxy_plugin(submission)])
    except BenchError as error:  # in its code, or because the process did not start
        return str(error).rstrip(".")
    if card.kind == "threat" and card.name in registry.threats:
        wrong = unknown_names(registry, registry.threats[card.name].value)
        if wrong:
            del registry.threats[card.name]
            return wrong.rstrip(".")
    problems = registry.problems[before:]
    del registry.problems[before:]
    return " ".join(problems).rstrip(".")


def why_not_sandboxed(submission: Submission) -> str:
    """Why a submission cannot be sandboxed here, as the end of a sentence; empty where it can."""
    if submission.card.kind not in SANDBOXED_KINDS:
        return f"the sandbox does not support kind {submission.card.kind!r}; {UNSANDBOXED_HINT}"
    if isolation.why_unavailable():
        return f"{isolation.why_unavailable()}, or run its code with --allow-unsandboxed"
    return ""


def proxy_plugin(submission: Submission) -> Plugin:
    """A plugin module that registers the submission's proxy; it runs no submitted code."""
    kind = submission.card.kind
    hook, value = HOOK_OF_KIND[kind], SANDBOXED_KINDS[kind](submission)
    module = ModuleType(f"bench_sandboxed_{submission.digest[:16]}")

    def values() -> list[Any]:
        return [value]

    setattr(module, hook, hookimpl(specname=hook)(values))
    source = submission.files["plugin.py"]
    return Plugin(module, "submission", source, submission, Isolation.SANDBOXED)


def proxy_defense(submission: Submission) -> Defense:
    """The record of a submitted defense; its `build` starts a worker with the model."""
    declared = DefenseDeclarations.parse(submission_title(submission), declarations_of(submission))
    return Defense(
        name=submission.card.name,
        build=partial(build_isolated, submission, declared, "build"),
        datasets=tuple(declared.datasets),
        cite=declared.cite,
        summary=declared.summary,
        claims=tuple(Claim(**claim.model_dump()) for claim in declared.claims),
        bpda=partial(build_isolated, submission, declared, "bpda") if declared.bpda else None,
        randomness=None if declared.draws is None else Randomness(declared.draws),
        surrogate=declared.surrogate,
        quick=declared.quick,
        forwards=declared.forwards,
        rejects=declared.rejects,
    )


def proxy_attack(submission: Submission) -> Attack | ExternalAttack:
    """A submitted attack whose methods run in a worker process."""
    declared = AttackDeclarations.parse(submission_title(submission), declarations_of(submission))
    kind = ExternalAttackProxy if declared.external else AttackProxy
    start = partial(_start_attack, submission)
    return kind(submission.card.name, declared, start, ATTACK_PROCESS)


def _start_attack(submission: Submission) -> SandboxProcess:
    """A worker process that has loaded the attack."""
    process = SPARE_PROCESS.take()
    request_declarations(submission, process)
    return process


def proxy_threat(submission: Submission) -> ThreatModel:
    """A submitted threat model, built here from plain values that a worker process sent.

    Raises PluginError where its perturbation set is not built in.
    """
    title = submission_title(submission)
    declared = ThreatDeclarations.parse(title, declarations_of(submission))
    return declared.threat_model(title, submission.card.name)


SANDBOXED_KINDS: Mapping[str, Callable[[Submission], Any]] = {
    "defense": proxy_defense,
    "attack": proxy_attack,
    "threat": proxy_threat,
}
"""Kind -> builder of the proxy of a submission of that kind."""


def build_isolated(
    submission: Submission, declared: DefenseDeclarations, role: str, loader: Loader
) -> DefenseProxy:
    """The model of a submission, or its BPDA approximation (`role` "bpda"), in a new worker.

    Raises TypeError where the loader is no DefenseBuilder.
    """
    if not isinstance(loader, DefenseBuilder):
        raise TypeError(f"the loader is {type(loader).__name__}; a DefenseBuilder was expected")
    shape, classes = list(loader.shape), loader.classes
    header = {"method": "build", "role": role, "shape": shape, "classes": classes}
    start = partial(_start_build, submission, header, loader, declared)
    return DefenseProxy(submission_title(submission), start, declared.forwards)


def _start_build(
    submission: Submission, header: Mapping[str, Any], loader: DefenseBuilder,
    declared: DefenseDeclarations,
) -> SandboxProcess:  # fmt: skip
    """A worker process that has built the model."""
    process = SPARE_PROCESS.take()
    call_with_source(process, submission, header, WeightsServer(loader, declared))
    return process


def submission_title(submission: Submission) -> str:
    """The name of a submission in messages."""
    return f"submission {submission.card.name}"


def declarations_of(submission: Submission) -> Frame:
    """The declarations of a submission, not yet validated.

    They are read once for each submission and version of the code, in a worker process that ends
    afterwards, and kept in the cache folder; commands on many submissions start no processes.
    """
    key = digest([_code_key(), submission.digest, submission.card.kind, submission.card.name])
    path = cache_folder() / "declarations" / f"{submission.digest[:32]}.json"
    known = read_cached(path, key)
    if known is not None:
        return Frame(0, {"declarations": known}, bytearray())
    process = SandboxProcess()
    frame = request_declarations(submission, process)
    process.close()
    write_cached(path, key, frame.header.get("declarations"))
    return frame


_code_key = functools.cache(code_key)


def request_declarations(submission: Submission, process: SandboxProcess) -> Frame:
    """The reply of a worker that loads the submission and sends its declarations."""
    header = {"method": f"declare {submission.card.kind}"}
    return call_with_source(process, submission, header)


def call_with_source(
    process: SandboxProcess,
    submission: Submission,
    header: Mapping[str, Any],
    handler: RequestHandler | None = None,
) -> Frame:
    """Send a request with the submission's source: exactly the bytes whose digest was computed."""
    card, source = submission.card, submission.content("plugin.py")
    origin = {
        "kind": card.kind, "name": card.name, "path": str(submission.folder / "plugin.py"),
        "threads": torch.get_num_threads(),  # sums depend on their number
    }  # fmt: skip
    title, seconds = submission_title(submission), process.limits.build
    return process.call(title, {**header, **origin}, source, seconds=seconds, handler=handler)


class WeightsServer:
    """Serves the weights that a build in a worker requests, and records their digests."""

    def __init__(self, loader: DefenseBuilder, declared: DefenseDeclarations) -> None:
        self.has_recipe, self.requests = declared.recipe, 0
        self.title = f"submission {loader.name}"
        self.loaders: dict[tuple[str, ...], DefenseBuilder] = {(loader.name,): loader}
        """Chain of defenses under construction -> its loader."""

    def __call__(self, frame: Frame, exchange: Exchange) -> Message:
        """The answer to one request. Raises PluginError where the request is not valid."""
        header = frame.header
        loader = self._loader(header.get("of"))
        self.requests += 1
        if self.requests > MAX_REQUESTS:
            raise PluginError(
                f"{self.title} made more than {MAX_REQUESTS} requests for weights; make fewer."
            )
        match header.get("request"):
            case "trained":
                content, path = self._trained(loader)
            case "weights":
                file, sha256 = str(header.get("file")), str(header.get("sha256"))
                content, path = loader.file_content(file, sha256)
            case "defense":
                return {"module": self._build(loader, str(header.get("name")))}, []
            case other:
                raise PluginError(f"{self.title} sent the unknown request {printable(other)}.")
        return {"path": str(path)}, [content]

    def _loader(self, chain: object) -> DefenseBuilder:
        known = tuple(chain) if isinstance(chain, list) else ()
        if not all(isinstance(name, str) for name in known) or known not in self.loaders:
            raise PluginError(
                f"{self.title} requested weights for {printable(chain)}, which is no defense under "
                "construction."
            )
        return self.loaders[known]

    def _trained(self, loader: DefenseBuilder) -> tuple[bytes, Path]:
        if self.has_recipe and len(loader.chain) == 1:
            raise PluginError(
                f"{loader.name} has a training recipe, and the sandbox does not train; put the "
                f"file that `bench train {loader.name} --allow-unsandboxed` writes beside it as "
                "weights.safetensors."
            )
        return loader.trained_content()

    def _build(self, loader: DefenseBuilder, name: str) -> str:
        """Build it here as well, for its digest and for missing weights; the name of its module."""
        registered = loader.registry.find("defense", name)
        if registered.origin != "built-in":
            raise PluginError(
                f"{loader.name} builds on {name}; a sandboxed defense can build on built-in "
                "defenses only."
            )
        loader.defense(name)
        self.loaders[(*loader.chain, name)] = loader.dependency(name)
        return registered.module
