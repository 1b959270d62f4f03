"""Outcomes as compact bytes: little-endian columns, bits packed, bytes shuffled, then zlib.

Each format is a uint32 count, then the first columns of `Outcomes` in their order: 12 in format 1,
13 with the rejection scores in format 2, 18 in format 3, all 19 with the shares of draws in format
4. The first format is written whose missing columns hold nothing but the value that stands for "not
recorded".
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from bench.core.errors import BenchError, UnavailableError
from bench.core.outcomes import OUTCOME_DTYPES, Outcomes

FORMATS = {1: 12, 2: 13, 3: 18, 4: 19}
"""Format -> number of columns that it has."""
NOT_RECORDED = {
    "rejection": -np.inf, "target": -1, "claimed": -1, "true_confidence": np.nan, "true_rank": -1,
    "loss": np.nan, "share": -1,
}  # fmt: skip
"""Column that a format may lack -> its value in each row then."""


def pack(outcomes: Outcomes) -> bytes:
    """The bytes of one chunk; raises BenchError where a column has a wrong length or type."""
    count = len(outcomes.item)
    columns = []
    for name, kind in zip(outcomes._fields, OUTCOME_DTYPES, strict=True):
        column = getattr(outcomes, name)
        if column.dtype != kind or column.shape != (count,):
            raise BenchError(
                f"the outcomes' {name} came as {column.dtype}{list(column.shape)}, expected"
                f" {np.dtype(kind)}[{count}]: give every column one value per item."
            )
        columns.append(_column_bytes(column))
    format_ = next(number for number, kept in FORMATS.items() if _holds_all(outcomes, kept))
    content = b"".join(columns[: FORMATS[format_]])
    return bytes([format_]) + zlib.compress(struct.pack("<I", count) + content)


def unpack(blob: bytes) -> Outcomes:
    """The packed outcomes. Raises BenchError for damage, UnavailableError for an unknown format."""
    payload = _inflate(blob)
    (count,) = struct.unpack_from("<I", payload)
    offset, columns = 4, []
    for kind in map(np.dtype, OUTCOME_DTYPES[: FORMATS[blob[0]]]):
        size = -(-count // 8) if kind == np.bool_ else count * kind.itemsize
        columns.append(_column(payload[offset : offset + size], kind, count))
        offset += size
    if offset != len(payload):
        raise BenchError(f"a chunk of {count} outcomes has {len(payload)} bytes, not {offset}.")
    missing = range(len(columns), len(OUTCOME_DTYPES))
    return Outcomes._make([*columns, *(_not_recorded(column, count) for column in missing)])


def _holds_all(outcomes: Outcomes, kept: int) -> bool:
    """Whether the columns after the first `kept` ones hold nothing; compared as bytes for NaN."""
    count = len(outcomes.item)
    left = range(kept, len(OUTCOME_DTYPES))
    return all(outcomes[c].tobytes() == _not_recorded(c, count).tobytes() for c in left)


def _not_recorded(column: int, count: int) -> npt.NDArray[np.generic]:
    """The column of that number [count] in outcomes that were stored without it."""
    return np.full(count, NOT_RECORDED[Outcomes._fields[column]], OUTCOME_DTYPES[column])


def unpack_items(blob: bytes) -> npt.NDArray[np.int32]:
    """The items [n] alone, which are the first column."""
    payload = _inflate(blob)
    (count,) = struct.unpack_from("<I", payload)
    return _column(payload[4 : 4 + 4 * count], np.dtype(np.int32), count).astype(np.int32)


def pack_bits(flags: npt.NDArray[np.bool_]) -> bytes:
    """Flags [n] as bytes, eight per byte, the first one in the lowest bit."""
    return np.packbits(flags, bitorder="little").tobytes()


def unpack_bits(blob: bytes, count: int) -> npt.NDArray[np.bool_]:
    """The flags [count] that `pack_bits` was given."""
    bits = np.unpackbits(np.frombuffer(blob, np.uint8), count=count, bitorder="little")
    return bits.astype(np.bool_)


def _column_bytes(column: npt.NDArray[np.generic]) -> bytes:
    if column.dtype == np.bool_:
        return pack_bits(column.astype(np.bool_))
    little = np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<"))
    # First bytes first, then second bytes: small numbers leave long runs of zeros for zlib.
    return little.view(np.uint8).reshape(len(column), column.dtype.itemsize).T.tobytes()


def _column(stored: bytes, kind: np.dtype[np.generic], count: int) -> npt.NDArray[np.generic]:
    if kind == np.bool_:
        return unpack_bits(stored, count)
    shuffled = np.frombuffer(stored, np.uint8).reshape(kind.itemsize, count)
    little = np.ascontiguousarray(shuffled.T).view(kind.newbyteorder("<")).reshape(count)
    return little.astype(kind, copy=False)


def _inflate(blob: bytes) -> bytes:
    if not blob or blob[0] not in FORMATS:
        found = blob[0] if blob else "none"
        raise UnavailableError(
            f"outcomes are packed in format {found}, this program reads up to {max(FORMATS)}:"
            " update gauntlet-bench."
        )
    try:
        return zlib.decompress(blob[1:])
    except zlib.error as error:
        raise BenchError(
            f"a chunk of outcomes is damaged ({error}): `bench db check` names its cell."
        ) from error
