"""Python's collector of garbage in a process that serves many runs."""

import functools
import gc


def collect() -> None:
    """Free what is no longer used.

    The collector goes through every object there is, and after the imports of PyTorch and Ray that takes half a second,
    again and again, since Accelerate too has it run after each training. So what is there at the first call is left
    out from then on.
    """
    gc.collect()
    _exempt_what_is_there()


@functools.cache
def _exempt_what_is_there() -> None:
    gc.freeze()
