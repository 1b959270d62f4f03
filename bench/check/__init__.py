"""The plugin contract as named checks: the same list for `bench check` and for the tests."""

from bench.check.law import Outcome, Result
from bench.check.run import LAWS, examine, run

__all__ = ["LAWS", "Outcome", "Result", "examine", "run"]
