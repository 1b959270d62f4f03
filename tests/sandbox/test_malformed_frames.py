"""Frames that a hostile worker could send: none raises anything but a refusal.

The frames are valid ones with seeded changes; they pass everything of the harness that reads them.
"""

from __future__ import annotations

import copy
import json
import random
import socket
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch

from bench.core.errors import PluginError
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem
from bench.plugin import Linf
from bench.sandbox.adapter import WeightsServer
from bench.sandbox.attack_proxy import AttackProxy, QueryServer, SingleProcess
from bench.sandbox.declarations import AttackDeclarations, DefenseDeclarations
from bench.sandbox.defense_proxy import DefenseProxy
from bench.sandbox.process import SandboxProcess
from bench.sandbox.protocol import MAGIC, PREFIX, BadFrameError, Channel, Frame, ProtocolError
from bench.threats.access import Budget
from bench.threats.fingerprint import short_repr
from bench.threats.threat_model import Goal
from tests.sandbox.test_declarations import ATTACK as DECLARED_ATTACK
from tests.sandbox.test_declarations import DECLARED

SEEDS = 3000
X, Y = torch.full((4, 1, 2, 2), 0.5), torch.arange(4) % 3
IMAGES = {"dtype": "float32", "shape": [4, 1, 2, 2]}
ATTACK: dict[str, Any] = DECLARED_ATTACK | {
    "methods": ["restart_count", "done"], "parameters": {"rate": 0.5},
}  # fmt: skip
HOSTILE: tuple[Any, ...] = (
    [0, 2**70], [2**62, 4], [2**40, 0, 2**40], [-1, -4], [True, 16], [16.0], [16], [1] * 9, [], 0,
    -1, 2**63, 2**64, 10**400, True, None, 1e308, 0.5, "", "float64", "object", "adv", "x" * 5000,
    "\ud800", "\x00\x1b[31m", {}, {"tensors": {}}, [[]], {"": IMAGES}, float("nan"), float("inf"),
    ["a", 1], "GRADIENTS", "logits",
)  # fmt: skip
"""Values that replace a part of a header."""
NAMES = ("", "def", "_x", "adv ", "\ufb01", "fi", "tensors")  # two are one after normalisation
NESTED = {"request": json.loads("[" * 900 + "]" * 900)}
BROKEN = (b'{"a":1e999}', b'{"a":1,"a":2}', b"[]", b"{", b'{"a":NaN}', b"\xff", b'{"a":"\\ud800"}')


class ReceivingEnd(SandboxProcess):
    """What the harness does with frames that were received, without a process."""

    alive = True

    def __init__(self) -> None:
        """Start nothing."""

    def close(self) -> None:
        """End nothing."""


class LinearNet(torch.nn.Module):
    """Three logits of four pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [n, 3] of images [n, 1, 2, 2]."""
        return images.flatten(1)[:, :3] * torch.tensor([1.0, 2.0, 3.0])


def declared_attack(frame: Frame) -> None:
    """Use declarations of an attack as the registry does."""
    AttackProxy("mine", AttackDeclarations.parse("submission mine", frame), start, SingleProcess())


def start() -> SandboxProcess:
    """A receiving end in place of a worker."""
    return ReceivingEnd()


def attack_proxy() -> AttackProxy:
    """The proxy of an attack whose replies are given by hand."""
    frame = Frame(1, {"declarations": ATTACK}, bytearray())
    declared = AttackDeclarations.parse("submission mine", frame)
    return AttackProxy("mine", declared, start, SingleProcess())


def problem() -> BatchProblem:
    """Four images of a linear network."""
    model = ModelAccess(LinearNet())
    return BatchProblem(
        model, Linf(Fraction(1, 10)), Goal(), X, Y, target=Y, clean_logits=model.logits(X),
        example=torch.arange(4), seed=0, name="mine", budget=Budget(),
    )  # fmt: skip


def answered_query(frame: Frame) -> None:
    """Answer a query of an attack; its loss is a second frame, here the same one."""
    proxy = attack_proxy()
    QueryServer(proxy, problem())(frame, lambda message: frame)


def next_state(frame: Frame) -> None:
    """Read the state in a reply."""
    attack_proxy()._state(problem(), frame)


def logits_reply(frame: Frame) -> None:
    """Read logits."""
    proxy = DefenseProxy("submission mine", start)
    proxy._tensor(frame, "logits")


KINDS: dict[str, tuple[dict[str, Any], int, Callable[[Frame], object]]] = {
    "logits": ({"tensors": {"logits": IMAGES}, "drew": False}, 64, logits_reply),
    "query": ({"tensors": {"adv": IMAGES}, "request": "logits"}, 64, answered_query),
    "gradient query": ({"tensors": {"adv": IMAGES}, "request": "gradient"}, 64, answered_query),
    "state": ({"tensors": {"adv": IMAGES, "sum": IMAGES}, "single": False}, 128, next_state),
    "defense": ({"declarations": DECLARED}, 0,
                lambda frame: DefenseDeclarations.parse("submission mine", frame)),
    "attack": ({"declarations": ATTACK}, 0, declared_attack),
}  # fmt: skip
"""Kind of frame -> a valid header, the size of its body, and what reads it."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all parts of a value of JSON."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value)  # type: ignore[assignment]
    for name, part in items:
        found += places(part, (*path, name))
    return found


def changed_header(header: dict[str, Any], dice: random.Random) -> Any:
    """The header with one to three parts replaced, renamed or left out."""
    header = copy.deepcopy(header)
    for _ in range(dice.randint(1, 3)):
        paths = places(header)
        if not paths:
            break
        *path, last = dice.choice(paths)
        owner = header
        for name in path:
            owner = owner[name]
        match dice.randrange(6):
            case 0:
                del owner[last]
            case 1 if isinstance(owner, dict):
                owner[dice.choice(NAMES)] = owner.pop(last)
            case 2 if isinstance(owner, dict):  # another order
                owner[last] = owner.pop(last)
            case _:
                owner[last] = copy.deepcopy(dice.choice(HOSTILE))
    return header


def mutated(seed: int) -> tuple[bytes, Callable[[Frame], object]]:
    """The bytes of a changed frame, and what reads it."""
    dice = random.Random(seed)
    header, size, read = KINDS[dice.choice(list(KINDS))]
    kind = dice.randrange(10)
    text = json.dumps(changed_header(header, dice) if kind < 7 else header).encode()
    if kind == 7:
        text = dice.choice([*BROKEN, json.dumps(NESTED).encode(), b"[" * 60000])
    prefix = [MAGIC, 1, len(text), size]
    if kind == 8:
        prefix[dice.randrange(1, 4)] = dice.choice([0, 1, 2, 2**31, 2**32 - 1])
    content = bytearray(PREFIX.pack(*prefix) + text + dice.randbytes(size))
    if kind == 9:
        for _ in range(dice.randint(1, 8)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        content = content[: dice.randrange(1, len(content) + 1)]
    return bytes(content), read


def received(content: bytes) -> Frame:
    """The frame that a channel receives from these bytes, followed by the end of the connection."""
    own, other = socket.socketpair()
    with own, other:
        other.sendall(content)
        other.close()
        return Channel(own).receive(1 << 16)


def verdict(seed: int) -> str:
    """`read`, or the type of the refusal of one changed frame."""
    content, read = mutated(seed)
    try:
        read(received(content))
    except (PluginError, ProtocolError) as error:
        assert str(error).isprintable()
        return type(error).__name__
    return "read"


def test_changed_frames_are_read_or_refused_in_one_sentence() -> None:
    found = [verdict(seed) for seed in range(SEEDS)]
    for kind in ("read", "PluginError", "BadFrameError", "ConnectionClosedError"):
        assert found.count(kind) > SEEDS // 50, {name: found.count(name) for name in set(found)}


@pytest.mark.parametrize("steps", [0, 10**6 + 1, 10**400, True, 4.0])
def test_the_steps_of_an_attack_are_bounded(steps: object) -> None:
    frame = Frame(1, {"declarations": ATTACK | {"steps": steps}}, bytearray())
    with pytest.raises(PluginError, match="submission mine declares an invalid field: steps: "):
        declared_attack(frame)


@pytest.mark.parametrize("kind", KINDS)
def test_the_unchanged_frames_are_read(kind: str) -> None:
    header, size, read = KINDS[kind]
    text = json.dumps(header).encode()
    floats = torch.full((size // 4,), 0.5).numpy().tobytes()
    frame = received(PREFIX.pack(MAGIC, 1, len(text), size) + text + floats)
    if kind == "gradient query":  # the answer of its loss has other tensors
        with pytest.raises(PluginError, match=r"\['adv'\] were sent; expected \['loss', 'grad"):
            read(frame)
        return
    read(frame)


@pytest.mark.parametrize("shape", [[0, 2**70], [2**40, 0, 2**40], [0] * 3 + [2**41], [2**63, 0]])
def test_an_empty_tensor_of_a_huge_shape_is_refused(shape: list[int]) -> None:
    frame = Frame(1, {"tensors": {"logits": {"dtype": "float32", "shape": shape}}}, bytearray())
    with pytest.raises(PluginError, match="violated the sandbox protocol: a tensor was sent with"):
        logits_reply(frame)


@pytest.mark.parametrize("query", [["logits"], {"logits": 1}, 2**70, None, True])
def test_a_query_that_is_no_text_is_refused(query: object) -> None:
    with pytest.raises(PluginError, match="sent an invalid query"):
        answered_query(Frame(1, {"tensors": {}, "request": query}, bytearray()))


@pytest.mark.parametrize("names", [("\ufb01", "fi"), ("def", "a"), ("a b", "c"), ("_a", "b")])
def test_field_names_that_are_no_names_are_refused(names: tuple[str, str]) -> None:
    header = {"tensors": dict.fromkeys(names, IMAGES), "single": False}
    with pytest.raises(PluginError, match="invalid field names"):
        next_state(Frame(1, header, bytearray(128)))


@pytest.mark.parametrize("text", [*BROKEN, json.dumps(NESTED).encode(), b'{"a": -Infinity}'])
def test_headers_that_are_no_plain_json_are_refused(text: bytes) -> None:
    with pytest.raises(BadFrameError, match="the header of a frame"):
        received(PREFIX.pack(MAGIC, 1, len(text), 0) + text)


@pytest.mark.parametrize("found", [10**9, 10**400, True, 0.5, "3", None], ids=short_repr)
def test_a_number_of_restarts_is_a_bounded_integer(
    found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, reply = attack_proxy(), {"restart_count": found}
    monkeypatch.setattr(proxy, "_call", lambda *given: Frame(1, reply, bytearray()))
    with pytest.raises(PluginError, match="an integer of at most 10000 was expected"):
        proxy.restart_count(10)  # type: ignore[attr-defined]


def test_requests_for_weights_may_be_anything() -> None:
    class Loader:
        name = "mine"

    server = WeightsServer(Loader(), DefenseDeclarations.model_validate(DECLARED))  # type: ignore[arg-type]
    chains: list[object] = [["mine"], [["mine"]], "mine", None, {}, [1]]
    requests: list[object] = [[], {}, 1, None, "x"]
    for header in ({"of": of, "request": request} for of in chains for request in requests):
        frame = Frame(1, header, bytearray())
        with pytest.raises(PluginError):
            server(frame, lambda message: frame)  # noqa: B023
