"""Least deviation with variances that depend on the parameters, by damped Fisher scoring, many starts at once.

Of a curve f(x) = low + rise / (1 + exp((x - mid) / scale)) at uncertain places x, with y ~ N(E f, v) and v = s^2 +
sigma^2 + Var f, the objective is half the sum over runs of (y - E f)^2 / v + log v. Its expected Hessian,

    H = sum 1/v dE dE' + 1/(2 v^2) dv dv'                    (Fisher information of a normal; Seber & Wild 1989, 2.8.8)

replaces the true one. Steps are damped until the objective falls (Levenberg & Marquardt) and end at the bounds.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
STEPS, SMALL, GIVE_UP = 300, 1e-10, 1e12


@dataclass(frozen=True, eq=False)
class Local:
    """The objective around some points."""

    value: np.ndarray
    """(start,)."""
    gradient: np.ndarray
    """(start, parameter)."""
    hessian: np.ndarray
    """(start, parameter, parameter), expected."""

    def replaced(self, other: "Local", where: np.ndarray) -> "Local":
        """The other's values where (start,) is true."""
        return Local(
            np.where(where, other.value, self.value),
            np.where(where[:, None], other.gradient, self.gradient),
            np.where(where[:, None, None], other.hessian, self.hessian),
        )

    def kept(self, which: np.ndarray) -> "Local":
        """Those of which (start,) is true."""
        return Local(self.value[which], self.gradient[which], self.hessian[which])


def minimise(
    places: np.ndarray, y: np.ndarray, error: np.ndarray, starts: np.ndarray, times: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Optima (start, parameter) and their objectives (start,).

    Args:
        places: (run, node) where a run's x may lie, to be weighted by :data:`WEIGHTS`.
        y: (run,).
        error: (run,) known standard deviation of y.
        starts: (start, parameter): low, rise, mid, log scale, log sigma.
        times: (start, run) how often each run counts.
        bounds: (parameter, end).

    """
    theta = np.clip(starts, bounds[:, 0], bounds[:, 1])
    value = np.empty(len(theta))
    busy = np.arange(len(theta))
    here, damping = objective(theta, places, y, error, times), np.ones(len(theta))
    for _ in range(STEPS):
        moved = np.clip(theta[busy] - _step(theta[busy], here, damping, bounds), bounds[:, 0], bounds[:, 1])
        trial = objective(moved, places, y, error, times[busy])
        better = trial.value <= here.value
        done = np.where(better, here.value - trial.value < SMALL, damping > GIVE_UP)
        theta[busy] = np.where(better[:, None], moved, theta[busy])
        here = here.replaced(trial, better)
        value[busy] = here.value
        damping = np.where(better, damping / 3, damping * 4)
        busy, damping, here = busy[~done], damping[~done], here.kept(~done)
        if not len(busy):
            break
    return theta, value


def objective(theta: np.ndarray, places: np.ndarray, y: np.ndarray, error: np.ndarray, times: np.ndarray) -> Local:
    """The objective at each of theta (start, parameter); other arguments as of :func:`minimise`."""
    low, rise, mid, log_scale, log_sigma = theta.T[:, :, None]
    scale, noise = np.exp(log_scale), np.exp(2 * log_sigma)
    z = (mid[..., None] - places) / scale[..., None]
    share = expit(z)
    slope = rise[..., None] * share * (1 - share)
    mean_share = share @ WEIGHTS
    apart = (share - mean_share[..., None]) * WEIGHTS
    variance = error**2 + noise + rise**2 * (apart * share).sum(-1)
    residual = y - low - rise * mean_share
    one, none = np.ones_like(residual), np.zeros_like(residual)
    by_mean = np.stack([one, mean_share, (slope @ WEIGHTS) / scale, -(slope * z) @ WEIGHTS, none], axis=1)
    shifts = [(apart * part).sum(-1) for part in (share, slope, slope * z)]
    by_variance = 2 * np.stack(
        [none, rise * shifts[0], rise * shifts[1] / scale, -rise * shifts[2], noise * one], axis=1
    )
    value = 0.5 * (times * (residual**2 / variance + np.log(variance))).sum(-1)
    pull = times * 0.5 * (1 / variance - residual**2 / variance**2)
    gradient = (by_variance * pull[:, None] - by_mean * (times * residual / variance)[:, None]).sum(-1)
    hessian = _outer(by_mean, times / variance) + _outer(by_variance, times / (2 * variance**2))
    return Local(value, gradient, hessian)


def _outer(parts: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sum over runs of products of the derivatives, (start, parameter, parameter)."""
    return np.asarray((parts * weight[:, None]) @ parts.transpose(0, 2, 1))


def _step(theta: np.ndarray, here: Local, damping: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(start, parameter) damped step; parameters that would leave their bounds stand still."""
    gradient, hessian = here.gradient, here.hessian
    stuck = ((theta <= bounds[:, 0]) & (gradient > 0)) | ((theta >= bounds[:, 1]) & (gradient < 0))
    free = ~stuck
    diagonal = np.einsum("spp->sp", hessian)
    ridge = damping[:, None] * (diagonal + 1e-9) + 1e-12
    system = hessian * (free[:, :, None] & free[:, None, :])
    system = system + np.eye(theta.shape[1]) * np.where(free, ridge, 1.0)[:, None, :]
    return np.asarray(np.linalg.solve(system, (gradient * free)[..., None])[..., 0])
