"""What the kernels need to know of PyTorch."""

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

CHUNKS = 8
"""Groups of rows that sum parameter gradients on their own: a constant, so that sums do not depend on threads, of
which a backward pass cannot use more."""


def flat(x: Tensor) -> np.ndarray:
    """The memory of a contiguous tensor as a NumPy array of one axis."""
    return x.detach().numpy().reshape(-1)


def by_member(info: Any, in_dims: Sequence[int | None], given: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that are mapped over, each with its axis of members in front; those that all share are repeated."""
    axes = zip(given, in_dims, strict=True)
    return [x.expand(info.batch_size, *x.shape) if at is None else x.movedim(at, 0) for x, at in axes]


def norm_arrays(norm: Sequence[Tensor]) -> list[np.ndarray]:
    """Memory of a norm's weight and bias, with an axis of members in front; nothing in it where there is no norm."""
    return [in_memory(x, 1) for x in norm] or [ABSENT, ABSENT]


ABSENT = np.zeros((0, 0), np.float32)
"""What stands for a parameter that there is not."""


def in_memory(x: Tensor, ndim: int) -> np.ndarray:
    """A parameter's memory, with an axis of members in front of its ``ndim`` own."""
    array: np.ndarray = x.detach().contiguous().numpy()
    return array if array.ndim > ndim else array[None]


def signed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function that knows its signature, for which autograd asks at every call and which is slow to find."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


def threads_of_torch() -> int:
    """Let Numba use as many threads as PyTorch, so that one setting rules both; their number.

    The first call starts Numba's pool, which sets OpenMP's number of threads, and with it PyTorch's, to all cores.
    """
    count = torch.get_num_threads()
    threads: int = min(count, numba.config.NUMBA_NUM_THREADS)
    if getattr(_LAST, "threads", 0) != threads:
        numba.set_num_threads(threads)
        _LAST.threads = threads
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return threads


_LAST = threading.local()
"""What Numba was told last in a thread: to tell it again takes longer than to look."""
