"""Runs the certifiers on a built defense, once per threat model and certifier version."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.core.errors import PLUGIN_EXCEPTIONS
from bench.data.image_rows import windows
from bench.engine.values import checked_column
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.events import Listener, RunNotice
from bench.evaluation.failures import failure_of
from bench.plugin import Certifier, ThreatModel
from bench.registry.registry import Registry
from bench.sandbox.deadline import CELL_DEADLINE
from bench.store import CertificateRow, Store


def run_certifiers(
    store: Store,
    registry: Registry,
    built: BuiltDefense,
    threat: ThreatModel,
    which: str,
    listener: Listener,
) -> None:
    """Record the certificates of every applicable certifier; one that fails records none.

    Args:
        store: receives the certificates; certifiers whose certificates it has do not run again.
        registry: where the certifiers are registered.
        built: the defense.
        threat: the threat model; only untargeted ones have certificates.
        which: `none`, `quick` or `all`.
        listener: receives a notice for each certifier that fails.
    """
    if threat.goal.kind != "untargeted":
        return
    known = store.certificates(threat.id, built.examples.digest)
    recorded = {(row.defense_digest, row.certifier, row.certifier_digest) for row in known}
    for name, registration in registry.certifiers.items():
        certifier, source = registration.value, registration.source
        if (built.digest, name, source) in recorded or not is_selected(certifier, which):
            continue
        try:
            certified = certificates_of(certifier, built, threat)
        except PLUGIN_EXCEPTIONS as error:
            reason = failure_of(error).reason
            listener(RunNotice(f"{name} gives no certificates for {built.defense.name}: {reason}"))
            continue
        if certified is not None:
            names = (built.defense.name, built.digest, name, source)
            row = CertificateRow(*names, certifier.exact, certified.cpu().numpy())
            store.record_certificate(threat.id, built.examples.digest, row)


def is_selected(certifier: Certifier, which: str) -> bool:
    """Whether `--certify none`, `quick` or `all` includes a certifier."""
    return which == "all" or (which == "quick" and getattr(certifier, "quick", True))


def why_not_certifiable(certifier: Certifier, built: BuiltDefense, threat: ThreatModel) -> str:
    """Why a certifier does not apply to a defense under a threat model; empty when it does."""
    if built.rejects:
        name = built.defense.name
        return f"{name} rejects images: a certificate for its logits does not cover the rejection."
    if threat.nuisance is not None:
        return f"{certifier.name} bounds images as they are; {threat.name} changes them at random."
    if threat.ball.parametric:
        return f"{certifier.name} bounds images of norm balls; {threat.ball.name} is none."
    return certifier.refuses(built.module, threat.ball)


def certificates_of(
    certifier: Certifier, built: BuiltDefense, threat: ThreatModel
) -> Tensor | None:
    """[n] bool: which examples are certified robust; None where the certifier does not apply.

    Raises PluginError where the certifier returns another type or shape, or takes longer than a
    cell may.
    """
    with CELL_DEADLINE.interrupting(certifier.name), built.fixed_random_state():
        if why_not_certifiable(certifier, built, threat):
            return None
        parts, first = [], 0
        for images in windows(built.x):
            labels = built.y[first : first + len(images)].clone()
            found = certifier.certify(built.module, images.clone(), labels, threat.ball)
            parts.append(checked_column(found, len(labels), f"{certifier.name}.certify returned"))
            first += len(images)
    certified = torch.cat(parts)
    built.guard.check(certifier.name)
    return certified
