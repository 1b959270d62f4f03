"""Strangers' code behind walls: a submission runs in a worker that nothing trusts.

`lock_in` is all that a run needs. The harness keeps labels, data, database and verdicts, and never
imports the entry. What it gets asks the worker over a socket (wire.py, cage.py): a module for a
defense (remote.py), a start and a step for an attack (attack.py). Bubblewrap, the kernel's filter
and limits hold the worker (jail.py); inside it run worker.py, defender.py and attacker.py.
"""

from bench.sandbox.cage import Cage
from bench.sandbox.jail import Limits, refusal
from bench.sandbox.offers import OFFERED, lock_in
from bench.sandbox.remote import Remote

__all__ = ["OFFERED", "Cage", "Limits", "Remote", "lock_in", "refusal"]
