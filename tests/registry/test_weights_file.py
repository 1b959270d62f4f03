"""A weights file with a hostile header is refused at once, with a short message."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.registry.weights_file import why_unsafe
from tests.submissions.test_intake import tensor, written

DIGITS = "9" * 5000
LONG = f'{{"a": {{"dtype": "F32", "shape": [{DIGITS}], "data_offsets": [0, 4]}}}}'.encode()
NUMBERS = f'{{"a": {{"dtype": "F32", "shape": [1], "data_offsets": [0, {"9" * 4000}]}}}}'.encode()
DEEP = (
    b'{"a": {"dtype": "F32", "shape": [' + b"[" * 900 + b"]" * 900 + b'], "data_offsets": [0,4]}}'
)
HEADERS: list[tuple[str, object, str]] = [
    ("many dimensions", {"a": tensor([2**31] * 800_000, 0, 4)}, "800000 dimensions; at most 64"),
    ("ones", {"a": tensor([1] * 65, 0, 4)}, "65 dimensions; at most 64"),
    ("large dimensions", {"a": tensor([10**18] * 300, 0, 4)}, "300 dimensions; at most"),
    (
        "one large dimension",
        {"a": tensor([0, 10**18], 0, 0)},
        "a dimension of 1000000000000000000, more than",
    ),
    ("a long number", LONG, "a number in its header that is too long"),
    ("a long offset", NUMBERS, "the bytes 0 to 99"),
    ("a nest", DEEP, "the shape"),
    ("a long name", {"a" * 1_000_000: tensor([2], 0, 4)}, "the bytes 0 to 4"),
    ("a long kind", {"a": tensor([1], 0, 4, "F" * 1_000_000)}, "holds 'a' as 'FF"),
]


@pytest.mark.parametrize(("name", "header", "sentence"), HEADERS, ids=[row[0] for row in HEADERS])
def test_a_hostile_header_is_refused_with_a_short_message(
    tmp_path: Path, name: str, header: object, sentence: str
) -> None:
    found = why_unsafe(written(tmp_path / "weights.safetensors", header, b"\x00" * 4))
    assert sentence in found
    assert len(found) < 400


@pytest.mark.parametrize("shape", [[], [1] * 64, [1, 1]])
def test_up_to_64_dimensions_are_accepted(tmp_path: Path, shape: list[int]) -> None:
    path = written(tmp_path / "weights.safetensors", {"a": tensor(shape, 0, 4)}, b"\x00" * 4)
    assert why_unsafe(path) == ""
