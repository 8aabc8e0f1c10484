"""Work that threads share, as functions that are compiled once and called by their address.

Numba compiles what a parallel loop calls anew for the loop, and again for the function around it; for the kernels that
would be minutes. A job is a function of the address of what it is given, and of the first and last of its items; it
returns ``DONE``.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from scaling.ops._jit import parallel

Job = Callable[[int, int, int], int]

DONE = 1
"""Numba gives 0 for a function that raised something, and only says so on stderr."""


@functools.cache
def _compiled(job: Job) -> Any:
    """Machine code, which must not be thrown away; there from the first call on."""
    signature = types.int64(types.int64, types.int64, types.int64)
    return numba.cfunc(signature, error_model="numpy", cache=True)(job)


def share(job: Job, given: np.ndarray, items: int, threads: int) -> None:
    """Have threads do all items, each about as many, that follow one another.

    Raises:
        MemoryError: one of them could not, for which there is no other reason.

    """
    workers = min(threads, items)
    if _shared(_compiled(job).address, given.ctypes.data, items, workers) != workers * DONE:
        raise MemoryError("a kernel found no memory to work in")


@intrinsic
def _call(typing, job, given, first, last):  # type: ignore[no-untyped-def]
    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = ir.IntType(64)
        kind = ir.FunctionType(number, [number] * 3)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(types.int64, types.int64, types.int64, types.int64), build


@parallel
def _shared(job, given, items, workers):  # type: ignore[no-untyped-def]
    done = 0
    for worker in numba.prange(workers):
        done += _call(job, given, worker * items // workers, (worker + 1) * items // workers)
    return done
