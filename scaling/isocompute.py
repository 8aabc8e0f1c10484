"""The compute-optimal model size without a law: minima of the loss along N at equal compute.

Hoffmann et al. 2022, section 3.2 (approach 2). CHOICE: a cubic in log N instead of their parabola, whose intervals
cover too little.
"""

from dataclasses import dataclass

import numpy as np

from scaling.data import Data
from scaling.errors import UserError
from scaling.intervals import percentile

SIZES = 5
"""Fewest model sizes at one compute budget: one more than a cubic has coefficients."""
BUDGETS = 3
DIGITS = 1
"""Compute that agrees in this many decimals of its base-10 logarithm counts as equal."""
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class IsoCompute:
    """Optima by budget, and the power law through them, N_opt proportional to C^exponent."""

    budget: np.ndarray
    """(budget,) compute."""
    optimum: np.ndarray
    """(budget,) model size of the lowest loss."""
    low: np.ndarray
    high: np.ndarray
    exponent: float
    interval: tuple[float, float]


def iso_compute(data: Data, seed: int = 0) -> IsoCompute:
    """Optima at every compute budget that the table holds enough sizes for; compute is C, or N D without it.

    Raises:
        UserError: fewer than three budgets with five sizes each and a minimum between them.

    """
    if not {"N", "D"} <= set(data.log_x):
        raise UserError("optima at equal compute need N and D")
    known = "C" in data.frame and bool((data.frame["C"] > 0).all())
    log_c = np.log(data.frame["C"].to_numpy(float)) if known else _log(data, "N") + _log(data, "D")
    group = np.round(log_c / np.log(10), DIGITS)
    generator = np.random.default_rng(seed)
    clusters = data.clusters
    times = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=DRAWS)[:, data.cluster]
    found = []
    for value in np.unique(group):
        rows = group == value
        if len(np.unique(data.log_x["N"][rows])) < SIZES:
            continue
        x, y = _log(data, "N")[rows], data.log_loss[rows]
        best = _minimum(x, y, np.ones(len(x)))
        drawn = np.array([_minimum(x, y, weight) for weight in times[:, rows]])
        if np.isfinite(best) and np.isfinite(drawn).mean() > 0.5:
            found.append((log_c[rows].mean(), best, drawn))
    if len(found) < BUDGETS:
        raise UserError(
            f"{len(found)} compute budget(s) with {SIZES} model sizes and a lowest loss between them; "
            f"optima at equal compute need {BUDGETS}"
        )
    budgets, optima, drawn = (np.array(values) for values in zip(*found, strict=True))
    slopes = [np.polyfit(budgets[ok], column[ok], 1)[0] for column in drawn.T if (ok := np.isfinite(column)).sum() > 1]
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=1)
    ends = percentile(np.array(slopes))
    slope = float(np.polyfit(budgets, optima, 1)[0])
    return IsoCompute(
        np.exp(budgets), np.exp(optima), np.exp(low), np.exp(high), slope, (float(ends[0]), float(ends[1]))
    )


def _log(data: Data, name: str) -> np.ndarray:
    return data.log_x[name] + data.centre[name]


def _minimum(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """Lowest point of a weighted cubic between the outer sizes; not a number where it lies on the edge."""
    if len(np.unique(x[weight > 0])) < SIZES - 1:
        return np.nan
    centre = x.mean()
    cubic = np.polyfit(x - centre, y, 3, w=np.sqrt(weight))
    grid = np.linspace(x.min(), x.max(), 401)
    lowest = int(np.argmin(np.polyval(cubic, grid - centre)))
    return float(grid[lowest]) if 0 < lowest < len(grid) - 1 else np.nan
