"""What the Numba kernels need to know of PyTorch."""

import numba
import numpy as np
import torch
from torch import Tensor


def array(x: Tensor) -> np.ndarray:
    """The tensor's memory as a NumPy array."""
    return x.detach().numpy()


def rows(x: Tensor) -> tuple[np.ndarray, int]:
    """A (batch, time, channel) tensor as a flat array and the distance between its rows, without a copy if possible.

    Row (b, t) starts at ``(b * time + t) * distance``. Slices along the last axis, which projections are split into,
    need no copy.
    """
    batch, time, channels = x.shape
    if x.stride(2) != 1 or x.stride(0) != time * x.stride(1):
        x = x.contiguous()
    distance = x.stride(1)
    return array(x.as_strided(((batch * time - 1) * distance + channels,), (1,))), distance


def threads_of_torch() -> None:
    """Let Numba use as many threads as PyTorch, so that one setting rules both.

    The first call starts Numba's pool, which sets OpenMP's number of threads, and with it PyTorch's, to all cores.
    """
    count = torch.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
