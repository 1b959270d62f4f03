"""The steps of `tests.benchmarks.device`, one topic in each module."""
