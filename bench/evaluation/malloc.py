"""What a batch has used stays with the process.

The GNU allocator hands large blocks back to the system at once, and the next batch faults them in
page by page: at 256 rows of a small network that was two fifths of a step.
"""

from __future__ import annotations

import ctypes
import functools

TRIM, MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
KEPT = 2**29  # bytes at the top of the heap
LARGEST = 2**25  # bytes of a block on the heap; the allocator allows no more


@functools.cache
def raise_thresholds() -> bool:
    """Let the process keep it, once; False where the allocator is another one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(MAP, LARGEST)) and bool(mallopt(TRIM, KEPT))
