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

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

from scaling.agreement import losses
from scaling.errors import UserError

PARAMETERS = ("low", "rise", "mid", "log_scale", "log_sigma")
STARTS, REFITS = 24, 200
FEWEST = 6
"""Runs: one more than there are parameters."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
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
        return (centre[:, None] + spread[:, None] * NODES)[self.cluster]


@dataclass(frozen=True, eq=False)
class Link:
    """The fitted curve."""

    theta: np.ndarray
    points: Points
    objective: float
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
        runs: a row per run: run_id, configuration, value and the loss.
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
    cluster = runs.groupby("configuration", sort=False).ngroup().to_numpy()
    spread = played.groupby("run_id")["value"].agg(["var", "count"]).loc[runs["run_id"]]
    error = np.sqrt((spread["var"].fillna(0.0) / spread["count"]).to_numpy())
    return Points(np.log(raw), y, within(np.log(raw), cluster), error, cluster)


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


def objective(theta: np.ndarray, given: Points) -> tuple[float, np.ndarray]:
    """Half the sum of squared deviations over their variances plus half the log-determinant, and its gradient."""
    _, rise, mid, log_scale, log_sigma = theta
    z = (mid - given.true) / np.exp(log_scale)
    share = expit(z)
    slope = share * (1 - share)
    of_node = np.stack([np.zeros_like(z), share, rise * slope / np.exp(log_scale), -rise * slope * z])
    mean_share, mean_of = share @ WEIGHTS, of_node @ WEIGHTS
    variance = given.y_error**2 + np.exp(2 * log_sigma) + rise**2 * ((share - mean_share[:, None]) ** 2 @ WEIGHTS)
    residual = given.y - theta[0] - rise * mean_share
    by_mean = np.stack([np.ones_like(residual), *mean_of[1:], np.zeros_like(residual)])
    by_variance = 2 * rise * (((share - mean_share[:, None]) * of_node) @ WEIGHTS)
    by_variance = np.vstack([by_variance, np.full_like(residual, 2 * np.exp(2 * log_sigma))])
    value = 0.5 * float((residual**2 / variance + np.log(variance)).sum())
    pull = 0.5 * (1 / variance - residual**2 / variance**2)
    return value, (by_variance * pull - by_mean * residual / variance).sum(-1)


def fit(given: Points, generator: np.random.Generator, starts: int = STARTS) -> Link:
    """The curve of lowest objective over many starts, with what to beware of."""
    unit = _Unit(given)
    tried = [unit.solve(start) for start in unit.starts(generator, starts)]
    values = np.array([value for value, _ in tried])
    best = int(np.argmin(values))
    agree = int((values < values[best] + AGREE).sum())
    theta = tried[best][1]
    flags = unit.at_bound(theta) + (() if agree > 1 else ("one start alone found this optimum",))
    if not given.x_error:
        flags += ("no configuration was repeated: the loss is taken as exact",)
    return Link(unit.out(theta), given, float(values[best]), agree, starts, flags)


def bootstrap(found: Link, generator: np.random.Generator, draws: int = REFITS) -> Link:
    """The curve with refits of resampled configurations, each from the curve's own optimum and one other start."""
    given = found.points
    members = [np.flatnonzero(given.cluster == number) for number in range(given.cluster.max() + 1)]
    refits = []
    for _ in range(draws):
        chosen = generator.integers(len(members), size=len(members))
        rows = np.concatenate([members[number] for number in chosen])
        cluster = np.repeat(np.arange(len(chosen)), [len(members[number]) for number in chosen])
        if np.ptp(given.x[rows]) > 0 and np.ptp(given.y[rows]) > 0:
            drawn = Points(given.x[rows], given.y[rows], given.x_error, given.y_error[rows], cluster)
            unit = _Unit(drawn)
            ends = [unit.solve(start) for start in (unit.into(found.theta), unit.starts(generator, 1)[0])]
            refits.append(unit.out(min(ends, key=lambda end: end[0])[1]))
    return Link(
        found.theta, given, found.objective, found.agree, found.starts, found.flags, np.array(refits).reshape(-1, 5)
    )


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

    def solve(self, start: np.ndarray) -> tuple[float, np.ndarray]:
        options = {"maxiter": 500, "ftol": 1e-13, "gtol": 1e-8}
        start = np.clip(start, self.bounds[:, 0], self.bounds[:, 1])
        done = minimize(
            objective, start, (self.points,), "L-BFGS-B", jac=True, bounds=self.bounds.tolist(), options=options
        )
        return float(done.fun), done.x

    def out(self, theta: np.ndarray) -> np.ndarray:
        """In the units of the table."""
        low, rise, mid, log_scale, log_sigma = theta
        scale, sigma = log_scale + np.log(self.x1), log_sigma + np.log(self.y1)
        return np.array([self.y0 + self.y1 * low, self.y1 * rise, self.x0 + self.x1 * mid, scale, sigma])

    def into(self, theta: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`out`."""
        low, rise, mid, log_scale, log_sigma = theta
        scale, sigma = log_scale - np.log(self.x1), log_sigma - np.log(self.y1)
        return np.array([(low - self.y0) / self.y1, rise / self.y1, (mid - self.x0) / self.x1, scale, sigma])

    def at_bound(self, theta: np.ndarray) -> tuple[str, ...]:
        """Names of the parameters that stand at an end of what is allowed."""
        width = np.ptp(self.bounds, axis=1)
        ends = np.isclose(theta[:, None], self.bounds, rtol=0, atol=1e-6 * width[:, None]).any(axis=1)
        return tuple(f"{name} is at a bound" for name, end in zip(PARAMETERS, ends, strict=True) if end)
