"""How often nominal 95 % intervals hold the truth, in worlds with seeds and subsets as random effects.

python -m benchmarks.coverage [--worlds 300] [--draws 300] [--json FILE]
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from benchmarks.worlds import GRIDS, LARGEST_D, LARGEST_N, TRUTH, in_parallel, loss, world
from scaling import fit as fits
from scaling.answer import gains
from scaling.ensemble import single
from scaling.intervals import bootstrap, percentile

NOISES = (0.01, 0.03, 0.08)
WHAT = ("alpha", "beta", "gain of twice the data", "gain of twice the model", "alpha, BCa", "beta, BCa")


def truths() -> np.ndarray:
    """The true values of :data:`WHAT`."""
    here = loss(LARGEST_N, LARGEST_D, TRUTH)
    by_data = 1 - loss(LARGEST_N, 2 * LARGEST_D, TRUTH) / here
    by_model = 1 - loss(2 * LARGEST_N, LARGEST_D, TRUTH) / here
    return np.array([TRUTH["alpha"], TRUTH["beta"], by_data, by_model, TRUTH["alpha"], TRUTH["beta"]])


def covered(job: tuple[str, float, int, int]) -> np.ndarray:
    """(quantity,) whether each interval of one world holds the truth."""
    grid, noise, seed, draws = job
    data = fits.prepare(world(grid, noise, seed), "loss")
    resampled = bootstrap(fits.fit(fits.load_law("additive"), data, starts=24), draws, seed)
    intervals = resampled.intervals()
    doubled = [percentile(values) for values in gains(single(resampled), LARGEST_N, LARGEST_D)]
    plain, corrected = intervals["percentile"], intervals["bca"]
    ends = np.array(
        [plain["alpha"], plain["beta"], *doubled, corrected["alpha"], corrected["beta"]],
        float,
    )
    return (ends[:, 0] <= truths()) & (truths() <= ends[:, 1])


def main() -> None:
    """Simulate and print a Markdown table of coverage in per cent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"Coverage of nominal 95 % intervals, {options.worlds} worlds each, in per cent\n")
    print("| grid | noise | " + " | ".join(WHAT) + " |\n|" + "---|" * (len(WHAT) + 2))
    rows = []
    for grid, noise in itertools.product(GRIDS, NOISES):
        jobs = [(grid, noise, seed, options.draws) for seed in range(options.worlds)]
        share = 100 * np.mean(in_parallel(covered, jobs), axis=0)
        rows.append({"grid": grid, "noise": noise, **dict(zip(WHAT, share.tolist(), strict=True))})
        print(f"| {grid} | {noise:.0%} | " + " | ".join(f"{value:.1f}" for value in share) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
