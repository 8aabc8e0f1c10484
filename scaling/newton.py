"""Many small fits at once: Newton steps with the exact Hessian in a trust region, within bounds.

Minimises, for each problem m of a batch, F(theta) = sum_i v_mi rho(y_i, f_i(theta)) / scale, where f is a law's log
loss and rho a row's objective:

    gradient = sum v rho' g,   Hessian = sum v (rho'' g g^T + rho' Hessian of f).

A small delta makes a robust F nearly piecewise linear, so each problem is first solved for larger ones. A step is
taken in the *relative change* of each summed coefficient, u = dE/E, not in its logarithm: the Hessian then loses the
gradient on its diagonal, and theta moves by log(1 + u). The loss is linear in those coefficients, which straightens
the curved valleys in which log E runs off to zero.
"""

from dataclasses import dataclass

import numpy as np

from scaling.law import Law, Surface, bounds, names
from scaling.objective import LOG_HUBER, Objective

STAGES = ((100.0, 25, 1e-3), (30.0, 10, 1e-3), (10.0, 10, 1e-3), (3.0, 10, 1e-3))
"""Factor on delta, how many steps it gets, and the gradient that suffices: these only bring each problem near."""
STEPS, FINEST = 400, 1e-10
"""Of the last stage, at delta itself."""
PATIENCE, CRAWL = 50, 1e-7
"""A problem that gains less than this share of F in so many steps creeps along a flat valley and is given up."""
TOLERANCE = 1e-7
"""Largest projected gradient of F, per unit of weight, that counts as zero; rho' / scale is at most 1 when robust."""
SMALL, VANISHED, REVIVED = 1e-3, 1e-11, 1e-5
"""Largest shares of the loss: a small term is tried at zero, a vanished one once more with the share of the third."""
WORTH = 1e-6
"""A direction that promises less than this share of the best one's gain is left alone for the step."""
CHUNK_BYTES = 4e6
"""Size of one (problem, parameter, row) array; a few of them should fit in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Solutions:
    """One solution per problem."""

    theta: np.ndarray
    """(problem, parameter)."""
    objective: np.ndarray
    """(problem,): the sum over rows, not scaled."""
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

    surface: Surface
    log_loss: np.ndarray
    """(row,), or (problem, row) where every problem has losses of its own."""
    objective: Objective
    low: np.ndarray
    high: np.ndarray
    summed: np.ndarray
    """Places of the coefficients whose terms add up to the loss."""
    fixed: tuple[int, ...] = ()
    """Places of parameters that stay where they start, for profiles."""

    def value(self, theta: np.ndarray, weight: np.ndarray, y: np.ndarray, objective: Objective) -> np.ndarray:
        """F, (problem,)."""
        rows = objective.value(y, self.surface.value(theta))
        return np.einsum("pn,pn->p", weight, rows) / objective.scale(self.log_loss)

    def derivatives(
        self, theta: np.ndarray, weight: np.ndarray, y: np.ndarray, objective: Objective
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient (problem, parameter) and Hessian (problem, parameter, parameter) of F."""
        found = self.surface.expand(theta)
        slope, curve = objective.derivatives(y, found.value)
        v = weight / objective.scale(self.log_loss)
        slope, curve = v * slope, v * curve
        return np.matmul(found.gradient, slope[:, :, None])[:, :, 0], found.contract(curve, slope)


def problem(law: Law, surface: Surface, log_loss: np.ndarray, objective: Objective) -> Problem:
    """The problem of fitting ``law``, bound as ``surface``, to log losses."""
    low, high = bounds(law, log_loss)
    place = {name: index for index, name in enumerate(names(law))}
    summed = np.array([place[f"log_{name}"] for name in law.summands], int)
    return Problem(surface, log_loss, objective, low, high, summed)


def solve(given: Problem, theta: np.ndarray, weight: np.ndarray, near: bool = False, steps: int = STEPS) -> Solutions:
    """Local minima of F from starts ``theta`` (problem, parameter) with row weights ``weight`` (problem, row).

    Args:
        given: the data.
        theta: where each problem starts.
        weight: of each row in each problem.
        near: the starts are close to the minima, so that the widest stages can be left out.
        steps: most steps of the last stage.

    """
    count = max(1, min(256, int(CHUNK_BYTES / 8 / weight.shape[1] / theta.shape[1])))
    parts = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a step too far; its objective is not lower
        for begin in range(0, len(theta), count):
            some = slice(begin, begin + count)
            y = given.log_loss[some] if given.log_loss.ndim == 2 else given.log_loss[None]
            parts.append(_solve(given, np.clip(theta[some], given.low, given.high), weight[some], y, near, steps))
    return Solutions(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _solve(
    given: Problem, theta: np.ndarray, weight: np.ndarray, y: np.ndarray, near: bool, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    stages = STAGES if given.objective.kind == LOG_HUBER else ()
    for factor, some, enough in stages[2:] if near else stages:
        theta, _ = _descend(given, theta, weight, y, given.objective.widened(factor), some, enough)
    theta, value = _descend(given, theta, weight, y, given.objective, steps, FINEST)
    theta, value = _settle(given, theta, value, weight, y, steps)
    idle = np.abs(given.surface.expand(theta).gradient).max(axis=2) < VANISHED
    summed = np.isin(np.arange(theta.shape[1]), given.summed)
    theta = np.where(idle & summed, given.low, theta)
    gradient, hessian = given.derivatives(theta, weight, y, given.objective)
    blocked = _blocked(given, theta, gradient) | idle
    extremes = np.linalg.eigvalsh(_restrict(hessian, blocked))[:, [0, -1]]
    return theta, value * given.objective.scale(given.log_loss), _norm(gradient, blocked, weight), extremes


def _settle(
    given: Problem, theta: np.ndarray, value: np.ndarray, weight: np.ndarray, y: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decide each small term: its logarithm walks to zero for ever, and has no slope there to walk back on."""
    theta, value = theta.copy(), value.copy()
    for index, place in enumerate(given.summed):
        for threshold, target in ((SMALL, 0.0), (VANISHED, REVIVED)):
            share = _shares(given, theta)[:, index]
            small = np.flatnonzero((share < threshold) & (theta[:, place] > given.low[place]) | (share < VANISHED))
            if not len(small):
                continue
            tried = theta[small]
            shift = np.log(target / np.maximum(share[small], 1e-300)) if target else -np.inf
            tried[:, place] = np.maximum(tried[:, place] + shift, given.low[place])
            rows = y[small] if len(y) > 1 else y
            better = given.value(tried, weight[small], rows, given.objective) < value[small]
            some = small[better]
            if len(some):
                rows = y[some] if len(y) > 1 else y
                theta[some], value[some] = _descend(
                    given, tried[better], weight[some], rows, given.objective, steps, FINEST
                )
    return theta, value


def _shares(given: Problem, theta: np.ndarray) -> np.ndarray:
    """(problem, summed coefficient): largest share of the loss that a term has in any row."""
    return given.surface.expand(theta).gradient[:, given.summed].max(axis=2)


def _descend(
    given: Problem,
    theta: np.ndarray,
    weight: np.ndarray,
    y: np.ndarray,
    objective: Objective,
    steps: int,
    enough: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps until every problem has converged or stopped improving; theta and F."""
    theta = theta.copy()
    count, size = theta.shape
    value = given.value(theta, weight, y, objective)
    gradient, hessian = np.empty((count, size)), np.empty((count, size, size))
    radius, moved, active = np.ones(count), np.ones(count, bool), np.arange(count)
    before = value.copy()
    for number in range(1, steps + 1):
        if number % PATIENCE == 0:
            active = active[before[active] - value[active] > CRAWL * before[active]]
            before = value.copy()
        stale = active[moved[active]]
        if len(stale):
            rows = y[stale] if len(y) > 1 else y
            gradient[stale], hessian[stale] = given.derivatives(theta[stale], weight[stale], rows, objective)
        blocked = _blocked(given, theta[active], gradient[active]) | _idle(gradient[active], hessian[active])
        left = _norm(gradient[active], blocked, weight[active]) > enough
        active, blocked = active[left], blocked[left]
        if not len(active):
            break
        step = _step(given, gradient[active], hessian[active], blocked, radius[active])
        proposal = np.clip(theta[active] + step, given.low, given.high)
        rows = y[active] if len(y) > 1 else y
        proposed = given.value(proposal, weight[active], rows, objective)
        better = proposed < value[active]
        took = active[better]
        theta[took], value[took] = proposal[better], proposed[better]
        moved[:] = False
        moved[took] = True
        length = np.abs(step).max(axis=1)
        grown = np.minimum(np.maximum(radius[active], 2 * length), 4.0)
        radius[active] = np.where(better, grown, 0.25 * np.minimum(radius[active], length))
        active = active[radius[active] > 1e-13]
    return theta, value


def _step(
    given: Problem, gradient: np.ndarray, hessian: np.ndarray, blocked: np.ndarray, radius: np.ndarray
) -> np.ndarray:
    """Newton's step where the Hessian is positive definite and the step short, else one cut along each eigenvector."""
    hessian = hessian.copy()
    hessian[:, given.summed, given.summed] -= gradient[:, given.summed]
    if blocked.any():
        hessian, gradient = _restrict(hessian, blocked), np.where(blocked, 0.0, gradient)
    step, definite = _cholesky_solve(hessian, -gradient)
    hard = np.flatnonzero(~definite | (np.abs(step).max(axis=1) > radius))
    if len(hard):
        step[hard] = _cut(gradient[hard], hessian[hard], radius[hard])
    relative = step[:, given.summed]
    step[:, given.summed] = np.where(relative > -0.9, np.log1p(np.maximum(relative, -0.9)), np.log(0.1))
    return step


def _cut(gradient: np.ndarray, hessian: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Newton's step with the eigenvalues' absolute values, cut to ``radius`` along each eigenvector.

    Cutting each direction by itself lets the step be long along a flat valley and exact across it.
    """
    values, vectors = np.linalg.eigh(hessian)
    along = np.matmul(gradient[:, None], vectors)[:, 0]
    length = along / np.maximum(np.abs(values), 1e-12)
    length = np.clip(length, -radius[:, None], radius[:, None])
    gain = np.abs(along * length)
    length = np.where(gain >= WORTH * gain.max(axis=1, keepdims=True), length, 0.0)
    return -np.matmul(vectors, length[..., None])[..., 0]


def _cholesky_solve(hessian: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H^-1 right by L D L^T over the whole batch at once, and where H is positive definite."""
    count, size = right.shape
    lower, pivots = np.zeros_like(hessian), np.empty((count, size))
    definite = np.ones(count, bool)
    for j in range(size):
        row = lower[:, j, :j] * pivots[:, :j]
        pivot = hessian[:, j, j] - np.einsum("pk,pk->p", row, lower[:, j, :j])
        sound = pivot > 1e-12 * np.abs(hessian[:, j, j])
        definite &= sound
        pivots[:, j] = np.where(sound, pivot, 1.0)
        below = hessian[:, j + 1 :, j] - np.matmul(lower[:, j + 1 :, :j], row[:, :, None])[:, :, 0]
        lower[:, j + 1 :, j] = below / pivots[:, j, None]
    step = right.copy()
    for j in range(1, size):
        step[:, j] -= np.einsum("pk,pk->p", lower[:, j, :j], step[:, :j])
    step /= pivots
    for j in range(size - 2, -1, -1):
        step[:, j] -= np.einsum("pk,pk->p", lower[:, j + 1 :, j], step[:, j + 1 :])
    return step, definite


def _blocked(given: Problem, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Parameters on a bound that the descent would cross, and fixed ones."""
    blocked = ((theta <= given.low) & (gradient > 0)) | ((theta >= given.high) & (gradient < 0))
    blocked[:, list(given.fixed)] = True
    return blocked


def _idle(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Parameters that do nothing, as the exponents of a vanished term: moving them could only bring it back."""
    curve = np.abs(np.diagonal(hessian, axis1=1, axis2=2))
    return (np.abs(gradient) <= 1e-12) & (curve <= 1e-12 * curve.max(axis=1, keepdims=True))


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
