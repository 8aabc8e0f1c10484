"""Statistics of few runs: interquartile mean, profiles, probability of improvement, stratified bootstrap intervals.

After Agarwal et al. 2021, section 4, and their package rliable. Scores are a matrix (run, task); every statistic also
takes leading axes, (..., run, task), so that all resamples are worked on at once.

DEVIATION: rliable draws from NumPy's global generator. Here the generator is passed in and asked in the same order:
``RandomState(s)`` gives the intervals that rliable gives after ``np.random.seed(s)``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scaling.errors import UserError

DRAWS = 2000
LEVEL = 0.95
BLOCK = 2**20
"""Numbers that are worked on at once."""

Generator = np.random.Generator | np.random.RandomState
Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic with its percentile interval; arrays where the statistic is one."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over runs and tasks, (...,)."""
    return np.asarray(scores.mean((-2, -1)))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of all runs of all tasks, (...,).

    IQM = mean of x_(k+1), ..., x_(n-k),  k = floor(n / 4)      (Agarwal et al. 2021, section 4.3)
    """
    together = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = together.shape[-1] // 4
    return np.asarray(together[..., cut : together.shape[-1] - cut].mean(-1))


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs, averaged over tasks, that score above each threshold, (..., threshold).

    F(tau) = 1/M sum_m 1/N sum_n 1[x_nm > tau]                  (Agarwal et al. 2021, Eq. 1)
    """
    together = scores.reshape(*scores.shape[:-2], -1, 1)
    return np.asarray((together > thresholds).mean(-2))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Probability that a run of ``x`` scores above a run of ``y`` on the same task, averaged over tasks, (...,).

    P(X > Y) = 1/M sum_m 1/(N K) sum_i,j S(x_im, y_jm),  S = 1, 1/2, 0 for above, equal, below
    (Agarwal et al. 2021, section 4.3)
    """
    difference = x[..., :, None, :] - y[..., None, :, :]
    return np.asarray((1 + np.sign(difference)).mean((-3, -2, -1)) / 2)


def bootstrap(
    statistic: Statistic, *scores: np.ndarray, generator: Generator, draws: int = DRAWS, level: float = LEVEL
) -> Estimate:
    """The statistic with a percentile interval; runs are drawn with replacement, within every task for itself.

    Args:
        statistic: of one matrix (..., run, task) per argument, to (...,) or (..., value).
        scores: matrices (run, task), resampled independently of each other.
        generator: where the draws come from.
        draws: number of resamples.
        level: share of the resamples that the interval holds.

    Raises:
        UserError: a matrix is not one, is empty, or holds what is no finite number; too few draws.

    """
    _check(scores, draws)
    values = _resampled(statistic, scores, indices(scores, generator, draws))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Estimate(statistic(*scores), low, high)


def bootstrap_ref(
    statistic: Statistic, *scores: np.ndarray, generator: Generator, draws: int = DRAWS, level: float = LEVEL
) -> Estimate:
    """The same, one resample after the other."""
    values = []
    for _ in range(draws):
        drawn = [generator.choice(matrix.shape[0], matrix.shape) for matrix in scores]
        values.append(statistic(*(np.take_along_axis(x, i, 0) for x, i in zip(scores, drawn, strict=True))))
    low, high = np.percentile(np.array(values), [50 * (1 - level), 50 * (1 + level)], axis=0)
    return Estimate(statistic(*scores), low, high)


def indices(scores: Sequence[np.ndarray], generator: Generator, draws: int) -> list[np.ndarray]:
    """Which run takes each place, one array (draw, run, task) per matrix; matrices take turns at the generator."""
    drawn = [[generator.choice(matrix.shape[0], matrix.shape) for matrix in scores] for _ in range(draws)]
    return [np.stack(of_matrix) for of_matrix in zip(*drawn, strict=True)]


def _resampled(statistic: Statistic, scores: Sequence[np.ndarray], drawn: list[np.ndarray]) -> np.ndarray:
    """The statistic of every draw, in blocks that fit into memory."""
    draws = len(drawn[0])
    pieces = np.array_split(np.arange(draws), -(-draws * int(np.prod([len(x) for x in scores])) // BLOCK))
    return np.concatenate(
        [
            statistic(*(np.take_along_axis(x[None], i[piece], 1) for x, i in zip(scores, drawn, strict=True)))
            for piece in pieces
        ]
    )


def _check(scores: Sequence[np.ndarray], draws: int) -> None:
    if draws < 2:
        raise UserError(f"an interval needs at least 2 resamples: {draws}")
    for matrix in scores:
        if matrix.ndim != 2 or not matrix.size:
            raise UserError(f"scores must be a matrix of at least one run and one task: shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise UserError(f"scores must be finite numbers: {matrix[~np.isfinite(matrix)][0]}")
