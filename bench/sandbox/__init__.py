"""Strangers' code behind walls: a submitted defense runs in a worker that nothing trusts.

`lock_in` is all that a run needs. The harness keeps labels, data, database and verdicts, and never
imports the entry: what it gets is a module that asks the worker over a socket (remote.py), which
bubblewrap, the kernel's filter and limits hold (jail.py, cage.py).
"""

from bench.sandbox.cage import Cage
from bench.sandbox.jail import Limits, refusal
from bench.sandbox.offers import lock_in
from bench.sandbox.remote import Remote

__all__ = ["Cage", "Limits", "Remote", "lock_in", "refusal"]
