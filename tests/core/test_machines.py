"""The machine class as text and as a stored record."""

from __future__ import annotations

from bench.core.machines import Machine

MACHINE = Machine("cpu", "AVX2", "2.9.1", 1)


def test_a_stored_machine_class_comes_back() -> None:
    assert Machine.from_json(MACHINE.to_json()) == MACHINE


def test_the_sentence_names_every_part() -> None:
    assert MACHINE.sentence == "cpu, AVX2, torch 2.9.1, 1 thread"
    assert Machine("NVIDIA H200", "AVX512", "2.9.1", 8).sentence.endswith("8 threads")
