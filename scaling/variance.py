"""How much of the noise comes from the seed, and how much from the random subset of the data.

Residuals enter only as deviations from their cell's mean, so that a law that is wrong biases nothing. Within a cell of
k runs, with seed variance s^2 and subset variance u^2, such a deviation has expectation (s^2 + u^2)(1 - 1/k), and the
product of two deviations of different cells on the same subset u^2 (1 - 1/k): a pooled method of moments (Searle,
Casella & McCulloch 1992, chapter 5, for unbalanced tables).
"""

from dataclasses import dataclass

import numpy as np

from scaling.data import Data


@dataclass(frozen=True)
class Components:
    """Standard deviations of log loss; nothing where the table cannot tell."""

    seed: float | None
    """Between runs that differ in their seed alone."""
    subset: float | None
    """Between random subsets of the data of one size."""


def components(data: Data, residual: np.ndarray) -> Components:
    """Variance components of residuals (row,) of log loss."""
    counts = np.bincount(data.cell)
    size = counts[data.cell]
    repeated = size > 1
    if not repeated.any():
        return Components(None, None)
    deviation = residual - (np.bincount(data.cell, residual) / counts)[data.cell]
    shrink = 1 - 1 / size
    total = float((deviation**2)[repeated].sum() / shrink[repeated].sum())
    shared = _shared(data, deviation, shrink, repeated)
    if shared is None:
        return Components(float(np.sqrt(total)), None)
    drawn = repeated & (data.frame["fraction"] < 1).to_numpy()
    between = min(max(shared, 0.0), total)
    seed = total - between * float(shrink[drawn].sum() / shrink[repeated].sum())  # all data have no subset
    return Components(float(np.sqrt(seed)), float(np.sqrt(between)))


def _shared(data: Data, deviation: np.ndarray, shrink: np.ndarray, repeated: np.ndarray) -> float | None:
    """Mean product of deviations on the same subset in different cells."""
    frame = data.frame
    if not {"fraction", "draw"} <= set(frame.columns) or frame["draw"].nunique() < 2:
        return None
    drawn = repeated & (frame["fraction"] < 1).to_numpy()
    if not drawn.any():
        return None
    subset = frame.groupby(["fraction", "draw"], sort=False).ngroup().to_numpy()[drawn]
    total, squares = np.bincount(subset, deviation[drawn]), np.bincount(subset, deviation[drawn] ** 2)
    root = np.sqrt(shrink[drawn])
    pairs = np.bincount(subset, root) ** 2 - np.bincount(subset, root**2)
    return float((total**2 - squares).sum() / pairs.sum()) if pairs.sum() > 0 else None
