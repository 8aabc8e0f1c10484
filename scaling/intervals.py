"""How far a fit can be trusted: a bootstrap over what was drawn independently, and intervals from it.

With more than :data:`FEW` clusters, clusters are drawn with replacement (pairs). With fewer, whole clusters of
residuals are multiplied by Webb's six-point weights (Webb 2023, "Reworking wild bootstrap-based inference for
clustered errors"), widened by t's quantile over the normal one. CHOICE: those are jackknife residuals of a
least-squares fit, because a robust fit passes exactly through as many rows as it has parameters, which would then
never be perturbed. How often these intervals cover is measured by ``python -m benchmarks.coverage``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from scaling import newton
from scaling.errors import UserError
from scaling.fit import Fit, problem_of, surface_of
from scaling.law import names
from scaling.objective import LOG_MSE, Objective

DRAWS = 1000
LEVEL = 0.95
FEW = 12
WEBB = np.sqrt([0.5, 1.0, 1.5])
JACKKNIFE = 200
"""Most groups of clusters that are left out one at a time."""
SHARE = 0.3
"""Of the lowest loss: the size at which refits start a term that vanished in the fit."""
PORTION = 2e7
"""Draws times rows that are refitted at once."""
WORK = 4e7
"""Draws times rows up to which the default number of draws is kept; larger tables get fewer draws, but at least 200."""
LINEAR = 200_000
"""From this many rows on, a refit is a single Newton step from the fitted parameters."""

PAIRS, WILD = "pairs", "wild"


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits of one law to resampled tables."""

    fit: Fit
    theta: np.ndarray
    """(draw, parameter), for centred inputs: the refits that converged."""
    failures: int
    """Refits that did not converge; they are left out."""
    method: str
    """What was resampled, and how."""
    jackknife: np.ndarray
    """(group, parameter): refits with one group of clusters left out, for BCa."""

    @property
    def draws(self) -> int:
        """Refits asked for."""
        return len(self.theta) + self.failures

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """(draw,) for each parameter on its natural scale."""
        with np.errstate(over="ignore"):
            return self.fit.law.natural(self.theta, self.fit.data.centre)

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Mean loss of a configuration, (draw, row), at inputs on their natural scale."""
        return self.fit.predict(inputs, self.theta)

    def predict_run(self, inputs: dict[str, np.ndarray], seed: int = 0) -> np.ndarray:
        """Loss of a single new run, (draw, row): the mean with a residual of the table on top."""
        generator = np.random.default_rng(seed)
        residual = self.fit.residuals
        widen = np.sqrt(len(residual) / max(len(residual) - self.theta.shape[1], 1))
        mean = self.predict(inputs)
        return mean * np.exp(widen * generator.choice(residual, mean.shape))

    def intervals(self, level: float = LEVEL) -> dict[str, dict[str, tuple[float, float]]]:
        """Percentile and BCa interval of every parameter on its natural scale."""
        draws, point = self.parameters, self.fit.parameters
        with np.errstate(over="ignore"):
            left_out = self.fit.law.natural(self.jackknife, self.fit.data.centre)
        found: dict[str, dict[str, tuple[float, float]]] = {"percentile": {}, "bca": {}}
        for name, values in draws.items():
            low, high = percentile(values, level)
            found["percentile"][name] = (float(low), float(high))
            found["bca"][name] = bca(values, point[name], left_out[name], level)
        return found


def bootstrap(fitted: Fit, draws: int | None = None, seed: int = 0) -> Bootstrap:
    """Refit after resampling whole clusters of the table; each refit starts from the fitted parameters.

    Args:
        fitted: the fit.
        draws: refits; by default :data:`DRAWS`, fewer on very large tables.
        seed: of the resampling.

    Raises:
        UserError: a single cluster, or fewer than two refits that converge.

    """
    data = fitted.data
    if data.clusters < 2:
        raise UserError(f"all rows belong to one {data.unit}; an interval needs several")
    draws = draws or int(np.clip(WORK / data.rows, 200, DRAWS))
    generator = np.random.default_rng(seed)
    method = PAIRS if data.clusters > FEW else WILD
    said = f"{method} over {data.clusters} {data.unit}s"
    if data.rows >= LINEAR:
        theta, kept, said = _one_step(fitted, draws, generator), np.ones(draws, bool), f"{said}, one Newton step each"
    else:
        theta, kept = (_pairs if method == PAIRS else _wild)(fitted, draws, generator)
    if kept.sum() < 2:
        raise UserError(f"{kept.sum()} of {draws} bootstrap refits converged; this law has no interval on this table")
    return Bootstrap(fitted, theta[kept], int((~kept).sum()), said, _jackknife(fitted))


def _pairs(fitted: Fit, draws: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    clusters = fitted.data.clusters
    share = np.full(clusters, 1 / clusters)
    return _refit(fitted, draws, lambda some: generator.multinomial(clusters, share, size=some.stop - some.start))


def _wild(fitted: Fit, draws: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    data, surface = fitted.data, surface_of(fitted.law, fitted.data)
    mean, residual = surface.value(fitted.theta[None]), _widening(data.clusters) * _jackknife_residuals(fitted)
    begin = _beginning(fitted)
    parts = []
    for some in _slices(draws, data.rows):
        losses = mean + residual * _webb(generator, some.stop - some.start, data.clusters)[:, data.cluster]
        problem = newton.problem(fitted.law, surface, losses, fitted.how)
        start = np.repeat(begin[None], len(losses), axis=0)
        parts.append(newton.solve(problem, start, np.ones(losses.shape), near=True))
    return np.concatenate([part.theta for part in parts]), np.concatenate([part.converged for part in parts])


def _webb(generator: np.random.Generator, draws: int, clusters: int) -> np.ndarray:
    """(draw, cluster) Webb's six-point weights."""
    return generator.choice(np.concatenate([-WEBB, WEBB]), (draws, clusters))


def _widening(clusters: int) -> float:
    """T's quantile over the normal one."""
    return float(stdtrit(clusters - 1, 0.975) / ndtri(0.975))


def _slices(draws: int, rows: int) -> list[slice]:
    """Draws in portions that fit in memory."""
    size = max(1, int(PORTION / rows))
    return [slice(begin, min(begin + size, draws)) for begin in range(0, draws, size)]


def _jackknife_residuals(fitted: Fit) -> np.ndarray:
    """Residuals that each cluster would have had from a least-squares fit to the others, to first order.

    (I - H_gg)^-1 r_g with H the projection on the law's gradients (MacKinnon, Nielsen & Webb 2023, Eq. 16): a cluster
    pulls the fit towards itself, which hides part of its own deviation.
    """
    data, surface = fitted.data, surface_of(fitted.law, fitted.data)
    ones = np.ones((1, data.rows))
    found = newton.solve(problem_of(fitted.law, data, Objective(LOG_MSE)), fitted.theta[None], ones, near=True)
    expansion = surface.expand(found.theta)
    basis, sizes, _ = np.linalg.svd(expansion.gradient[0].T, full_matrices=False)
    basis = basis[:, sizes > 1e-8 * sizes[0]]
    residual = data.log_loss - expansion.value[0]
    wide = residual.copy()
    for number in range(data.clusters):
        rows = data.cluster == number
        left, pulls, _ = np.linalg.svd(basis[rows], full_matrices=False)
        factor = 1 / np.maximum(1 - pulls**2, 1e-2) - 1
        wide[rows] += left @ (factor * (left.T @ residual[rows]))
    return wide


def _one_step(fitted: Fit, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Theta - H^-1 sum_c v_c g_c, with g_c a cluster's gradient and v_c its weight: the refit to first order."""
    data, how, clusters = fitted.data, fitted.how, fitted.data.clusters
    problem = problem_of(fitted.law, data, how)
    found = problem.surface.expand(fitted.theta[None])
    slope, _ = how.derivatives(data.log_loss[None], found.value)
    rows = found.gradient[0] * (slope / how.scale(data.log_loss))
    by_cluster = np.stack([np.bincount(data.cluster, row) for row in rows], axis=1)
    _, hessian = problem.derivatives(fitted.theta[None], np.ones((1, data.rows)), data.log_loss[None], how)
    free = np.flatnonzero((fitted.theta > problem.low) & (fitted.theta < problem.high))
    if clusters > FEW:
        drawn = (np.bincount(generator.integers(0, clusters, clusters), minlength=clusters) - 1 for _ in range(draws))
        pull = np.stack([times @ by_cluster for times in drawn])
    else:
        pull = _widening(clusters) * _webb(generator, draws, clusters) @ by_cluster
    theta = np.repeat(fitted.theta[None], draws, axis=0)
    theta[:, free] -= np.linalg.lstsq(hessian[0][np.ix_(free, free)], pull[:, free].T, rcond=None)[0].T
    return theta


def _jackknife(fitted: Fit) -> np.ndarray:
    data = fitted.data
    if data.rows >= LINEAR:
        return fitted.theta[None]
    groups = min(data.clusters, JACKKNIFE)
    group = np.arange(data.clusters) % groups
    theta, sound = _refit(fitted, groups, lambda some: np.arange(some.start, some.stop)[:, None] != group)
    return theta[sound]


def _refit(fitted: Fit, draws: int, times_of: Callable[[slice], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Refits with each cluster counted so many times, (draw, cluster); a failure is tried once more."""
    problem, cluster = problem_of(fitted.law, fitted.data, fitted.how), fitted.data.cluster
    theta = np.repeat(fitted.theta[None], draws, axis=0)
    kept = np.zeros(draws, bool)
    begin = _beginning(fitted)
    for some in _slices(draws, len(cluster)):
        weight = times_of(some).astype(float)[:, cluster]
        found = newton.solve(problem, np.repeat(begin[None], len(weight), axis=0), weight, near=True)
        theta[some], kept[some] = found.theta, found.converged
        failed = np.flatnonzero(~found.converged)
        if len(failed):
            again = newton.solve(problem, np.repeat(fitted.theta[None], len(failed), axis=0), weight[failed])
            theta[some.start + failed], kept[some.start + failed] = again.theta, again.converged
    return theta, kept


def _beginning(fitted: Fit) -> np.ndarray:
    """Where refits start: the fit, or the best fit in which every term that vanished in it has a share.

    A term is dropped from a refit more easily than it is found again.
    """
    problem = problem_of(fitted.law, fitted.data, fitted.how)
    gone = [int(place) for place in problem.summed if fitted.theta[place] <= problem.low[place]]
    if not gone:
        return fitted.theta
    start = fitted.theta.copy()
    start[gone] = fitted.data.log_loss.min() + np.log(SHARE)
    held = replace(problem, fixed=tuple(gone))
    theta: np.ndarray = newton.solve(held, start[None], np.ones((1, fitted.data.rows)), near=True).theta[0]
    return theta


def percentile(draws: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the percentile interval along the first axis."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def bca(draws: np.ndarray, estimate: float, left_out: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Bias-corrected and accelerated interval (Efron 1987, Eqs. 2.3 and 6.6).

    Args:
        draws: (draw,) bootstrap values.
        estimate: the value at the fit.
        left_out: (group,) the jackknife values.
        level: of the interval.

    """
    below = (np.sum(draws < estimate) + 0.5 * np.sum(draws == estimate)) / len(draws)
    bias = ndtri(np.clip(below, 1 / len(draws), 1 - 1 / len(draws)))
    spread = left_out.mean() - left_out
    scale = float((spread**2).sum())
    acceleration = float((spread**3).sum()) / (6 * scale**1.5) if scale > 0 else 0.0
    tails = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(draws, ndtr(bias + tails / np.maximum(1 - acceleration * tails, 1e-3)))
    return float(low), float(high)


def to_json(draws: Bootstrap) -> dict:
    """Intervals and the state of the bootstrap as plain values."""
    errors = {name: float(np.std(values, ddof=1)) for name, values in draws.parameters.items()}
    state = {"draws": draws.draws, "failures": draws.failures, "method": draws.method, "standard_errors": errors}
    return {
        "intervals": {"level": LEVEL, **draws.intervals()},
        "bootstrap": state,
        "parameters": list(names(draws.fit.law)),
    }
