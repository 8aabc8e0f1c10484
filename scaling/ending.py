"""The end of this process: work in other threads is asked to stop, and waited for.

A signal ends a worker at any time. Python then takes apart what the work stands on, such as the operators that are
registered with PyTorch, and what fails from there on says nothing about the run it fails in.
"""

import atexit
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 10.0
"""Seconds that work has to save its state."""

_begun = threading.Event()
_under_way: set[threading.Event] = set()


def has_begun() -> bool:
    """Whether the process is ending."""
    return _begun.is_set()


@contextmanager
def awaited() -> Iterator[None]:
    """A process that ends waits for the block, though not for ever."""
    atexit.unregister(_await)
    atexit.register(_await)  # called before all that was registered by now
    done = threading.Event()
    _under_way.add(done)
    try:
        yield
    finally:
        _under_way.discard(done)
        done.set()


def _await() -> None:
    _begun.set()
    deadline = time.monotonic() + PATIENCE
    for done in list(_under_way):
        done.wait(max(0.0, deadline - time.monotonic()))
