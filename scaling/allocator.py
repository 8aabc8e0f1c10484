"""The C library's memory, kept between the updates of a training."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's ``mallopt``."""
NEVER = 2**31 - 1
HIGHEST = 32 * 2**20
"""Where glibc's own adjustment of the latter ends, and all that older ones accept; the former is then twice as much."""


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within, freed memory stays with the process; at the end what is free goes back.

    Every update allocates the same tensors anew. Left alone, glibc returns the large ones to the kernel, which clears
    each page again when it is next touched: thousands of faults an update. Once told, glibc adjusts nothing any more,
    so afterwards its thresholds stay where that would have led. Another C library is left as it is.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(MMAP_THRESHOLD, NEVER) or library.mallopt(MMAP_THRESHOLD, HIGHEST)
    library.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, HIGHEST)
        library.mallopt(TRIM_THRESHOLD, 2 * HIGHEST)
        library.malloc_trim(0)
