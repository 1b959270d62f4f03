"""Submissions that use Python itself: patches, hooks, objects that live on, pickles, archives."""

from __future__ import annotations

from functools import partial

from tests.sandbox.hostile.case import TRIALS, End, HostileCase, attack, defense

tricks = partial(HostileCase, family="python", end=End.UNCHANGED, code="ok")

TRICKS = (
    tricks(
        name="patches-torch",
        source=defense(forward="""
            torch.argmax = torch.Tensor.argmax = lambda *a, **k: torch.zeros(8).long()
            torch.equal = torch.allclose = lambda *a, **k: True
            torch.manual_seed(0)
        """),
    ),
    tricks(
        name="patches-the-harness-in-its-process",
        source=defense(top="""
            import bench.referee.referee, bench.engine.answers, bench.threats.norms
            for module in (bench.referee.referee, bench.engine.answers, bench.threats.norms):
                for name in list(vars(module)):
                    if callable(vars(module)[name]) and name.islower() and name != "checked_logits":
                        setattr(module, name, lambda *a, **k: None)
        """),
    ),
    tricks(
        name="import-hook",
        source=defense(top="""
            import sys
            class Hook:
                def find_spec(self, name, path=None, target=None):
                    if name.startswith("bench"): raise ImportError("no")
            sys.meta_path.insert(0, Hook())
            sys.path[:] = ["/tmp"]
        """),
    ),
    tricks(
        name="code-at-exit",
        source=defense(top="""
            import atexit, time
            atexit.register(lambda: time.sleep(1000))
        """),
    ),
    tricks(
        name="destructor-that-never-ends",
        source=defense(top="""
            class Late:
                def __del__(self):
                    while True: pass
            kept = Late()
        """),
    ),
    tricks(
        name="thread-that-lives-on",
        source=defense(forward="""
            import threading, time
            if self.calls == 1:
                threading.Thread(target=lambda: [time.sleep(0.1) for _ in range(10**6)]).start()
        """),
    ),
    tricks(
        name="signal-handlers-and-alarms", code="worker_died", end=End.FAILED, sentence="status 14",
        # As a user the worker is the first process, which the default action does not end.
        source=defense(forward="""
            import os, signal, time
            signal.signal(signal.SIGALRM, lambda *_: os._exit(14))
            signal.alarm(1)
            time.sleep(3)
        """),
    ),
    tricks(
        name="searches-for-the-channel", code="plugin_error", end=End.FAILED,
        sentence="the harness is not here",
        source=defense(forward="""
            import gc, sys
            names = {type(o).__name__ for o in gc.get_objects()}
            wanted = {"MatrixWorker", "Referee", "CellPlayer", "Problem", "BuiltDefense"}
            assert not names & wanted, names & wanted
            raise ValueError("the harness is not here")
        """),
    ),
    tricks(
        name="changes-its-input",
        source=defense(forward="given, images = images, images.clone()\ngiven.data.zero_()"),
    ),
    tricks(
        name="global-settings-of-torch",
        source=defense(forward="""
            if self.calls == 1:
                torch.set_num_threads(8)
                torch.set_flush_denormal(True)
                torch.set_num_threads(1)
        """),
    ),
    tricks(
        name="tensor-subclass-with-own-operators",
        source=defense(
            top="""
                class Lying(torch.Tensor):
                    def __eq__(self, other): return True
                    def __reduce__(self): raise ValueError("not copied")
                    def argmax(self, *a, **k): return torch.zeros(len(self)).long()
            """,
            after="logits = logits.as_subclass(Lying)",
        ),
    ),
    tricks(
        name="lying-builtins", code="protocol", end=End.FAILED,
        source=defense(forward="""
            import builtins
            builtins.isinstance, before = (lambda *a: True), builtins.isinstance
            builtins.isinstance = before
            builtins.sum = builtins.max = builtins.all = lambda *a, **k: 0
        """),
    ),
    tricks(
        name="two-plugins-in-one-file", code="rejected_submission", end=End.NOT_LOADED,
        sentence="the code registers",
        source=defense() + "\n@hookimpl(specname='bench_defenses')\ndef more():\n"
        "    yield Defense(name='second', build=build)\n",
    ),
    tricks(
        name="takes-the-name-of-a-built-in", code="rejected_submission", end=End.NOT_LOADED,
        sentence="its card names",
        source=defense().replace('name="{name}"', 'name="undefended"'),
    ),
    tricks(
        name="wraps-the-hooks-of-others", code="rejected_submission", end=End.NOT_LOADED,
        sentence="wraps bench_defenses",
        source=defense().replace("@hookimpl", "@hookimpl(wrapper=True)").replace(
            "    yield Defense", "    found = yield\n    return found\n    yield Defense"
        ),
    ),
    tricks(
        name="pickle-that-runs-a-program", code="plugin_error", end=End.FAILED,
        sentence="(Unpickling|Weights only|Runtime)",
        source=defense(build="""
            import io, os, pickle
            class Evil:
                def __reduce__(self): return os.system, ("touch /tmp/gauntlet-hostile-file",)
            torch.load(io.BytesIO(pickle.dumps(Evil())))
        """),
    ),
    tricks(
        name="attack-that-patches-torch", kind="attack",
        source=attack(step="torch.Tensor.sign, before = torch.Tensor.sign, torch.Tensor.sign\n"
                      "torch.equal = lambda a, b: True\nproblem.x.data.add_(0)"),
    ),
    tricks(
        name="attack-that-asks-for-weights", code="blocked", end=End.FAILED, kind="attack",
        source=attack(top=TRIALS, step="""
            attempt(lambda: next(problem.model_access.module.parameters()),
                    lambda: problem.model_access.module.train(),
                    lambda: problem.module.state_dict())
        """),
    ),
)  # fmt: skip

ARCHIVES = tuple(
    HostileCase(name, "archives", defense(), "rejected_submission", End.REJECTED, sentence,
                archive=name)
    for name, sentence in {
        "bomb": "unpacks to \\d+ bytes from only \\d+",
        "lying-size": "not a readable zip file|more bytes than allowed",
        "parent-folder": "is not a plain relative name",
        "absolute-path": "is not a plain relative name",
        "backslash": "is not a plain relative name",
        "symbolic-link": "is a link or a device",
        "many-members": "members; at most",
        "nested-archive": "is not allowed",
        "encrypted": "is encrypted",
        "truncated": "not a readable zip file",
        "same-name-twice": "occurs twice",
    }.items()
)  # fmt: skip
"""What is wrong with the archive, and the sentence."""
