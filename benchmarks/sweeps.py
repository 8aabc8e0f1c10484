"""What many runs cost those who start and watch them, and what drivers that share a root lose by it.

    python -m benchmarks.sweeps [--planned 2000] [--driven 300] [--shared 20]

Planning and status of many runs of a trivial model; overhead per run of one process and of two; two drivers on one root
against one; memory of a driver over the runs that it starts.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from scaling import grid, manifest, plan, results
from scaling.driver import manifest_of
from scaling.root import open_root
from scaling.runs import identify
from scaling.train import identity

SCALING = str(Path(sys.executable).parent / "scaling")
TRIVIAL = "model: {kind: bc, width: 8, depth: 1, context: 2}, train: {amount: 2, batch: 2, evaluations: 1}"
SECONDS = "model: {width: 32, depth: 2, context: 20}, train: {amount: 200, batch: 16, evaluations: 2}"
TASK = "data: {kind: tmaze, horizon: 4, episodes: 50}"
HOPPER = "data: {path: 'embedded:hopper-mini-v5'}"


def sweep(folder: Path, settings: str, runs: int) -> Path:
    """A sweep of runs that differ in their seed."""
    path = folder / f"many-{runs}.yaml"
    path.write_text(f"name: many\nbase: {{{settings}}}\naxes: {{seed: {list(range(runs))}}}\n")
    return path


def call(*arguments: object) -> float:
    """Seconds that a verb takes."""
    begin = time.perf_counter()
    subprocess.run([SCALING, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def many(folder: Path, runs: int) -> None:
    """Plan, and status with nine rows of ten there."""
    few, all_of_them = sweep(folder, f"{TRIVIAL}, {TASK}", 1), sweep(folder, f"{TRIVIAL}, {TASK}", runs)
    alone, whole = (min(call("plan", path, "--root", folder / "none") for _ in range(2)) for path in (few, all_of_them))
    print(f"plan: {whole:.2f} s for {runs:,} runs, {alone:.2f} s for one")
    root, found = open_root(folder / "rows"), identify(grid.read(all_of_them))
    manifest.write(root, manifest_of(found, plan.plan(found), manifest.digest_of(all_of_them)))
    for number, (name, spec) in enumerate(found.specs.items()):
        if number % 10:
            numbers = {"status": results.DONE, "loss_best": 0.5, "train_seconds": 1.0, "evaluate_seconds": 0.1}
            results.write_row(root, {**identity(spec, found.store(spec).digest), **numbers, "run_id": name})
    print(f"status: {min(call('status', all_of_them, '--root', folder / 'rows') for _ in range(2)):.2f} s")


def driven(folder: Path, runs: int) -> None:
    """Memory of a driver along its runs, and seconds per run in its first and last fifth."""
    root = folder / "driven"
    path = sweep(folder, f"{TRIVIAL}, {TASK}", runs)
    driver = subprocess.Popen([SCALING, "run", path, "--root", root, "--log", "none"], stdout=subprocess.DEVNULL)
    watched, seen = psutil.Process(driver.pid), []
    while driver.poll() is None:
        seen.append((len(list(root.glob("*/row.parquet"))), time.perf_counter(), watched.memory_full_info().uss))
        time.sleep(0.2)
    fifth = runs // 5
    at = {share: next(point for point in seen if point[0] >= share) for share in (1, fifth, runs - fifth, runs - 2)}
    early = (at[fifth][1] - at[1][1]) / (at[fifth][0] - at[1][0])
    late = (at[runs - 2][1] - at[runs - fifth][1]) / max(1, at[runs - 2][0] - at[runs - fifth][0])
    first, last = (at[share][2] / 2**20 for share in (fifth, runs - 2))
    print(
        f"driver of {runs} trivial runs: {first:.0f} MiB after {fifth}, {last:.0f} MiB at the end; "
        f"{early:.2f} s per run in the first fifth, {late:.2f} s in the last"
    )


def shared(folder: Path, runs: int) -> None:
    """Two drivers with one process each, against one driver alone."""
    path = sweep(folder, f"{SECONDS}, {HOPPER}", runs)
    alone = call("run", path, "--root", folder / "alone", "--address", "none")
    begin = time.perf_counter()
    arguments = [SCALING, "run", str(path), "--root", str(folder / "both"), "--address", "none"]
    drivers = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL) for _ in range(2)]
    codes = [driver.wait() for driver in drivers]
    both = time.perf_counter() - begin
    frame = results.collect(open_root(folder / "both"), list(identify(grid.read(path)).specs)).to_pandas()
    inside = float((frame["train_seconds"] + frame["evaluate_seconds"]).sum())
    print(
        f"{runs} equal runs: {alone:.1f} s by one driver, {both:.1f} s by two (exit codes {codes}); "
        f"training and evaluation of the two {inside:.1f} s, half of that {inside / 2:.1f} s"
    )


def overhead(folder: Path, runs: int) -> None:
    """What a run costs beside training and evaluation, after the first, with one process and with two."""
    path = sweep(folder, f"{SECONDS}, {HOPPER}", runs)
    for workers in (1, 2):
        root = folder / f"workers-{workers}"
        call("run", path, "--root", root, "--max-concurrent", 1, "--workers", workers, "--log", "none")
        rows = sorted(root.glob("*/row.parquet"), key=lambda row: row.stat().st_mtime_ns)
        frame = results.collect(open_root(root), [row.parent.name for row in rows[1:]]).to_pandas()
        wall = rows[-1].stat().st_mtime - rows[0].stat().st_mtime
        inside = float((frame["train_seconds"] + frame["evaluate_seconds"]).sum())
        print(f"overhead of a run of {workers} process(es): {(wall - inside) / len(frame):.2f} s")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many runs each part takes."""

    planned: int
    driven: int
    shared: int


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    for field, default in (("planned", 2000), ("driven", 300), ("shared", 20)):
        parser.add_argument(f"--{field}", type=int, default=default)
    sizes = Sizes(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        many(Path(folder), sizes.planned)
        overhead(Path(folder), 6)
        shared(Path(folder), sizes.shared)
        driven(Path(folder), sizes.driven)


if __name__ == "__main__":
    main()
