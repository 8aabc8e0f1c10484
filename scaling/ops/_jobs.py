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

from scaling.ops._jit import jit, parallel

Job = Callable[[int, int, int], int]

TURNS = 4
"""As many for each of several threads; a slow one, or one that others keep from its core, takes fewer of them."""

DONE = 1
"""Numba gives 0 for a function that raised something, and only says so on stderr."""


@functools.cache
def _compiled(job: Job) -> Any:
    """Machine code, which must not be thrown away; there from the first call on."""
    signature = types.int64(types.int64, types.int64, types.int64)
    return numba.cfunc(signature, error_model="numpy", cache=True)(job)


def share(job: Job, given: np.ndarray, items: int, threads: int) -> None:
    """Have threads do all items, some that follow one another at a time, so that a slow thread does fewer.

    Raises:
        MemoryError: one of them could not, for which there is no other reason.

    """
    workers = min(threads, items)
    turns = min(items, TURNS * workers) if workers > 1 else workers
    if _shared(_compiled(job).address, given.ctypes.data, items, turns, workers, np.zeros(1, np.int64)) != turns * DONE:
        raise MemoryError("a kernel found no memory to work in")


@intrinsic
def _call(typing, job, given, first, last):  # type: ignore[no-untyped-def]
    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = ir.IntType(64)
        kind = ir.FunctionType(number, [number] * 3)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(types.int64, types.int64, types.int64, types.int64), build


@intrinsic
def _next(typing, taken):  # type: ignore[no-untyped-def]
    """How many turns had been taken before this one, by whichever thread."""

    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        counter = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "monotonic")

    return types.int64(taken), build


@jit
def _work(job, given, items, turns, taken):  # type: ignore[no-untyped-def]
    """Take turns while there are some; how many were done."""
    done, turn = 0, _next(taken)
    while turn < turns:
        done += _call(job, given, turn * items // turns, (turn + 1) * items // turns)
        turn = _next(taken)
    return done


@parallel
def _shared(job, given, items, turns, workers, taken):  # type: ignore[no-untyped-def]
    done = 0
    for _ in numba.prange(workers):
        done += _work(job, given, items, turns, taken)
    return done
