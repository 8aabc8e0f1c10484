"""What the Numba kernels need to know of PyTorch."""

import numba
import numpy as np
import torch
from torch import Tensor


def flat(x: Tensor) -> np.ndarray:
    """The memory of a contiguous tensor as a NumPy array of one axis."""
    return x.detach().numpy().reshape(-1)


def threads_of_torch() -> int:
    """Let Numba use as many threads as PyTorch, so that one setting rules both; their number.

    The first call starts Numba's pool, which sets OpenMP's number of threads, and with it PyTorch's, to all cores.
    """
    count = torch.get_num_threads()
    threads: int = min(count, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return threads
