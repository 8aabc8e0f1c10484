"""What the kernels need to know of PyTorch."""

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor


def flat(x: Tensor) -> np.ndarray:
    """The memory of a contiguous tensor as a NumPy array of one axis."""
    return x.detach().numpy().reshape(-1)


def by_member(info: Any, in_dims: Sequence[int | None], given: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that are mapped over, each with its axis of members in front; those that all share are repeated."""
    axes = zip(given, in_dims, strict=True)
    return [x.expand(info.batch_size, *x.shape) if at is None else x.movedim(at, 0) for x, at in axes]


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
