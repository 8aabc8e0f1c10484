"""A law with numbers: the certified optimum of its fit to a table."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from scaling import flags as flagging, newton, plug
from scaling.data import Data, prepare as prepare_data
from scaling.errors import UserError
from scaling.flags import REFUSING, explain
from scaling.law import Law, names, starts as random_starts
from scaling.newton import Problem, Solutions
from scaling.objective import Objective
from scaling.table import Table

STARTS = 64
SAME = 1e-6
"""Relative difference of objectives within which two starts are said to agree."""
MANY_ROWS = 1000
"""With more rows, starts are first run on a random sample of this size, and only what they find on all rows."""
FINALISTS = 6


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law."""

    law: Law
    theta: np.ndarray
    """(parameter,), for centred inputs."""
    data: Data
    how: Objective
    objective: float
    """Sum over rows."""
    gradient_norm: float
    hessian_condition: float
    """Infinite where the minimum is not a single point."""
    starts: int
    agree: int
    """Starts that ended at the same objective as the best."""
    certified: bool
    """Vanishing gradient, positive definite Hessian, and at least two starts that agree."""
    flags: tuple[str, ...]
    seconds: float = field(compare=False)

    @property
    def parameters(self) -> dict[str, float]:
        """Coefficients and exponents on their natural scales."""
        with np.errstate(over="ignore"):
            return {name: float(value) for name, value in self.law.natural(self.theta, self.data.centre).items()}

    @property
    def refusal(self) -> str | None:
        """Why the numbers mean nothing, or nothing."""
        reasons = [explain(flag) for flag in self.flags if flag.split(":")[0] in REFUSING]
        return "; ".join(reasons) or None

    @property
    def residuals(self) -> np.ndarray:
        """(row,): log loss minus its prediction."""
        return self.data.log_loss - surface_of(self.law, self.data).value(self.theta[None])[0]

    def predict(self, inputs: Mapping[str, np.ndarray], theta: np.ndarray | None = None) -> np.ndarray:
        """Loss, (..., row), at inputs on their natural scale, for one or several centred parameter vectors."""
        size = len(next(iter(inputs.values())))
        log_x = {name: np.log(np.asarray(inputs[name], float)) - self.data.centre[name] for name in self.law.inputs}
        surface = self.law.bind(log_x, self.data.centre, size)
        theta = self.theta if theta is None else theta
        return np.exp(surface.value(np.atleast_2d(theta)).reshape(*theta.shape[:-1], size))


def load_law(name: str) -> Law:
    """The law in ``scaling/laws/<name>.py``.

    Raises:
        UserError: there is none; the message lists those that exist.

    """
    law: Law = plug.load("laws", name).LAW
    return law


def prepare(
    table: Table | pd.DataFrame, loss: str, inputs: tuple[str, ...] = ("N", "D"), cluster: str | None = None
) -> Data:
    """See :func:`scaling.data.prepare`."""
    return prepare_data(table, loss, inputs, cluster)


def surface_of(law: Law, data: Data) -> Any:
    """The law over the rows of a table."""
    return law.bind(data.log_x, data.centre, data.rows)


def problem_of(law: Law, data: Data, how: Objective) -> Problem:
    """The optimisation problem of a fit."""
    return newton.problem(law, surface_of(law, data), data.log_loss, how)


def fit(law: Law, data: Data, how: Objective | None = None, starts: int = STARTS, seed: int = 0) -> Fit:
    """The best of many starts, with its certificate and flags.

    Raises:
        UserError: fewer rows than parameters, or a column that the law needs does not vary.

    """
    begin = time.perf_counter()
    how = how or Objective()
    _check(law, data)
    problem = problem_of(law, data, how)
    generator = np.random.default_rng(seed)
    found, votes = _polish(problem, *_search(problem, law, data, starts, generator), generator)
    ranked = np.where(found.converged, found.objective, np.inf)
    best = int(np.argmin(ranked if found.converged.any() else found.objective))
    same = found.objective <= found.objective[best] * (1 + SAME) + 1e-15
    agree = int(votes[found.converged & same].sum())
    lowest = bool(found.objective[best] <= found.objective.min() * (1 + SAME) + 1e-15)
    small, large = found.eigenvalues[best]
    condition = float(large / small) if small > 0 else float("inf")
    converged = bool(found.converged[best]) and lowest
    theta = found.theta[best]
    state = flagging.Optimum(converged, agree, condition)
    return Fit(
        law=law,
        theta=theta,
        data=data,
        how=how,
        objective=float(found.objective[best]),
        gradient_norm=float(found.gradient_norm[best]),
        hessian_condition=condition,
        starts=starts,
        agree=agree,
        certified=converged and bool(small > 0) and agree >= 2,
        flags=tuple(flagging.flags_of(law, data, problem, theta, state)),
        seconds=time.perf_counter() - begin,
    )


def _check(law: Law, data: Data) -> None:
    count = len(names(law))
    if data.rows < count:
        raise UserError(f"law {law.name} has {count} parameters, the table {data.rows} usable rows")
    for name in law.inputs:
        if np.ptp(data.log_x[name]) < 1e-12:
            value = np.exp(data.log_x[name][0] + data.centre[name])
            raise UserError(f"column {name!r} is {value:g} in every row; law {law.name} needs it to vary")
    if law.inputs and np.ptp(data.log_loss) < 1e-12:
        raise UserError(f"column {data.loss!r} is {np.exp(data.log_loss[0]):g} in every row; there is nothing to fit")


def _search(
    problem: Problem, law: Law, data: Data, starts: int, generator: np.random.Generator
) -> tuple[Solutions, np.ndarray]:
    """Solutions on all rows, and how many starts led to each."""
    theta = random_starts(law, starts, data.log_loss, generator)
    if data.rows <= MANY_ROWS:
        found = newton.solve(problem, theta, np.ones((starts, data.rows)))
        return found, np.ones(starts, int)
    rows = np.sort(generator.choice(data.rows, MANY_ROWS, replace=False))
    some = {name: x[rows] for name, x in data.log_x.items()}
    sample = newton.problem(law, law.bind(some, data.centre, len(rows)), data.log_loss[rows], problem.objective)
    first = newton.solve(sample, theta, np.ones((starts, len(rows))))
    order = np.argsort(first.objective)
    group = np.cumsum(np.diff(first.objective[order], prepend=first.objective[order[0]]) > 1e-5 * first.objective.min())
    heads = [order[np.argmax(group == g)] for g in range(min(FINALISTS, int(group.max()) + 1))]
    votes = np.array([(group == g).sum() for g in range(len(heads))])
    return newton.solve(problem, first.theta[heads], np.ones((len(heads), data.rows)), near=True), votes


def _polish(
    problem: Problem, found: Solutions, votes: np.ndarray, generator: np.random.Generator
) -> tuple[Solutions, np.ndarray]:
    """The solutions, with what jolts of the best one find; they count as starts only where they end lower.

    With few rows within delta of the law, several minima can lie close together.
    """
    best = int(np.argmin(np.where(found.converged, found.objective, np.inf)))
    count = int(votes.sum()) // 2 if problem.log_loss.shape[-1] <= MANY_ROWS else 0
    scale = generator.choice([0.02, 0.2], (count, 1))
    jolted = found.theta[best] + scale * generator.normal(size=(count, found.theta.shape[1]))
    other = newton.solve(problem, jolted, np.ones((count, problem.log_loss.shape[-1])), near=True) if count else found
    lower = other.converged & (other.objective < found.objective[best] * (1 - SAME) - 1e-15) & (count > 0)
    if not lower.any():
        return found, votes
    pairs = zip(vars(found).values(), vars(other).values(), strict=True)
    together = Solutions(*(np.concatenate([a, b[lower]]) for a, b in pairs))
    return together, np.concatenate([votes, np.ones(int(lower.sum()), int)])


def to_json(fitted: Fit) -> dict[str, Any]:
    """The fit as plain values."""
    return {
        "law": fitted.law.name,
        "equation": fitted.law.equation,
        "theta": fitted.parameters,
        "objective": fitted.objective,
        "objective_kind": fitted.how.kind,
        "delta": fitted.how.delta,
        "loss": fitted.data.loss,
        "rows_used": fitted.data.rows,
        "rows_refused": dict(fitted.data.refused),
        "gradient_norm": fitted.gradient_norm,
        "hessian_condition": fitted.hessian_condition,
        "starts": fitted.starts,
        "agree": fitted.agree,
        "certified": fitted.certified,
        "flags": list(fitted.flags),
        "seconds": fitted.seconds,
    }
