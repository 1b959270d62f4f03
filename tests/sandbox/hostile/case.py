"""A hostile submission, the result that it must have, and the templates that its code is put in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from textwrap import dedent, indent


class End(StrEnum):
    """How the evaluation of a hostile submission must end."""

    REJECTED = "rejected"
    """`bench submit` refuses it."""
    NOT_LOADED = "not loaded"
    """It cannot be registered; the run goes on without it."""
    FAILED = "failed"
    """Its cells fail, and the plugin is at fault."""
    REFUSED = "images refused"
    """Its cells are done, and the referee counts none of its images as a success."""
    UNCHANGED = "unchanged"
    """Its cells are done, with exactly the outcomes of the honest template."""
    FINISHED = "finished"
    """Its cells are done; what it returned is judged like any other result."""


CODES = {
    "timeout": r"gave no answer within [\d.]+ s|did not finish its cell within [\d.]+ s",
    "memory_limit": r"used \d+ MiB of memory; the limit is \d+ MiB|allocate memory|MemoryError",
    "process_limit": r"Resource temporarily unavailable|can't start new thread",
    "output_limit": r"printed more than \d+ MiB",
    "disk_limit": r"No space left on device|File too large|made more than \d+ files in /tmp",
    "file_limit": r"Too many open files",
    "worker_died": r"gave no answer: (its process (was killed by SIG\w+|exited with status \d+)"
    r"|it closed its end of the channel)",
    "plugin_error": r" failed: ",
    "blocked": r"failed: (BlockedError: all of \d+ refused|PermissionError: \[Errno 1\])",
    "protocol": r"violated the sandbox protocol: |sent an invalid query|returned a state with",
    "access": r"requested \w+, but its declared `needs` reveals \w+ only",
    "refused_request": r"asked for the weights|no defense under|unknown request|built-in defenses",
    "bad_output": r"was expected|were expected|cannot be sent|is no tensor|does not fit",
    "not_finite": r"gave no finite logits for \d+ of \d+",
    "out_of_ball": r"\d+ of \d+ images against \w+ left the perturbation set",
    "out_of_box": r"\d+ of \d+ images against \w+ left the perturbation set or \[0, 1\]",
    "not_finite_pixels": r"\d+ of \d+ images against \w+ left the perturbation set or \[0, 1\]",
    "contract": r"\d+ checks of '\w[\w-]*' fail\. ",
    "rejected_submission": r"",
    "ok": r"",
}
"""Code of a result -> pattern of the sentence in which the user reads it."""


@dataclass(frozen=True)
class HostileCase:
    """One submission and its expected result."""

    name: str
    family: str
    source: str
    """Text of plugin.py; `{name}` stands for the name of the submission."""
    code: str
    """A key of CODES."""
    end: End
    sentence: str = ""
    """Pattern in the message, beyond that of the code."""
    kind: str = "defense"
    checked: bool = False
    """Whether the contract checks of `bench submit` are run, which takes ten seconds."""
    archive: str = ""
    """What is wrong with the zip file that holds it; empty for a folder."""

    def imports_like_the_template(self) -> bool:
        """Whether its module runs and registers nothing but what the honest template does."""
        made = self.source
        for helper in HELPERS:
            made = made.replace(helper.strip(), "")
        honest = {"defense": defense, "attack": attack}[self.kind]()
        mark = {"defense": "    def __init__", "attack": "    def start"}[self.kind]
        heads, tails = zip(*(
            (text.partition(mark)[0].split(), text.rpartition("@hookimpl")[2].split())
            for text in (made, honest)
        ), strict=True)  # fmt: skip
        return bool(heads[0] == heads[1] and tails[0] == tails[1])


DEFENSE = '''
"""A linear network of fixed weights."""

import torch
from torch import nn

from bench.plugin import Defense, hookimpl

TOP


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        wave = torch.arange(640, dtype=torch.float32).view(10, 64)
        self.layer.load_state_dict({"weight": (0.7 * wave).sin(), "bias": torch.zeros(10)})
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        FORWARD
        logits = self.layer(images.flatten(1))
        AFTER
        return logits


def build(loader):
    BUILD
    return Net()


@hookimpl
def bench_defenses():
    yield Defense(name="{name}", build=build)
'''

ATTACK = '''
"""Two steps along the gradient."""

import torch
from torch import nn

from bench.plugin import Access, cross_entropy, hookimpl

TOP


class Own:
    name = "{name}"
    needs = Access.GRADIENTS
    steps = 2
    calls = 0

    def start(self, problem):
        START
        return problem.x.clone()

    def step(self, problem, adv):
        self.calls += 1
        STEP
        gradient = problem.gradient(adv, cross_entropy).gradient
        adv = problem.ball.ascend(adv, gradient, 0.6, problem.x)
        AFTER
        return adv


@hookimpl
def bench_attacks():
    yield Own()
'''

TRIALS = '''
class BlockedError(Exception):
    """Every trial was refused."""


def attempt(*trials):
    """Run each trial; says which were refused, or which one succeeded."""
    for number, trial in enumerate(trials):
        try:
            found = trial()
        except (OSError, LookupError, AttributeError, ImportError, ValueError, TypeError):
            continue
        raise RuntimeError(f"trial {number} succeeded: {found!r}"[:200])
    raise BlockedError(f"all of {len(trials)} refused")
'''


CHANNEL = """
import gc, json, socket
from bench.sandbox.channel import WorkerChannel
from bench.sandbox.protocol import MAGIC, PREFIX


def current():
    return next(o for o in gc.get_objects() if isinstance(o, WorkerChannel))


def send(header, body=b"", number=None, magic=MAGIC):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    channel = current()
    prefix = PREFIX.pack(magic, channel.number if number is None else number, len(text), len(body))
    channel.channel.end.sendall(prefix + text + body)


def described(dtype="float32", shape=(), name="logits"):
    return {"drew": False, "tensors": {name: {"dtype": dtype, "shape": list(shape)}}}
"""

HELPERS = (TRIALS, CHANNEL)
"""Functions for hostile code, which do nothing when a module is imported."""


def filled(template: str, **parts: str) -> str:
    """A template with code at its marks; a mark without code is removed."""
    for mark in ("TOP", "BUILD", "FORWARD", "AFTER", "START", "STEP"):
        code = dedent(parts.get(mark.lower(), "")).strip()
        lines = []
        for line in template.splitlines():
            if line.strip() != mark:
                lines.append(line)
            elif code:
                lines.append(indent(code, line[: len(line) - len(mark)]))
        template = "\n".join(lines)
    return template + "\n"


def defense(**parts: str) -> str:
    """A submitted defense with this code at its marks."""
    return filled(DEFENSE, **parts)


def attack(**parts: str) -> str:
    """A submitted attack with this code at its marks."""
    return filled(ATTACK, **parts)
