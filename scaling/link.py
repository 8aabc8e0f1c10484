"""A decreasing curve from loss to return, with errors in both.

    f(x) = low + (high - low) / (1 + exp((x - mid) / scale)),   x = log loss

Runs of one configuration differ in both; a curve through their scatter that takes the loss as exact is too flat
(attenuation; Fuller 1987, section 1.1). The mean x of a configuration's k runs has the error variance s^2 = s_x^2 / k,
and what it says of the true loss x* depends on how the means are distributed, with density p:

    E x* = x + s^2 (log p)'(x),   Var x* = s^2 (1 + s^2 (log p)''(x))                     (Efron 2011, Eq. 2.8)

The return of a run then has the mean E f(x*) and the effective variance

    v = s_y^2 + sigma^2 + Var f(x*)         (to first order s_y^2 + sigma^2 + f'(x)^2 Var x*; Orear 1982, Eq. 3)

Minimised is the sum over runs of (y - E f)^2 / v + log v. Mean and variance are Gauss-Hermite sums over a normal x*;
p is a kernel estimate with the bandwidth of Silverman 1986, Eq. 3.31.

DEVIATION: Orear takes f at the observed loss. With the log-determinant, which sigma needs in order to be estimated,
that is biased, for Var f falls with the slope; with a normal p (shrinkage towards the mean) it is biased where losses
are spread evenly, as over a grid of sizes.

*Assumed*: what differs between runs of one configuration is error, not a better network.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.special import expit

from scaling import scoring
from scaling.agreement import losses
from scaling.errors import UserError

PARAMETERS = ("low", "rise", "mid", "log_scale", "log_sigma")
OF_THE_FALL = 3
"""Parameters that a level line does without."""
STARTS, REFITS = 24, 200
FEWEST = 6
"""Runs: one more than there are parameters."""
AT_BOUND = {
    ("low", 0): "the return at high losses is not seen",
    ("low", 1): "the return does not fall with the loss",
    ("rise", 0): "the return does not fall with the loss",
    ("rise", 1): "the return at low losses is not seen",
    ("mid", 0): "the fall lies below all losses",
    ("mid", 1): "the fall lies above all losses",
    ("log_scale", 0): "the fall is a step between neighbouring losses",
    ("log_scale", 1): "the fall has no plateaus: it is a straight line",
    ("log_sigma", 0): "the curve leaves no scatter",
    ("log_sigma", 1): "the scatter is larger than that of the returns",
}
"""What it means when a parameter stands at the lower or upper end of what is allowed."""
BORROWED = 5
SURE = 0.2
"""Share of the error variance that is kept at least, however crowded the losses are."""
AGREE = 1e-6
"""Difference of the objective, summed over runs, within which two starts found the same optimum."""
FLOOR = 0.01
"""Smallest scatter, in standard deviations of the return; without it, a curve through a point is infinitely good."""


@dataclass(frozen=True, eq=False)
class Points:
    """Losses and returns of runs, with what is known of their errors."""

    x: np.ndarray
    """(run,) log loss."""
    y: np.ndarray
    """(run,) mean return."""
    x_error: float
    """Standard deviation of log loss between runs of one configuration; 0 where none was repeated."""
    y_error: np.ndarray
    """(run,) standard error of the mean return over a run's episodes."""
    cluster: np.ndarray
    """(run,) number of the configuration."""

    @cached_property
    def true(self) -> np.ndarray:
        """(run, node) places at which the true log loss of a run's configuration may lie."""
        count = np.bincount(self.cluster)
        mean = np.bincount(self.cluster, self.x) / count
        variance = self.x_error**2 / count
        first, second = log_density(mean)
        centre = mean + variance * first
        spread = np.sqrt(variance * np.clip(1 + variance * second, SURE, 1))
        return (centre[:, None] + spread[:, None] * scoring.NODES)[self.cluster]


@dataclass(frozen=True, eq=False)
class Link:
    """The fitted curve."""

    theta: np.ndarray
    points: Points
    objective: float
    over_flat: float
    """AIC of a level line less that of the curve: how much the loss explains."""
    agree: int
    """Starts that found this optimum, of those tried."""
    starts: int
    flags: tuple[str, ...]
    refits: np.ndarray = field(default_factory=lambda: np.empty((0, len(PARAMETERS))))
    """(draw, parameter) of resampled configurations."""

    def predict(self, loss: np.ndarray) -> np.ndarray:
        """Return at a true loss."""
        return curve(self.theta, np.log(loss))

    def band(self, loss: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Percentile interval of the curve at each loss."""
        values = np.array([curve(theta, np.log(loss)) for theta in self.refits])
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    @property
    def parameters(self) -> dict[str, float]:
        """In the units of the return, and of log loss for mid and scale."""
        low, rise, mid, log_scale, log_sigma = map(float, self.theta)
        scale, sigma = float(np.exp(log_scale)), float(np.exp(log_sigma))
        return {"low": low, "high": low + rise, "mid": mid, "scale": scale, "sigma": sigma}


def points(runs: pd.DataFrame, played: pd.DataFrame, loss: str) -> Points:
    """Losses, returns and their errors.

    Args:
        runs: a row per run: run_id, cell, value and the loss.
        played: a row per episode: run_id and value.
        loss: column.

    Raises:
        UserError: too few runs, a constant loss, or one that has no logarithm.

    """
    raw, y = losses(runs, loss)
    if len(y) < FEWEST:
        raise UserError(f"{len(y)} runs with returns; the link has {len(PARAMETERS)} parameters and needs {FEWEST}")
    if (raw <= 0).any():
        raise UserError(f"column {loss!r} must be positive to take its logarithm: {raw.min():g}")
    cluster = runs.groupby("cell", sort=False).ngroup().to_numpy()
    error = standard_errors(played, runs["run_id"])
    return Points(np.log(raw), y, within(np.log(raw), cluster), error, cluster)


def standard_errors(played: pd.DataFrame, run_ids: pd.Series) -> np.ndarray:
    """(run,) standard errors of the runs' means over their episodes.

    A run's variance is drawn towards that of all runs with the weight of :data:`BORROWED` episodes: ten successes in
    ten episodes are no proof of an eleventh.
    """
    spread = played.groupby("run_id")["value"].agg(["var", "count"]).loc[run_ids]
    own, free = spread["var"].fillna(0.0).to_numpy(), spread["count"].to_numpy() - 1.0
    pooled = (own * free).sum() / max(free.sum(), 1.0)
    return np.asarray(np.sqrt((own * free + pooled * BORROWED) / (free + BORROWED) / (free + 1)))


def within(x: np.ndarray, cluster: np.ndarray) -> float:
    """Standard deviation between runs of one configuration, pooled; 0 where none was repeated."""
    counts = np.bincount(cluster)
    deviation = x - (np.bincount(cluster, x) / counts)[cluster]
    free = len(x) - len(counts)
    return float(np.sqrt((deviation**2).sum() / free)) if free else 0.0


def log_density(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative of the log of a kernel estimate of the density of x, at each x, (point,)."""
    quartiles = np.quantile(x, [0.25, 0.75])
    spreads = [value for value in (x.std(), np.ptp(quartiles) / 1.34) if value > 0]
    width = 0.9 * min(spreads, default=1.0) * len(x) ** -0.2
    z = (x[:, None] - x) / width
    weight = np.exp(-(z**2) / 2)
    weight /= weight.sum(1, keepdims=True)
    first = -(weight * z).sum(1) / width
    return first, (weight * (z**2 - 1)).sum(1) / width**2 - first**2


def curve(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return at a true log loss."""
    low, rise, mid, log_scale, _ = theta
    return np.asarray(low + rise * expit((mid - x) / np.exp(log_scale)))


def fit(given: Points, generator: np.random.Generator, starts: int = STARTS) -> Link:
    """The curve of lowest objective over many starts, with what to beware of."""
    unit = _Unit(given)
    ends, values = unit.solve(unit.starts(generator, starts), np.ones((starts, len(given.y))))
    best = int(np.argmin(values))
    agree, theta = int((values < values[best] + AGREE).sum()), ends[best]
    flags = unit.at_bound(theta) + (() if agree > 1 else ("one start alone found this optimum",))
    over_flat = 2 * (unit.flat() - float(values[best])) - 2 * OF_THE_FALL
    if over_flat <= 0:
        flags += ("a level line describes the returns as well (AIC)",)
    if not given.x_error:
        flags += ("no configuration was repeated: the loss is taken as exact",)
    return Link(unit.out(theta), given, float(values[best]), over_flat, agree, starts, flags)


def bootstrap(found: Link, generator: np.random.Generator, draws: int = REFITS) -> Link:
    """The curve with refits of resampled configurations, each from the curve's own optimum and from one other start.

    What the losses say of the true losses is taken over from the whole table.
    """
    unit = _Unit(found.points)
    count = int(found.points.cluster.max()) + 1
    times = generator.multinomial(count, np.full(count, 1 / count), size=draws)[:, found.points.cluster].astype(float)
    own = np.repeat(unit.into(found.theta)[None], draws, axis=0)
    ends = [unit.solve(starts, times) for starts in (own, unit.starts(generator, draws))]
    better = (ends[0][1] <= ends[1][1])[:, None]
    return dataclasses.replace(found, refits=unit.out(np.where(better, ends[0][0], ends[1][0])))


class _Unit:
    """The same problem with log loss and return of mean 0 and standard deviation 1."""

    def __init__(self, given: Points) -> None:
        self.x0, self.x1 = given.x.mean(), given.x.std()
        self.y0, self.y1 = given.y.mean(), given.y.std()
        self.points = Points(
            (given.x - self.x0) / self.x1,
            (given.y - self.y0) / self.y1,
            given.x_error / self.x1,
            given.y_error / self.y1,
            given.cluster,
        )
        x, y = self.points.x, self.points.y
        low, high, width = float(y.min()), float(y.max()), float(np.ptp(y))
        self.bounds = np.array(
            [
                (low - width, high),
                (0.0, 3 * width),
                (float(x.min()) - np.ptp(x), float(x.max()) + np.ptp(x)),
                (np.log(0.02), np.log(10.0)),
                (np.log(FLOOR), np.log(3.0)),
            ]
        )

    def starts(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.uniform(self.bounds[:, 0], self.bounds[:, 1], size=(count, len(PARAMETERS)))

    def solve(self, starts: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(start, parameter) optima and (start,) objectives."""
        return scoring.minimise(self.points.true, self.points.y, self.points.y_error, starts, times, self.bounds)

    def out(self, theta: np.ndarray) -> np.ndarray:
        """Parameters (..., parameter) in the units of the table."""
        low, rise, mid, log_scale, log_sigma = np.moveaxis(theta, -1, 0)
        scale, sigma = log_scale + np.log(self.x1), log_sigma + np.log(self.y1)
        return np.stack([self.y0 + self.y1 * low, self.y1 * rise, self.x0 + self.x1 * mid, scale, sigma], axis=-1)

    def into(self, theta: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`out`, for one curve."""
        low, rise, mid, log_scale, log_sigma = theta
        scale, sigma = log_scale - np.log(self.x1), log_sigma - np.log(self.y1)
        return np.array([(low - self.y0) / self.y1, rise / self.y1, (mid - self.x0) / self.x1, scale, sigma])

    def at_bound(self, theta: np.ndarray) -> tuple[str, ...]:
        """What it means that parameters stand at an end of what is allowed."""
        width = np.ptp(self.bounds, axis=1)
        ends = np.isclose(theta[:, None], self.bounds, rtol=0, atol=1e-6 * width[:, None])
        return tuple(AT_BOUND[PARAMETERS[row], int(end)] for row, end in np.argwhere(ends))

    def flat(self) -> float:
        """Objective of the best level line."""
        level = self.bounds.copy()
        level[1] = 0.0
        start, once = np.zeros((1, len(PARAMETERS))), np.ones((1, len(self.points.y)))
        return float(scoring.minimise(self.points.true, self.points.y, self.points.y_error, start, once, level)[1][0])
