"""Datasets: how long a store takes to build and open, what a batch costs, how much memory conversion and trials take.

    python -m benchmarks.data [--rows 1000000] [--large-gigabytes 8] [--folder PATH]

Makes its own HDF5 files in the D4RL layout, with the shapes of Hopper, and removes them. Memory is that of a process of
its own: its largest resident set, and for two trials on one store what they share.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from scaling.building import fresh_cache
from scaling.datasets import d4rl
from scaling.source import rows_at_once
from scaling.spec import DataSpec, ModelSpec, RunSpec
from scaling.store import open_store
from scaling.subsets import training_episodes
from scaling.windows import Windows

STATE, ACTION, EPISODE = 11, 3, 500
OPEN = """
import sys
from pathlib import Path
from scaling.datasets import d4rl
from scaling.spec import DataSpec
import resource
store = d4rl.open(DataSpec(path=sys.argv[1]), Path())
print(len(store.rewards), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
TRIAL = """
import sys, time
from pathlib import Path
from scaling.store import open_store
store = open_store(Path(sys.argv[1]))
total = sum(float(array.sum()) for array in (store.states, store.actions, store.rewards, store.rtg))
print(total, flush=True)
sys.stdin.read()
"""


def write(path: Path, rows: int) -> None:
    """Episodes of a fixed length, numbers of a generator, in pieces."""
    generator = np.random.default_rng(0)
    step = rows_at_once(4 * (STATE + ACTION), EPISODE)
    with h5py.File(path, "w") as file:
        shapes = {"observations": (STATE,), "actions": (ACTION,), "rewards": ()}
        for key, shape in shapes.items():
            file.create_dataset(key, (rows, *shape), np.float32)
        for key in ("terminals", "timeouts"):
            file.create_dataset(key, (rows,), bool)
        for first in range(0, rows, step):
            into = slice(first, min(first + step, rows))
            for key, shape in shapes.items():
                file[key][into] = generator.uniform(-1, 1, (into.stop - first, *shape)).astype(np.float32)
            file["timeouts"][into] = np.arange(first, into.stop) % EPISODE == EPISODE - 1


def seconds(call: object, times: int) -> float:
    """Median wall time of a call."""
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        call()  # type: ignore[operator]
        took.append(time.perf_counter() - begin)
    return float(np.median(took))


def conversion(path: Path, rows: int) -> None:
    """Building, opening, sampling."""
    with fresh_cache():
        begin = time.perf_counter()
        store = d4rl.open(DataSpec(path=str(path)), Path())
        print(f"{rows:,} transitions become a store in {time.perf_counter() - begin:.2f} s")
        print(f"opening it takes {1e3 * seconds(lambda: open_store(store.folder), 20):.1f} ms")
        spec = RunSpec(model=ModelSpec(context=20))
        windows = Windows(store, training_episodes(store, spec.data), spec)
        normalise = windows.normaliser()
        generator = np.random.default_rng(0)
        sample = seconds(lambda: windows.gather(windows.draw(64, generator), normalise), 500)
        print(f"a batch of 64 windows of 20 steps takes {1e3 * sample:.2f} ms")
        shared(store.folder)


def shared(folder: Path) -> None:
    """What two processes that have read all of a store hold, together and each alone."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TRIAL, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for one in both:
        assert one.stdout is not None
        one.stdout.readline()
    for one in both:
        kinds = _of_store(one.pid, folder)
        print(
            f"a trial maps {kinds['Rss'] / 1024:.0f} MiB of the store, of which it shares "
            f"{(kinds['Shared_Clean'] + kinds['Shared_Dirty']) / 1024:.0f} MiB"
        )
    for one in both:
        one.communicate("")


def _of_store(pid: int, folder: Path) -> dict[str, int]:
    """KiB of a process's maps of the store, by kind."""
    kinds = dict.fromkeys(("Rss", "Shared_Clean", "Shared_Dirty"), 0)
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name = line.split(":")[0]
        if "-" in line.split(" ")[0]:
            ours = str(folder) in line
        elif ours and name in kinds:
            kinds[name] += int(line.split()[1])
    return kinds


def memory(path: Path, gigabytes: float) -> None:
    """The largest resident set of a process that converts a large file."""
    rows = int(gigabytes * 1e9 / (4 * (STATE + ACTION + 1) + 2)) // EPISODE * EPISODE
    write(path, rows)
    environment = {**os.environ, "SCALING_CACHE": str(path.parent / "cache")}
    begin = time.perf_counter()
    out = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)], check=True, capture_output=True, text=True, env=environment
    )
    took = time.perf_counter() - begin
    found, kilobytes = map(int, out.stdout.split())
    assert found == rows
    print(
        f"a file of {path.stat().st_size / 1e9:.2f} GB ({rows:,} transitions) is converted in {took:.0f} s "
        f"with at most {kilobytes / 1e6:.2f} GB of memory"
    )


def main(arguments: list[str]) -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--large-gigabytes", type=float, default=8.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the files lie meanwhile")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        place = Path(folder)
        write(place / "small.hdf5", options.rows // EPISODE * EPISODE)
        conversion(place / "small.hdf5", options.rows // EPISODE * EPISODE)
        memory(place / "large.hdf5", options.large_gigabytes)


if __name__ == "__main__":
    main(sys.argv[1:])
