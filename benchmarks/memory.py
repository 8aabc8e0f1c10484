"""Peak memory of training steps, in a fresh process for each size.

    python -m benchmarks.memory SIZE-AS-JSON THREADS

How far the resident set rises above what it was with the kernels loaded and the threads started, while a network is
built and takes a few steps. Tensors are mapped one by one, so that freed ones do not count. Pages of a mapped dataset
do. Linux only: it is the kernel that keeps the peak.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.steps import Point, inputs, network, step

STEPS = 3
ONE_BY_ONE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
"""For glibc: allocations from so many bytes on are mapped, and given back when freed."""
ROOT = Path(__file__).parents[1]


def peak(point: Point, threads: int) -> int:
    """Bytes that a process takes for steps of this size."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(dataclasses.asdict(point)), str(threads)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **ONE_BY_ONE},
    )
    return int(told.stdout)


def take(point: Point, steps: int) -> None:
    """Build a network and train it."""
    run = step(network(point.spec()), inputs(point))
    for _ in range(steps):
        run()


def grown(point: Point) -> int:
    """Bytes by which this process grows at most over steps of this size."""
    take(Point(width=8, depth=1, context=4, batch=2), 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _bytes("VmRSS")
    take(point, STEPS)
    return _bytes("VmHWM") - before


def _bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith(f"{name}:"))


def main(arguments: list[str]) -> None:
    """Print the bytes."""
    torch.set_num_threads(int(arguments[1]))
    print(grown(Point(**json.loads(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
