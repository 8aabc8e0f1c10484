"""Difference of two configurations whose runs met the same starts.

Values are matrices (run, start). A start that is hard is hard for both, so starts are resampled once for both sides,
while the training runs of either side are resampled for themselves: the bootstrap of crossed random factors (Owen 2007,
"The pigeonhole bootstrap", section 3), whose variance is at least the true one.

CHOICE: runs of equal training seed could be taken as pairs as well. They are not: networks of different shape share no
weights, and a pairing that explains nothing only loses runs.
"""

import numpy as np

from scaling.errors import UserError
from scaling.robust import DRAWS, LEVEL, Estimate


def difference(
    x: np.ndarray, y: np.ndarray, generator: np.random.Generator, draws: int = DRAWS, level: float = LEVEL
) -> Estimate:
    """Mean of ``x`` less mean of ``y`` with a percentile interval.

    With a single run on a side, that side's training is not resampled: the interval covers episodes alone there.

    Args:
        x: (run, start).
        y: (run, start), of the same starts in the same order.
        generator: where the draws come from.
        draws: number of resamples.
        level: share of the resamples that the interval holds.

    Raises:
        UserError: the starts differ in number, or there is none.

    """
    if x.shape[1] != y.shape[1] or not x.size or not y.size:
        raise UserError(f"paired values need the same starts, at least one: {x.shape[1]} and {y.shape[1]}")
    starts = _shares(x.shape[1], generator, draws)
    drawn = [
        np.einsum("dr,rs,ds->d", _shares(len(side), generator, draws), side, starts, optimize=True) for side in (x, y)
    ]
    low, high = np.quantile(drawn[0] - drawn[1], [(1 - level) / 2, (1 + level) / 2])
    return Estimate(np.asarray(x.mean() - y.mean()), low, high)


def _shares(count: int, generator: np.random.Generator, draws: int) -> np.ndarray:
    """(draw, unit): how large a share of a resample each unit makes up."""
    return generator.multinomial(count, np.full(count, 1 / count), size=draws) / count
