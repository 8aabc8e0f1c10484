"""Functions that only other compiled ones call."""

import numba

from scaling.ops import _cache

_cache.keep_apart()

jit = numba.njit(error_model="numpy", cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Without the two wrappers that Numba makes to call them from elsewhere, which take as long to compile as they do."""
