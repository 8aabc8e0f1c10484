"""The C library's memory, kept between the updates of a training."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's ``mallopt``."""
DEFAULT, NEVER = 128 * 2**10, 2**31 - 1


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within, freed memory stays with the process; at the end what is free goes back.

    Every update allocates the same tensors anew. Left alone, glibc returns the large ones to the kernel, which clears
    each page again when it is next touched: thousands of faults an update. Another C library is left as it is.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    _set(library, NEVER)
    try:
        yield
    finally:
        _set(library, DEFAULT)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, threshold: int) -> None:
    for parameter in (TRIM_THRESHOLD, MMAP_THRESHOLD):
        library.mallopt(parameter, threshold)
