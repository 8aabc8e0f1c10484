"""Processes that keep cores busy while something is timed, as other runs of a sweep will be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

WORK = """
import os, sys, threading
import numpy as np
threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
weights, activations = np.full((256, 256), 0.5, np.float32), np.ones((2048, 256), np.float32)
print(flush=True)
while True:
    np.tanh(activations @ weights, out=activations)
"""
"""A product and something that only moves memory, in turns, until nobody holds the other end of its standard input."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def busy(count: int, threads: int) -> Iterator[None]:
    """So many processes with so many threads each at work around us; they are gone when this ends, however it does."""
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
                )
            )
            for _ in range(count)
        ]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it is at work
        yield
