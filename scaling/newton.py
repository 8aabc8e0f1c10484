"""Many small robust fits at once: Newton steps with the exact Hessian in a trust region, within bounds.

Minimises, for each problem m of a batch,

    F(theta) = sum_i v_mi Huber_delta( y_i - log L_i(theta) ) / delta,   Huber_delta(r) = r^2/2 or delta (|r| - delta/2)

whose derivatives follow from those of log L in :mod:`scaling.law`: with psi = Huber'(r) / delta, each times v_mi,

    gradient = -sum psi_i g_i,   Hessian = sum [ (psi'_i + psi_i) g_i g_i^T - psi_i sum_k w_k M_k M_k^T ].

A small delta makes F nearly piecewise linear, so each problem is first solved for larger ones.
"""

import functools
from dataclasses import dataclass

import numpy as np

from scaling import law

STAGES = ((100.0, 25), (10.0, 25), (1.0, 1000))
"""Factor on delta, and how many steps it gets: the first ones only bring each problem near."""
TOLERANCE = 1e-7
"""Largest projected gradient of F, per unit of weight, that counts as zero; psi / delta is at most 1 in it."""


@dataclass(frozen=True, eq=False)
class Solutions:
    """One solution per problem."""

    theta: np.ndarray
    """(problem, parameter)."""
    objective: np.ndarray
    """(problem,): the sum of Huber losses, not divided by delta."""
    gradient_norm: np.ndarray
    """(problem,): largest component of the projected gradient of F per unit of weight."""
    eigenvalues: np.ndarray
    """(problem, 2): smallest and largest of the Hessian of F, in the directions that no bound blocks."""

    @property
    def converged(self) -> np.ndarray:
        """(problem,): the gradient vanishes and no eigenvalue is negative, where no bound blocks.

        A zero eigenvalue belongs to a flat stretch of minima, as between the middle rows of a median.
        """
        small, large = self.eigenvalues.T
        return (self.gradient_norm <= TOLERANCE) & (small >= -1e-9 * np.maximum(large, 1.0))


@dataclass(frozen=True, eq=False)
class Problem:
    """The data common to a batch of fits."""

    design: np.ndarray
    """(term, row, parameter)."""
    log_loss: np.ndarray
    """(row,)."""
    delta: float
    low: np.ndarray
    high: np.ndarray

    def objective(self, theta: np.ndarray, weight: np.ndarray, delta: float) -> np.ndarray:
        """F, (problem,)."""
        residual = np.abs(self.log_loss - law.log_predict(theta, self.design))
        huber = np.where(residual <= delta, 0.5 * residual**2 / delta, residual - 0.5 * delta)
        return (weight * huber).sum(axis=1)

    def derivatives(self, theta: np.ndarray, weight: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
        """Gradient (problem, parameter) and Hessian (problem, parameter, parameter) of F."""
        predicted, w = law.weights(theta, self.design)
        g = law.gradient(w, self.design)
        residual = self.log_loss - predicted
        psi = weight * np.clip(residual / delta, -1.0, 1.0)
        slope = weight * (np.abs(residual) <= delta) / delta
        gradient = -np.matmul(psi[:, None], g)[:, 0]
        hessian = np.matmul(((slope + psi)[..., None] * g).transpose(0, 2, 1), g)
        spread = (psi[:, None] * w).reshape(len(theta), -1) @ self._outer
        return gradient, hessian - spread.reshape(hessian.shape)

    @functools.cached_property
    def _outer(self) -> np.ndarray:
        """M_k M_k^T, (term row, parameter parameter)."""
        terms, rows, parameters = self.design.shape
        return (self.design[..., :, None] * self.design[..., None, :]).reshape(terms * rows, parameters**2)


def solve(problem: Problem, theta: np.ndarray, weight: np.ndarray) -> Solutions:
    """Local minima of F from starts ``theta`` (problem, parameter) with row weights ``weight`` (problem, row)."""
    theta = np.clip(theta, problem.low, problem.high)
    for widening, iterations in STAGES:
        theta = _descend(problem, theta, weight, problem.delta * widening, iterations)
    gradient, hessian = problem.derivatives(theta, weight, problem.delta)
    blocked = _blocked(problem, theta, gradient)
    values = np.linalg.eigvalsh(_restrict(hessian, blocked))
    return Solutions(
        theta=theta,
        objective=problem.objective(theta, weight, problem.delta) * problem.delta,
        gradient_norm=_norm(gradient, blocked, weight),
        eigenvalues=values[:, [0, -1]],
    )


def _descend(problem: Problem, theta: np.ndarray, weight: np.ndarray, delta: float, iterations: int) -> np.ndarray:
    """Newton steps until every problem has converged or stopped improving."""
    theta = theta.copy()
    value = problem.objective(theta, weight, delta)
    radius = np.ones(len(theta))
    active = np.arange(len(theta))
    for _ in range(iterations):
        if not len(active):
            break
        now, mass = theta[active], weight[active]
        gradient, hessian = problem.derivatives(now, mass, delta)
        blocked = _blocked(problem, now, gradient)
        proposal = np.clip(now + _step(gradient, hessian, blocked, radius[active]), problem.low, problem.high)
        proposed = problem.objective(proposal, mass, delta)
        better = proposed < value[active]
        theta[active[better]] = proposal[better]
        value[active[better]] = proposed[better]
        radius[active] = np.minimum(radius[active] * np.where(better, 2.0, 0.25), 4.0)
        finished = (_norm(gradient, blocked, mass) <= TOLERANCE * 1e-3) | (radius[active] < 1e-13)
        active = active[~finished]
    return theta


def _step(gradient: np.ndarray, hessian: np.ndarray, blocked: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Newton's step with the eigenvalues' absolute values, cut to ``radius`` along each eigenvector.

    Cutting each direction by itself lets the step be long along a flat valley and exact across it. Blocked parameters
    stay.
    """
    values, vectors = np.linalg.eigh(_restrict(hessian, blocked))
    along = np.matmul(np.where(blocked, 0.0, gradient)[:, None], vectors)[:, 0]
    length = along / np.maximum(np.abs(values), 1e-12)
    return -np.matmul(vectors, np.clip(length, -radius[:, None], radius[:, None])[..., None])[..., 0]


def _blocked(problem: Problem, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Parameters on a bound that the descent would cross."""
    return ((theta <= problem.low) & (gradient > 0)) | ((theta >= problem.high) & (gradient < 0))


def _restrict(hessian: np.ndarray, blocked: np.ndarray) -> np.ndarray:
    """The Hessian without blocked rows and columns; a free diagonal entry instead keeps the extreme eigenvalues."""
    free = ~blocked
    kept = hessian * (free[:, :, None] & free[:, None, :])
    index = np.arange(hessian.shape[1])
    largest = kept[:, index, index].max(axis=1, keepdims=True, initial=1e-300)
    kept[:, index, index] += np.where(blocked, largest, 0.0)
    return kept


def _norm(gradient: np.ndarray, blocked: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.abs(np.where(blocked, 0.0, gradient)).max(axis=1) / weight.sum(axis=1)
