"""Work that threads share, as functions that are compiled once and called by their address.

Numba compiles what a parallel loop calls anew for the loop, and again for the function around it; for the kernels that
would be minutes. A job is a function of the address of what it is given, and of the first and last of its items.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Job = Callable[[int, int, int], None]


@functools.cache
def _compiled(job: Job) -> Any:
    """Machine code, which must not be thrown away; there from the first call on."""
    signature = types.void(types.int64, types.int64, types.int64)
    return numba.cfunc(signature, error_model="numpy", cache=True)(job)


def share(job: Job, given: np.ndarray, items: int, threads: int) -> None:
    """Have threads do all items, each about as many, that follow one another."""
    _shared(_compiled(job).address, given.ctypes.data, items, min(threads, items))


@intrinsic
def _call(typing, job, given, first, last):  # type: ignore[no-untyped-def]
    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [number] * 3)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, types.int64), build


@numba.njit(parallel=True, error_model="numpy", cache=True)
def _shared(job, given, items, workers):  # type: ignore[no-untyped-def]
    for worker in numba.prange(workers):
        _call(job, given, worker * items // workers, (worker + 1) * items // workers)
