"""How often the test of model size rejects: where size does nothing (should be 5 %), and where it does something.

python -m benchmarks.size_test [--worlds 400] [--json FILE]
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from benchmarks.worlds import GRIDS, LARGEST_N, TRUTH, in_parallel, world
from scaling import fit as fits
from scaling.nulls import LEVEL, size_test
from scaling.objective import Objective

NOISE = 0.03
EFFECTS = (0.0, 0.5, 1.0, 2.0)
"""Change of log loss over the range of N, in standard deviations between seeds."""
SIMULATIONS = 199


def rejected(job: tuple[str, float, int]) -> bool:
    """Whether the test says that size matters, in one world."""
    grid, effect, seed = job
    without = TRUTH | {"A": 0.0}
    small, large = 5e3 ** -TRUTH["alpha"], LARGEST_N ** -TRUTH["alpha"]
    at_most = without["E"] + without["B"] * 1e5 ** -TRUTH["beta"]
    truth = without | {"A": effect * NOISE * at_most / (small - large)}
    data = fits.prepare(world(grid, NOISE, seed, truth), "loss")
    return size_test(None, data, Objective(), simulations=SIMULATIONS, seed=seed).p <= LEVEL


def main() -> None:
    """Simulate and print a Markdown table of rejections in per cent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"Rejections at {LEVEL:.0%} of 'model size does nothing', noise {NOISE:.0%}, {options.worlds} worlds each\n")
    print("| grid | effect over the range of N, in seed standard deviations | rejected |\n|---|---|---|")
    rows = []
    for grid, effect in itertools.product(GRIDS, EFFECTS):
        jobs = [(grid, effect, seed) for seed in range(options.worlds)]
        share = 100 * float(np.mean(in_parallel(rejected, jobs)))
        rows.append({"grid": grid, "effect": effect, "rejected": share})
        print(f"| {grid} | {effect:g} | {share:.1f} % |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
