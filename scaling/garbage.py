"""Python's collector of garbage in a process that serves many runs.

It goes through every object there is, and after the imports of PyTorch and Ray that takes half a second.
"""

import atexit
import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """For imports: while they last it would go through all of it again and again; afterwards all of it is left out."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect() -> None:
    """Free what is no longer used, between two runs.

    What is in use even then is left out from now on, since Accelerate too has the collector run after each training:
    it lives as long as the process, unless nothing refers to it any more.
    """
    gc.collect()
    gc.freeze()


@functools.cache
def leave_to_exit() -> None:
    """At its end let the process take everything with it, unsearched."""
    atexit.register(gc.freeze)
