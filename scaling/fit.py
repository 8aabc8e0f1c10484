"""A law with numbers: the certified optimum of its fit to a table."""

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from scaling import newton, plug
from scaling.errors import UserError
from scaling.law import PowerSum, log_predict

DELTA = 1e-3
"""Residuals of log loss beyond this count linearly (Hoffmann et al. 2022, Appendix D.2)."""
STARTS = 64
SAME = 1e-6
"""Relative difference of objectives within which two starts are said to agree."""

FEW_LEVELS, COLLINEAR, NOT_CONVERGED, LONE_START = "few_levels", "collinear", "not_converged", "lone_start"
ILL_CONDITIONED, AT_BOUND, TERM_VANISHES = "ill_conditioned", "at_bound", "term_vanishes"
LACK_OF_FIT, POOLED = "lack_of_fit", "pooled"

FLAGS = {
    FEW_LEVELS: "fewer than 3 levels of an input",
    COLLINEAR: "the logarithms of two inputs correlate beyond 0.95",
    NOT_CONVERGED: "no start reached a minimum",
    LONE_START: "no second start agrees with the best one",
    ILL_CONDITIONED: "condition number of the Hessian above 1e8, single parameters mean little",
    AT_BOUND: "a parameter ended on its bound",
    POOLED: "runs that differ in more than model size, data and seed are fitted together",
    TERM_VANISHES: "a term is below a thousandth of every loss",
    LACK_OF_FIT: "cells miss the law by more than runs of one cell differ (F-test, p < 0.01), the form is wrong",
}
"""Everything that a fit may be flagged with; a flag may name an input or parameter after a colon."""

REFUSING = (FEW_LEVELS, COLLINEAR, NOT_CONVERGED)
"""Flags with which no number of a fit means anything.

An ill-conditioned fit is not among them: its single parameters mean little, its predictions may still be sharp.
"""


@dataclass(frozen=True, eq=False)
class Data:
    """The rows that a fit uses."""

    log_x: Mapping[str, np.ndarray]
    """Natural logarithm of each input, (row,), centred."""
    centre: Mapping[str, float]
    log_loss: np.ndarray
    cell: np.ndarray
    """(row,): number of the configuration; runs of one cell differ in seed or draw alone."""
    frame: pd.DataFrame
    refused: Mapping[str, int]
    """Reason to number of rows left out."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.log_loss)


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law."""

    law: PowerSum
    theta: np.ndarray
    """(parameter,), for centred inputs."""
    data: Data
    delta: float
    objective: float
    """Sum of Huber losses of the residuals of log loss."""
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
        return {name: float(value) for name, value in self.law.natural(self.theta, self.data.centre).items()}

    @property
    def refusal(self) -> str | None:
        """Why the numbers mean nothing, or nothing."""
        reasons = [explain(flag) for flag in self.flags if flag.split(":")[0] in REFUSING]
        return "; ".join(reasons) or None

    def predict(self, inputs: Mapping[str, np.ndarray], theta: np.ndarray | None = None) -> np.ndarray:
        """Loss, (..., row), at inputs on their natural scale, for one or several centred parameter vectors."""
        log_x = {name: np.log(inputs[name]) - self.data.centre[name] for name in self.law.inputs}
        size = len(next(iter(inputs.values())))
        log_x = log_x or {"": np.zeros(size)}  # a law without inputs
        return np.exp(log_predict(self.theta if theta is None else theta, self.law.design(log_x)))


def load_law(name: str) -> PowerSum:
    """The law in ``scaling/laws/<name>.py``.

    Raises:
        UserError: there is none; the message lists those that exist.

    """
    law: PowerSum = plug.load("laws", name).LAW
    return law


def prepare(frame: pd.DataFrame, loss: str, inputs: tuple[str, ...] = ("N", "D")) -> Data:
    """The usable rows of a results table.

    Failed runs are left out and counted.

    Raises:
        UserError: a column is missing, a value cannot be used, or fewer than two rows remain.

    """
    missing = [name for name in (loss, *inputs) if name not in frame]
    if missing:
        raise UserError(f"the table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
    refused: dict[str, int] = {}
    if "status" in frame:
        failed = frame["status"] != "done"
        if failed.any():
            refused["failed run"] = int(failed.sum())
        frame = frame[~failed]
    frame = frame.reset_index(drop=True)
    for name in (loss, *inputs):
        _check_positive(frame, name)
    if len(frame) < 2:
        raise UserError(f"{len(frame)} usable row(s); a fit needs at least 2")
    logs = {name: np.log(frame[name].to_numpy(float)) for name in inputs}
    centre = {name: float(values.mean()) for name, values in logs.items()}
    return Data(
        log_x={name: values - centre[name] for name, values in logs.items()},
        centre=centre,
        log_loss=np.log(frame[loss].to_numpy(float)),
        cell=cells_of(frame, inputs),
        frame=frame,
        refused=refused,
    )


def _check_positive(frame: pd.DataFrame, name: str) -> None:
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"column {name!r} must be positive to take its logarithm; row {row} holds {frame[name].iloc[row]!r} "
            f"({int(bad.sum())} such rows of {len(frame)}); remove or repair them"
        )


def fit(law: PowerSum, data: Data, delta: float = DELTA, starts: int = STARTS, seed: int = 0) -> Fit:
    """The best of many starts, with its certificate and flags.

    Raises:
        UserError: fewer rows than parameters.

    """
    begin = time.perf_counter()
    if data.rows < len(law.theta):
        raise UserError(f"law {law.name} has {len(law.theta)} parameters, the table {data.rows} usable rows")
    problem = problem_of(law, data, delta)
    theta = law.starts(starts, data.log_loss, np.random.default_rng(seed))
    found = newton.solve(problem, theta, np.ones((starts, data.rows)))
    ranked = np.where(found.converged, found.objective, np.inf)
    best = int(np.argmin(ranked if found.converged.any() else found.objective))
    agree = int((found.converged & (found.objective <= found.objective[best] * (1 + SAME) + 1e-15)).sum())
    lowest = bool(found.objective[best] <= found.objective.min() * (1 + SAME) + 1e-15)
    small, large = found.eigenvalues[best]
    condition = float(large / small) if small > 0 else float("inf")
    converged = bool(found.converged[best]) and lowest
    flags = [*_of_table(law, data), *_of_parameters(law, problem, found.theta[best])]
    flags += (
        [LACK_OF_FIT]
        if lack_of_fit(law, data, problem.log_loss - log_predict(found.theta[best], problem.design)) < 0.01
        else []
    )
    flags += [] if converged else [NOT_CONVERGED]
    flags += [LONE_START] if agree < 2 else []
    flags += [ILL_CONDITIONED] if condition > 1e8 else []
    return Fit(
        law=law,
        theta=found.theta[best],
        data=data,
        delta=delta,
        objective=float(found.objective[best]),
        gradient_norm=float(found.gradient_norm[best]),
        hessian_condition=condition,
        starts=starts,
        agree=agree,
        certified=converged and bool(small > 0) and agree >= 2,
        flags=tuple(flags),
        seconds=time.perf_counter() - begin,
    )


def lack_of_fit(law: PowerSum, data: Data, residual: np.ndarray) -> float:
    """Probability of residuals this far off in whole cells, if the law held; 1 where no cell was run twice.

    The F-test for lack of fit: mean square of the cells' mean residuals against that of runs around their cell
    (Draper & Smith 1998, section 2.1).
    """
    counts = np.bincount(data.cell)
    means = np.bincount(data.cell, weights=residual) / counts
    between, within = len(counts) - len(law.theta), data.rows - len(counts)
    pure = float(((residual - means[data.cell]) ** 2).sum())
    if between < 1 or within < 1 or pure < 1e-20 * data.rows:
        return 1.0
    ratio = float((counts * means**2).sum()) / between / (pure / within)
    return float(fdtrc(between, within, ratio))


def problem_of(law: PowerSum, data: Data, delta: float) -> newton.Problem:
    """The optimisation problem of a fit."""
    log_x = {name: data.log_x[name] for name in law.inputs} or {"": np.zeros(data.rows)}
    low, high = law.bounds(data.log_loss)
    return newton.Problem(law.design(log_x), data.log_loss, delta, low, high)


def subset(data: Data, keep: np.ndarray) -> Data:
    """The rows where ``keep`` is true, with the same centres."""
    return dataclasses.replace(
        data,
        log_x={name: values[keep] for name, values in data.log_x.items()},
        log_loss=data.log_loss[keep],
        cell=np.unique(data.cell[keep], return_inverse=True)[1],
        frame=data.frame[keep].reset_index(drop=True),
    )


def explain(flag: str) -> str:
    """A flag in words."""
    name, _, detail = flag.partition(":")
    return FLAGS[name] + (f" ({detail})" if detail else "")


def _of_table(law: PowerSum, data: Data) -> list[str]:
    flags = [f"{POOLED}:{name}" for name in _pooled(data.frame)]
    flags += [f"{FEW_LEVELS}:{name}" for name in law.inputs if len(np.unique(levels(data, name))) < 3]
    for index, one in enumerate(law.inputs):
        for other in law.inputs[index + 1 :]:
            a, b = data.log_x[one], data.log_x[other]
            if a.std() > 0 and b.std() > 0 and abs(np.corrcoef(a, b)[0, 1]) > 0.95:
                flags.append(f"{COLLINEAR}:{one},{other}")
    return flags


def levels(data: Data, name: str) -> np.ndarray:
    """(row,) level of an input; draws of one fraction differ in size and yet are one level of D."""
    by_fraction = name == "D" and "fraction" in data.frame and data.frame["fraction"].notna().all()
    return data.frame["fraction"].to_numpy(float) if by_fraction else data.log_x[name]


def cells_of(frame: pd.DataFrame, inputs: tuple[str, ...] = ("N", "D")) -> np.ndarray:
    """(row,) number of the configuration: all that the spec says but seed, draw and where the data lies.

    Tables without specs fall back on kind, width, depth, context and fraction, as far as they exist, else on the
    inputs.
    """
    if "spec" in frame and frame["spec"].notna().all():
        settled = _settings(frame).drop(columns=["seed", "data.draw"]).map(str)
        return settled.groupby(list(settled.columns), sort=False).ngroup().to_numpy()
    keys = [name for name in ("kind", "width", "depth", "context", "fraction") if name in frame] or list(inputs)
    return frame.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()


def _settings(frame: pd.DataFrame) -> pd.DataFrame:
    """A column per field of the spec that can move a loss, with the dataset's digest."""
    settings = pd.json_normalize([json.loads(spec) for spec in frame["spec"]])
    unrelated = [name for name in settings if str(name).startswith("evaluate.")] + ["data.path", "data.kind"]
    return settings.drop(columns=unrelated).assign(dataset=frame["dataset"].to_numpy())


def _pooled(frame: pd.DataFrame) -> list[str]:
    """Fields that vary over the table beside those that make up N, D and repetition."""
    if "spec" not in frame or not frame["spec"].notna().all():
        return []
    expected = {"model.width", "model.depth", "data.fraction", "data.draw", "seed"}
    varying = _settings(frame).map(str).nunique()
    return [str(name) for name, count in varying.items() if count > 1 and name not in expected]


def _of_parameters(law: PowerSum, problem: newton.Problem, theta: np.ndarray) -> list[str]:
    on_bound = (theta <= problem.low) | (theta >= problem.high)
    flags = [f"{AT_BOUND}:{name}" for name, on in zip(law.theta, on_bound, strict=True) if on]
    share = np.exp(problem.design @ theta - problem.log_loss).max(axis=1)
    return flags + [f"{TERM_VANISHES}:{name}" for name, s in zip(law.coefficients, share, strict=True) if s < 1e-3]


def to_json(fitted: Fit) -> dict[str, Any]:
    """The fit as plain values."""
    return {
        "law": fitted.law.name,
        "equation": fitted.law.equation,
        "theta": fitted.parameters,
        "objective": fitted.objective,
        "delta": fitted.delta,
        "rows_used": fitted.data.rows,
        "rows_refused": dict(fitted.data.refused),
        "gradient_norm": fitted.gradient_norm,
        "hessian_condition": fitted.hessian_condition if np.isfinite(fitted.hessian_condition) else None,
        "starts": fitted.starts,
        "agree": fitted.agree,
        "certified": fitted.certified,
        "flags": list(fitted.flags),
        "seconds": fitted.seconds,
    }
