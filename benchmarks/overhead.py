"""What the harness costs beside training and evaluation: (wall time x concurrency - bare seconds) / runs.

    python -m benchmarks.overhead [SWEEP]

Runs the whole sweep through the command line in a folder of its own, from nothing.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaling import grid, results
from scaling.resources import available_cpus
from scaling.root import open_root
from scaling.runs import identify


def main(arguments: list[str]) -> None:
    """Print wall time, bare seconds and overhead per run."""
    sweep = Path(arguments[0] if arguments else "sweeps/first_study.yaml")
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run([Path(sys.executable).parent / "scaling", "run", sweep, "--root", folder], check=True)
        wall = time.perf_counter() - begin
        frame = results.collect(open_root(folder), list(identify(grid.read(sweep)).specs)).to_pandas()
    bare = float(frame["train_seconds"].sum() + frame["evaluate_seconds"].sum())
    cpus = available_cpus()
    print(f"{len(frame)} runs, wall {wall:.1f} s, {cpus} at a time, training and evaluation {bare:.1f} s")
    print(f"overhead {(wall * cpus - bare) / len(frame):.2f} s per run")


if __name__ == "__main__":
    main(sys.argv[1:])
