"""CPU seconds of fits and refits, and the objective against SciPy's trust-exact from 60 random starts.

python -m benchmarks.fits [--tables 20] [--json FILE]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from scaling import fit as fits, law as laws
from scaling.intervals import bootstrap

STARTS, REFITS = 60, 4000
PUBLISHED = Path(__file__).parents[1] / "tests" / "fixtures" / "muennighoff2023.csv"
MAPPED = {"N": "params", "D": "unique_tokens", "exposures": "tokens / unique_tokens", "loss": "val_loss"}


def table(sizes: int, amounts: int, seeds: int, noise: float, floor: float, alpha: float, seed: int) -> pd.DataFrame:
    """A grid of sizes by amounts of data with multiplicative noise."""
    generator = np.random.default_rng(seed)
    grid = [
        (n, d) for n in np.geomspace(1e4, 1e6, sizes) for d in np.geomspace(1e4, 3e6, amounts) for _ in range(seeds)
    ]
    frame = pd.DataFrame(grid, columns=["N", "D"])
    frame["loss"] = floor + 0.2 * (frame["N"] / 1e4) ** -alpha + 0.2 * (frame["D"] / 1e4) ** -0.4
    frame["loss"] *= np.exp(noise * generator.standard_normal(len(frame)))
    return frame


def tables(count: int) -> list[tuple[str, str, pd.DataFrame]]:
    """Law, description and rows of tables of many shapes, the published one first."""
    from scaling.table import read

    found = [("repeated", "Muennighoff et al. 2023, 229 runs", read(PUBLISHED, MAPPED).frame)]
    for seed in range(count):
        g = np.random.default_rng(1000 + seed)
        shape = (int(g.integers(3, 9)), int(g.integers(3, 10)), int(g.integers(1, 4)))
        noise, floor, alpha = (0.003, 0.01, 0.03, 0.1)[seed % 4], float(g.choice([0, 0.1, 0.5])), g.uniform(0.1, 0.8)
        name = f"{shape[0]} x {shape[1]} x {shape[2]}, noise {noise:g}, E {floor:g}, alpha {alpha:.2f}"
        found.append(("additive", name, table(*shape, noise, floor, alpha, seed)))
    return found


def scipy_lowest(found: fits.Fit) -> tuple[float, float]:
    """The lowest objective of SciPy's trust-exact with our derivatives, and its CPU seconds."""
    problem = fits.problem_of(found.law, found.data, found.how)
    weight, y = np.ones((1, found.data.rows)), found.data.log_loss[None]

    def derivatives(theta: np.ndarray, which: int) -> np.ndarray:
        return problem.derivatives(theta[None], weight, y, found.how)[which][0]

    begin, best = time.process_time(), np.inf
    with np.errstate(all="ignore"):
        for start in laws.starts(found.law, STARTS, found.data.log_loss, np.random.default_rng(77)):
            try:
                done = minimize(
                    lambda t: float(problem.value(t[None], weight, y, found.how)[0]),
                    start,
                    jac=lambda t: derivatives(t, 0),
                    hess=lambda t: derivatives(t, 1),
                    method="trust-exact",
                    options={"maxiter": 1000, "gtol": 1e-9},
                )
            except (np.linalg.LinAlgError, ValueError):  # a start that ran out of its domain
                continue
            best = min(best, done.fun)
    return best * found.how.scale(found.data.log_loss), time.process_time() - begin


def seconds() -> list[dict]:
    """CPU seconds of one fit and of the bootstrap on 240 rows, for three levels of noise."""
    rows = []
    for noise in (0.005, 0.02, 0.1):
        data = fits.prepare(table(8, 10, 3, noise, 0.3, 0.35, 0), "loss")
        begin = time.process_time()
        found = fits.fit(fits.load_law("additive"), data)
        middle = time.process_time()
        draws = bootstrap(found, REFITS)
        end = time.process_time()
        rows.append({"noise": noise, "fit": middle - begin, "refits": end - middle, "failures": draws.failures})
    return rows


def main() -> None:
    """Measure and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    timed = seconds()
    print(f"Additive law, log-Huber, 240 rows: CPU seconds\n\n| noise | fit, 64 starts | {REFITS:,} refits | failed |")
    print("|---|---|---|---|")
    for row in timed:
        print(f"| {row['noise']:g} | {row['fit']:.2f} | {row['refits']:.1f} | {row['failures']} |")
    print(f"\nObjective against {STARTS} starts of trust-exact\n")
    print("| table | law | ours / SciPy - 1 | agree | CPU s | SciPy |\n|---|---|---|---|---|---|")
    compared, worst = [], -np.inf
    for law, name, frame in tables(options.tables):
        form = fits.load_law(law)
        begin = time.process_time()
        found = fits.fit(form, fits.prepare(frame, "loss", tuple(dict.fromkeys((*form.inputs, "N", "D")))))
        took = time.process_time() - begin
        lowest, theirs = scipy_lowest(found)
        excess = found.objective / lowest - 1
        worst = max(worst, excess)
        compared.append({"table": name, "law": law, "excess": excess, "cpu": took, "scipy": theirs})
        print(f"| {name} | {law} | {excess:.1e} | {found.agree}/64 | {took:.2f} | {theirs:.1f} |", flush=True)
    print(f"\nLargest excess over SciPy: {worst:.1e}")
    if options.json:
        options.json.write_text(json.dumps({"seconds": timed, "objective": compared}, indent=2))


if __name__ == "__main__":
    main()
