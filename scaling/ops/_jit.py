"""How functions are compiled, and where their machine code is kept."""

import numba

from scaling.ops import _cache

_cache.keep_apart()

jit = numba.njit(error_model="numpy", cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For what only other compiled functions call: without the two wrappers that Numba makes to call them from elsewhere,
which take as long to compile as they do."""

parallel = numba.njit(parallel=True, error_model="numpy", cache=True)
"""For what Python calls, with loops that threads share."""
