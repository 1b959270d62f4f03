"""Asks the certifiers what they can prove of a built defense, once for each board."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.core.errors import PLUGIN_EXCEPTIONS, PluginError
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.events import Event, Listener
from bench.evaluation.failures import failure_of
from bench.plugin import Certifier, ThreatModel
from bench.registry.registry import Registry
from bench.store import CertificateRow, Store


def run_certifiers(
    store: Store,
    registry: Registry,
    arena: BuiltDefense,
    threat: ThreatModel,
    which: str,
    listener: Listener,
) -> None:
    """Ask every certifier that speaks of this defense; one that fails proves nothing.

    Args:
        store: gets the proofs; what it has of a certifier as it stands is not asked again.
        registry: where the certifiers are.
        arena: the defense.
        threat: the board; only untargeted ones have certificates.
        which: `none`, `quick` or `all`.
        listener: hears of certifiers that failed.
    """
    if threat.goal.kind != "untargeted":
        return
    known = store.certificates(threat.id, arena.examples.digest)
    proved = {(p.defense_digest, p.certifier, p.certifier_digest) for p in known}
    for name, offer in registry.certifiers.items():
        if (arena.digest, name, offer.source) in proved or not is_selected(offer.value, which):
            continue
        try:
            held = certificates_of(offer.value, arena, threat)
        except PLUGIN_EXCEPTIONS as error:
            said = f"{name} proves nothing of {arena.defense.name}: {failure_of(error).reason}"
            listener(Event("odd", said))
            continue
        if held is not None:
            whose = (arena.defense.name, arena.digest, name, offer.source)
            found = CertificateRow(*whose, offer.value.exact, held.cpu().numpy())
            store.certify(threat.id, arena.examples.digest, found)


def is_selected(tool: Certifier, which: str) -> bool:
    """Whether a certifier is among those that were asked for."""
    return which == "all" or (which == "quick" and getattr(tool, "quick", True))


def why_not_certifiable(tool: Certifier, arena: BuiltDefense, threat: ThreatModel) -> str:
    """Why a certifier cannot speak of this defense under this threat model; empty when it can."""
    if arena.rejects:
        return f"{arena.defense.name} rejects images: a proof about its logits says nothing of that"
    return tool.refuses(arena.module, threat.ball)


def certificates_of(tool: Certifier, arena: BuiltDefense, threat: ThreatModel) -> Tensor | None:
    """[n] bool: which examples a certifier has a proof for; None where it refuses."""
    device = arena.setting.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.random.manual_seed(arena.seed)
        if why_not_certifiable(tool, arena, threat):
            return None
        held = tool.certify(arena.module, arena.x, arena.y, threat.ball)
    if held.dtype is not torch.bool or held.shape != arena.y.shape:
        raise PluginError(
            f"{tool.name} gave {held.dtype} {list(held.shape)}; bool {list(arena.y.shape)} is due."
        )
    return held
