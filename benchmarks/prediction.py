"""What ``plan`` says that a sweep will take, and what it takes.

    python -m benchmarks.prediction [SWEEP ...] [--cpus 2] [--json FILE]

Each sweep is planned, and then run through the command line in a folder of its own, from nothing: the smoke sweep and
one of a few unequal runs, unless others are named. ``start-up`` is what passes from the command to the first update,
and ``beside`` what a run takes of its slot beside training and evaluation: its preparation, which a trial measures, and
what is constant in the plan.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from scaling import grid, plan, results
from scaling.root import open_root
from scaling.runs import identify

UNEQUAL = """
name: unequal
base:
  model: {context: 20}
  data: {path: "embedded:hopper-mini-v5"}
  train: {amount: 150, batch: 32, evaluations: 3}
axes:
  model.kind: [mambadm, decision_transformer]
  model.width: [16, 32, 64]
"""

IMPORTS = """
import time
from scaling import garbage, plan_verb

begin = time.perf_counter()
with garbage.paused():
    from scaling import plan
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Seconds of one sweep."""

    runs: int
    predicted: float
    took: float
    imports: float
    start_up: float
    beside: float
    """Per run."""


def compare(sweep: Path, cpus: int, root: Path) -> Comparison:
    """Plan a sweep, then run it."""
    runs = identify(grid.read(sweep))
    costs, slots = plan.plan(runs), min(cpus, len(runs.specs))
    imports = float(subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True).stdout)
    predicted = plan.estimate(runs, costs, company=slots - 1).wall(costs, runs.specs, slots, imports)
    command = [sys.executable, "-m", "scaling.cli", "run", str(sweep), "--cpus", str(cpus)]
    command += ["--root", str(root), "--log", "none"]
    began = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.time() - began
    frame = results.collect(open_root(str(root)), list(runs.specs)).to_pandas().set_index("run_id")
    inside = frame["train_seconds"] + frame["evaluate_seconds"]
    ended = {name: (root / name / "row.parquet").stat().st_mtime for name in runs.specs}
    start_up = min(ended[name] - inside[name] for name in ended) - began
    beside = (slots * (max(ended.values()) - began - start_up) - inside.sum()) / len(ended)
    return Comparison(
        runs=len(ended), predicted=predicted, took=took, imports=imports, start_up=start_up, beside=float(beside)
    )


def main(arguments: list[str] | None = None) -> None:
    """Print a table; write it as JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sweeps", type=Path, nargs="*")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, Comparison] = {}
    print("| sweep | runs | predicted, s | took, s | predicted / took | imports, s | start-up, s | beside, s per run |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        unequal = Path(folder) / "unequal.yaml"
        unequal.write_text(UNEQUAL)
        for sweep in given.sweeps or [Path("sweeps/smoke.yaml"), unequal]:
            one = found[sweep.stem] = compare(sweep, given.cpus, Path(folder) / sweep.stem)
            print(
                f"| {sweep.stem} | {one.runs} | {one.predicted:.1f} | {one.took:.1f} | "
                f"{one.predicted / one.took:.2f} | {one.imports:.1f} | {one.start_up:.1f} | {one.beside:.2f} |",
                flush=True,
            )
    if given.json:
        told = {name: asdict(one) for name, one in found.items()}
        given.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
