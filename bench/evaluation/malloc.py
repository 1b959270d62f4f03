"""Raises malloc thresholds so that freed batch buffers are not returned to the system.

The GNU allocator returns large blocks at once, and the next batch faults them in page by page: with
256 rows of a small network that was two fifths of the time of a step.
"""

from __future__ import annotations

import ctypes
import functools

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
HEAP_TOP_BYTES = 2**29  # free bytes at the top of the heap that are not returned
HEAP_BLOCK_BYTES = 2**25  # largest block on the heap; the allocator allows no more


@functools.cache
def raise_thresholds() -> bool:
    """Set both thresholds, once per process; False where the allocator has no `mallopt`."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, HEAP_BLOCK_BYTES)) and bool(
        mallopt(TRIM_THRESHOLD, HEAP_TOP_BYTES)
    )
