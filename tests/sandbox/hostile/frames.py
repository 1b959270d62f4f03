"""Submissions that send forged frames or values of the wrong kind, or that end their process."""

from __future__ import annotations

from functools import partial

from tests.sandbox.hostile.case import CHANNEL, End, HostileCase, attack, defense

protocol = partial(HostileCase, family="protocol", end=End.FAILED)
exits = partial(HostileCase, family="exits", end=End.FAILED)


def forging(code: str) -> str:
    """A defense that sends something of its own before it answers."""
    return defense(top=CHANNEL, forward=code)


FRAMES: dict[str, tuple[str, str]] = {
    "shape-beyond-any-integer": ("send(described(shape=[0, 2**70]))", "shape"),
    "shape-with-a-negative-number": ("send(described(shape=[-1, 10]))", "invalid shape"),
    "unknown-dtype": ("send(described('object', [1]), bytes(8))", "dtype"),
    "body-longer-than-its-tensors": ("send(described(shape=[1]), bytes(400))", "bytes"),
    "tensors-of-other-names": (
        "send(described(shape=[1], name='labels'), bytes(4))",
        "tensors .* were sent",
    ),
    "header-that-is-no-object": ("send([1, 2, 3])", "no JSON object"),
    "header-nested-too-deep": ("send(b'[' * 60000)", "no JSON"),
    "early-reply-to-the-next-request": (
        "send(described(shape=[1]), bytes(4), number=current().number + 1)",
        "a reply to request",
    ),
    "error-that-is-an-object": ("send({'error': {'a': ['b'] * 1000}})", "failed"),
    "request-in-the-place-of-a-reply": (
        "send({'request': 'trained', 'of': ['x'], 'tensors': {}})",
        "tensors .* were sent",
    ),
}
"""Name -> code in the forward pass, and the end of the message."""


PROTOCOL = (
    *(
        protocol(
            name=name, code="protocol" if sentence != "failed" else "plugin_error",
            source=forging(code), sentence=sentence,
        )
        for name, (code, sentence) in FRAMES.items()
    ),
    protocol(
        name="reply-sent-twice", code="protocol", sentence="a reply to request",
        source=defense(top=CHANNEL, after="""
            body = bytes(logits.detach().contiguous().numpy().data)
            send(described(shape=logits.shape), body)
        """),
    ),
    protocol(
        name="one-byte-a-second", code="timeout",
        source=forging("""
            import time
            frame = PREFIX.pack(MAGIC, current().number, 60000, 0) + b" " * 60000
            for k in range(len(frame)):
                current().channel.end.sendall(frame[k:k + 1])
                time.sleep(0.5)
        """),
    ),
    protocol(
        name="channel-that-is-shut-down", code="worker_died",
        source=forging("current().channel.end.shutdown(2)"),
    ),
    protocol(
        name="weights-of-another-path", code="refused_request", sentence="no path",
        source=defense(build="loader.weights(Net(), '../../../../etc/shadow')"),
    ),
    protocol(
        name="weights-of-another-defense", code="refused_request",
        sentence="no defense under construction",
        source=defense(top=CHANNEL, build="""
            send({"request": "weights", "of": ["undefended"], "file": "w.safetensors",
                  "sha256": "", "tensors": {}})
            import time
            time.sleep(60)
        """),
    ),
    protocol(
        name="unknown-request-in-the-build", code="refused_request", sentence="unknown request",
        source=defense(top=CHANNEL, build="""
            send({"request": "labels", "of": ["{name}"], "tensors": {}})
            import time
            time.sleep(60)
        """),
    ),
    protocol(
        name="builds-on-itself", code="refused_request", sentence="built-in|itself",
        source=defense(build="loader.defense('{name}')"),
    ),
    protocol(
        name="million-forwards-declared", code="rejected_submission", end=End.NOT_LOADED,
        sentence="forwards",
        source=defense().replace("build=build", "build=build, forwards=10**9"),
    ),
    protocol(
        name="trillion-steps-declared", code="rejected_submission", end=End.NOT_LOADED,
        sentence="steps", kind="attack", source=attack().replace("steps = 2", "steps = 10**12"),
    ),
    protocol(
        name="logits-not-a-number", code="not_finite", end=End.FINISHED,
        source=defense(after="logits = logits * float('nan')"),
    ),
    protocol(
        name="logits-of-one-row-less", code="bad_output",
        source=defense(after="logits = logits[1:]"),
    ),
    protocol(
        name="logits-that-are-no-tensor", code="bad_output", sentence="a tensor of logits",
        source=defense(after="logits = {'logits': logits}"),
    ),
    protocol(
        name="gradient-not-a-number", code="ok", end=End.FINISHED,
        source=defense(
            top="""
                class NotANumber(torch.autograd.Function):
                    @staticmethod
                    def forward(ctx, images):
                        return images.clone()

                    @staticmethod
                    def backward(ctx, gradient):
                        return gradient * float("nan")
            """,
            forward="images = NotANumber.apply(images)",
        ),
    ),
)  # fmt: skip

EXITS = (
    exits(
        name="segmentation-fault", code="worker_died", sentence="SIGSEGV",
        source=defense(forward="import ctypes\nctypes.string_at(0)"),
    ),
    exits(name="abort", code="worker_died", source=defense(forward="import os\nos.abort()")),
    exits(
        name="illegal-instruction", code="blocked", sentence="PermissionError",
        source=defense(forward="import os, signal\nsignal.signal(signal.SIGILL, signal.SIG_DFL)\n"
                       "import ctypes, mmap\n"
                       "page = mmap.mmap(-1, 4096, prot=7)\npage.write(b'\\x0f\\x0b')\n"
                       "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
                       "ctypes.CFUNCTYPE(None)(at)()"),
    ),
    exits(
        name="exit-without-a-word", code="worker_died", sentence="status 0",
        source=defense(forward="import os\nos._exit(0)"),
    ),
    exits(
        name="exit-by-exception", code="plugin_error", sentence="SystemExit",
        source=defense(forward="import sys\nsys.exit(0)"),
    ),
    exits(
        name="interrupt-by-exception", code="worker_died",
        source=defense(forward="raise KeyboardInterrupt"),
    ),
    exits(
        name="base-exception-of-its-own", code="worker_died",
        source=defense(top="class OddError(BaseException): pass", forward="raise OddError('odd')"),
    ),
    exits(
        name="exit-at-import", code="worker_died", end=End.NOT_LOADED,
        source=defense(top="import os\nos._exit(0)"),
    ),
    exits(
        name="exit-in-a-gradient", code="worker_died",
        source=defense(
            top="""
                class Quit(torch.autograd.Function):
                    @staticmethod
                    def forward(ctx, images):
                        return images.clone()

                    @staticmethod
                    def backward(ctx, gradient):
                        import os
                        os._exit(3)
            """,
            forward="images = Quit.apply(images)",
        ),
        sentence="status 3",
    ),
    exits(
        name="replaces-its-program", code="worker_died",
        source=defense(forward="import os\nos.execv('/usr/bin/true', ['true'])"),
    ),
)  # fmt: skip
