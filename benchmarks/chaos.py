"""Does a sweep survive whatever happens to it? The same runs, undisturbed and amid kills, must leave the same rows.

    python -m benchmarks.chaos [--runs 40] [--kills 30] [--seed 0] [--workers 1] [--out chaos.json]

On a Ray cluster of three nodes, started here, processes of runs, drivers and a node's raylet are killed at random
moments, and the disk, if a small one may be mounted, runs full and turns read-only. Exit code 1: something was lost,
changed, done otherwise, or left behind.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks import harm, mounts, processes
from benchmarks.driving import Driver
from benchmarks.harm import Harm, Scene
from benchmarks.small_cluster import LOOPBACK, SmallCluster
from scaling import grid, results
from scaling.root import open_root
from scaling.runs import identify

SHAPES = 4
"""Combinations of widths and fractions; each is run with every seed."""
HANG = 420.0
"""Seconds without a new row after which a sweep is taken to hang."""
LEAVE = 60.0
"""Seconds in which processes that are no longer needed must be gone."""

Rows = dict[str, dict[str, Any]]


def write_sweep(folder: Path, runs: int, updates: int) -> Path:
    """A dataset in which there is something to learn, and a sweep on it of so many runs, a multiple of four."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 30, 60)
    rows, last = int(lengths.sum()), np.cumsum(lengths) - 1
    state = generator.normal(size=(rows, 4)).astype(np.float32)
    action = np.tanh(state @ generator.normal(size=(4, 2)) + 0.1 * generator.normal(size=(rows, 2)))
    with h5py.File(folder / "chaos.hdf5", "w") as file:
        file["observations"], file["actions"] = state, action.astype(np.float32)
        file["rewards"] = generator.uniform(size=rows).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(rows, bool), np.isin(np.arange(rows), last)
    sweep = folder / "chaos.yaml"
    sweep.write_text(
        f"""
name: chaos
base:
  model: {{depth: 1, context: 4, dropout: 0.1}}
  data: {{path: chaos.hdf5}}
  train: {{amount: {updates}, batch: 4, evaluations: 6}}
axes:
  model.width: [16, 24]
  data.fraction: [0.5, 1.0]
  seed: {list(range(runs // SHAPES))}
"""
    )
    return sweep


def command(sweep: Path, root: Path, *more: object) -> list[str]:
    """The command line that does a sweep."""
    return [sys.executable, "-m", "scaling.cli", "run", str(sweep), "--root", str(root), *map(str, more)]


def read_rows(root: Path, run_ids: list[str]) -> Rows:
    """The rows that are there, by run_id."""
    return {row["run_id"]: row for row in results.collect(open_root(root), run_ids).to_pylist()}


@dataclass
class Watch:
    """The rows of a root from the first sight of each; none may vanish or change."""

    root: Path
    seen: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def look(self) -> int:
        """How many there are."""
        there = {path.parent.name: path for path in self.root.glob("*/row.parquet")}
        for run_id in self.seen.keys() - there.keys():
            self.violations.append(f"the row of {run_id} vanished")
            del self.seen[run_id]
        for run_id, path in there.items():
            found = (path.stat().st_mtime_ns, path.read_bytes())
            if self.seen.setdefault(run_id, found) != found:
                self.violations.append(f"the row of {run_id} was written again")
                self.seen[run_id] = found
        return len(there)


def disturb(driver: Driver, harming: Harm, watch: Watch, say: Callable[[str], None]) -> list[str]:
    """Do what is due while the driver works, and see it through; what was wrong meanwhile."""
    rows, new = 0, time.monotonic()
    try:
        while driver.goes_on():
            now_there = watch.look()
            if now_there != rows:
                rows, new = now_there, time.monotonic()
            if time.monotonic() - new > HANG:
                return [f"no run ended for {HANG:g} s, with {rows} done"]
            if done := harming.step(rows):
                say(f"{done.seconds:7.1f} s, {rows:3d} rows: {done.kind}, {done.what}")
            time.sleep(0.1)
    finally:
        harming.end()
        watch.look()
    code = driver.exits[-1]
    return [f"the driver ended with exit code {code}"] if code else []


def same(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two values of a table agree; NaN is NaN."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=tolerance)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key], tolerance) for key in one)
    return bool(one == other)


def differences(expected: Rows, found: Rows, tolerance: float = 0.0) -> list[str]:
    """In what the rows differ that a run gives again: runs missing or not done, and columns."""
    wrong = [f"{run_id} has no row" for run_id in expected.keys() - found.keys()]
    names = [column.name for column in results.COLUMNS if column.repeatable]
    for run_id in expected.keys() & found.keys():
        one, other = expected[run_id], found[run_id]
        if other["status"] != results.DONE:
            wrong.append(f"{run_id} is {other['status']}: {other['error']}")
            continue
        bad = [name for name in names if not same(one[name], other[name], tolerance)]
        wrong += [f"{run_id} differs in {name}: {one[name]} undisturbed, {other[name]} here" for name in bad]
    return sorted(wrong)


def remains(root: Path, run_ids: list[str]) -> list[str]:
    """What a finished sweep should not have left: claims, rows of nobody, rows in another's place."""
    wrong = [f"a claim is left: {path.relative_to(root)}" for path in root.glob("*/claim-*")]
    strange = {path.parent.name for path in root.glob("*/row.parquet")} - set(run_ids)
    wrong += [f"a row of no run of the sweep: {name}" for name in strange]
    there = [path.parent.name for path in root.glob("*/row.parquet")]
    stored = [results.read_row(open_root(root), name) for name in there]
    return wrong + [
        f"the row in {name} is of {row['run_id']}"
        for name, row in zip(there, stored, strict=True)
        if row and row["run_id"] != name
    ]


def litter(root: Path) -> Counter[str]:
    """Files beside rows that do no harm, by kind: what a process killed while writing could not remove."""
    files = [path.name for path in root.rglob("*") if path.is_file()]
    return Counter(
        "checkpoints" if name == "checkpoint.pt" else "half-written files"
        for name in files
        if name == "checkpoint.pt" or name.startswith(".")
    )


def at_work(_: int, title: str) -> bool:
    """Whether a process of Ray's, by its title, does anybody's work."""
    return title.startswith("ray::") and not title.startswith(("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv"))


@contextmanager
def small_disk(folder: Path, wanted: bool) -> Iterator[None]:
    """A small file system at the folder, if wanted."""
    if not wanted:
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    mounts.mount_small(folder)
    try:
        yield
    finally:
        mounts.unmount(folder)


@contextmanager
def own_processes() -> Iterator[set[int]]:
    """Descendants do not get out of sight, and die with the context; those of before are told."""
    before = set(processes.descendants())
    processes.adopt_orphans()
    try:
        yield before
    finally:
        for pid in processes.descendants().keys() - before:
            processes.kill(pid)
        processes.adopt_orphans(wanted=False)


def environment(folder: Path) -> dict[str, str]:
    """Of drivers and clusters: one thread each, and all that Ray writes in a folder of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder), "SCALING_PACK": "1"}


class Study:
    """One sweep, undisturbed and disturbed, in a folder with a short name, since sockets lie in it."""

    def __init__(self, folder: Path, runs: int, updates: int, workers: int, say: Callable[[str], None]) -> None:
        self.folder, self.workers, self.say = folder, workers, say
        self.sweep = write_sweep(folder, runs, updates)
        self.run_ids = list(identify(grid.read(self.sweep)).specs)
        self.root = folder / "root"
        self.environment = environment(folder)
        self.violations: list[str] = []
        self.seconds: dict[str, float] = {}

    def undisturbed(self, *resources: object) -> Rows:
        """The rows as they should be."""
        begin, root = time.monotonic(), self.folder / "undisturbed"
        more = (*resources, "--workers", self.workers, "--log", "none")
        driver = Driver(
            command(self.sweep, root, *more), self.folder, self.folder / "undisturbed.log", self.environment
        )
        while driver.goes_on():
            time.sleep(0.2)
        self.seconds["undisturbed"] = time.monotonic() - begin
        rows = read_rows(root, self.run_ids)
        if driver.exits != [0] or any(row["status"] != results.DONE for row in rows.values()):
            raise RuntimeError(f"the undisturbed sweep failed: {(self.folder / 'undisturbed.log').read_text()}")
        return rows

    def disturbed(self, dues: list[harm.Due], cluster: SmallCluster | None, *more: object) -> tuple[Harm, Driver]:
        """Have it done amid disturbances."""
        begin, address = time.monotonic(), cluster.address if cluster else "local"
        resources = ("--address", address, "--workers", self.workers, "--retries", 50, "--checkpoint-every", 1, *more)
        own = {**self.environment, **(LOOPBACK if cluster else {})}
        driver = Driver(command(self.sweep, self.root, *resources), self.folder, self.folder / "driver.log", own)
        watch, harming = Watch(self.root), Harm(Scene(self.root, driver, cluster), dues)
        try:
            self.violations += disturb(driver, harming, watch, self.say)
        finally:
            driver.end()
        self.violations += watch.violations
        self.seconds["disturbed"] = time.monotonic() - begin
        return harming, driver

    def judge(self, expected: Rows) -> None:
        """Compare the rows, and look at what is left in the root."""
        tolerance = 0.0 if self.workers == 1 else 1e-6
        self.violations += differences(expected, read_rows(self.root, self.run_ids), tolerance)
        self.violations += remains(self.root, self.run_ids)

    def judge_processes(self, chosen: Callable[[int, str], bool]) -> None:
        """Look for processes that are still there."""
        left = processes.left_over(chosen, LEAVE)
        self.violations += [f"a process is left: {pid} {title[:80]}" for pid, title in left.items()]


def chaos(study: Study, dues: list[harm.Due], before: set[int]) -> dict[str, Any]:
    """All of it on a cluster; what happened."""
    expected = study.undisturbed("--cpus", 3 * study.workers)
    study.say(f"{len(expected)} undisturbed rows after {study.seconds['undisturbed']:.0f} s")
    study.judge_processes(lambda pid, _: pid not in before)
    cluster = SmallCluster(study.workers, study.environment, study.folder / "cluster.log")
    try:
        harming, driver = study.disturbed(dues, cluster)
        study.judge_processes(lambda pid, title: pid not in before and at_work(pid, title))
    finally:
        cluster.stop()
    study.judge_processes(lambda pid, _: pid not in before)
    study.judge(expected)
    found = read_rows(study.root, study.run_ids)
    return {
        "rows": len(found),
        "resumed": sum(bool(row["resumes"]) for row in found.values()),
        "driver_exits": driver.exits,
        "disturbances": harming.told(),
        "not_done": [due.kind for due in harming.dues],
        "litter": dict(litter(study.root)),
        "seconds": study.seconds,
        "violations": study.violations,
    }


def table(told: dict[str, Any]) -> str:
    """Markdown: disturbances by kind, then how it ended."""
    did = Counter(done["kind"] for done in told["disturbances"])
    missed = Counter(told["not_done"])
    lines = ["| disturbance | done | not done before the end |", "|---|---|---|"]
    lines += [f"| {kind} | {did[kind]} | {missed[kind]} |" for kind in sorted(did | missed)]
    exits = ", ".join(f"{count} x {code}" for code, count in Counter(told["driver_exits"]).items())
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in told["seconds"].items())
    litter = ", ".join(f"{count} {kind}" for kind, count in told["litter"].items()) or "nothing"
    lines += [
        "",
        f"{told['rows']} rows, {told['resumed']} of them of runs that went on from a checkpoint",
        f"drivers ended with {exits}; {took}; left beside rows: {litter}",
        f"{len(told['violations'])} violations",
        *(f"- {violation}" for violation in told["violations"]),
    ]
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("--runs", type=int, default=40, help="a multiple of four")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--spells", type=int, default=2, help="of a full disk, and of a read-only one")
    parser.add_argument("--updates", type=int, default=300, help="of each run; about 3 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the folder with all logs")
    options = parser.parse_args(arguments)
    if options.runs % SHAPES:
        parser.error(f"--runs must be a multiple of {SHAPES}: {options.runs}")
    return options


def main(arguments: list[str]) -> int:
    """Print the table; the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clears up

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    refusal = mounts.refusal()
    if refusal:
        say(f"the disk stays as it is, since nothing can be mounted here: {refusal}")
    weights = harm.KILLS if options.workers == 1 else harm.TEAM_KILLS
    kills = harm.shared_out(options.kills, weights)
    generator = np.random.default_rng(options.seed)
    dues = harm.plan(generator, options.runs, kills, 0 if refusal else options.spells)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ["SCALING_CACHE"] = str(folder / "cache")
    try:
        with own_processes() as before, small_disk(folder / "root", wanted=not refusal):
            study = Study(folder, options.runs, options.updates, options.workers, say)
            told = {"options": {**vars(options), "out": None}, **chaos(study, dues, before)}
            if options.keep:
                shutil.copytree(folder / "root", folder / "disturbed")
    finally:
        if options.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(told))
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if told["violations"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
