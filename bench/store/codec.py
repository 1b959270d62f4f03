"""Outcomes as compact bytes: little-endian columns, bits packed, bytes shuffled, then zlib.

Formats: 1 is a uint32 count, then the columns of `Outcomes` in their order without the last; 2 has
all columns. Format 1 is written where no image has a rejection score.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from bench.core.errors import BenchError, UnavailableError
from bench.core.outcomes import OUTCOME_DTYPES, Outcomes

FORMAT_1, FORMAT_2 = 1, 2


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
    scored = bool((outcomes.rejection != -np.inf).any())
    kept = columns if scored else columns[:-1]
    format_ = FORMAT_2 if scored else FORMAT_1
    return bytes([format_]) + zlib.compress(struct.pack("<I", count) + b"".join(kept))


def unpack(blob: bytes) -> Outcomes:
    """The packed outcomes. Raises BenchError for damage, UnavailableError for an unknown format."""
    payload = _inflate(blob)
    (count,) = struct.unpack_from("<I", payload)
    offset, columns = 4, []
    kinds = OUTCOME_DTYPES if blob[0] == FORMAT_2 else OUTCOME_DTYPES[:-1]
    for kind in map(np.dtype, kinds):
        size = -(-count // 8) if kind == np.bool_ else count * kind.itemsize
        columns.append(_column(payload[offset : offset + size], kind, count))
        offset += size
    if offset != len(payload):
        raise BenchError(f"a chunk of {count} outcomes has {len(payload)} bytes, not {offset}.")
    if blob[0] == FORMAT_1:
        columns.append(np.full(count, -np.inf, np.float32))
    return Outcomes._make(columns)


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
    if not blob or blob[0] > FORMAT_2:
        found = blob[0] if blob else "none"
        raise UnavailableError(
            f"outcomes are packed in format {found}, this program reads up to {FORMAT_2}:"
            " update gauntlet-bench."
        )
    try:
        return zlib.decompress(blob[1:])
    except zlib.error as error:
        raise BenchError(
            f"a chunk of outcomes is damaged ({error}): run `bench db check`."
        ) from error
