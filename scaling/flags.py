"""What may be wrong with a fit, by name."""

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

from scaling.data import Data, has_specs, levels, settings
from scaling.law import EXPONENT, Law, names
from scaling.newton import VANISHED, Problem

FEW_LEVELS, COLLINEAR, NOT_CONVERGED, LONE_START = "few_levels", "collinear", "not_converged", "lone_start"
ILL_CONDITIONED, AT_BOUND, TERM_VANISHES = "ill_conditioned", "at_bound", "term_vanishes"
WRONG_SIGN, STEEP, LACK_OF_FIT, POOLED, MANY_PARAMETERS = (
    "wrong_sign",
    "steep",
    "lack_of_fit",
    "pooled",
    "many_parameters",
)

FLAGS = {
    FEW_LEVELS: "fewer than 3 levels of an input",
    COLLINEAR: "the logarithms of two inputs correlate beyond 0.95",
    NOT_CONVERGED: "no start reached a minimum",
    LONE_START: "no second start agrees with the best one",
    ILL_CONDITIONED: "condition number of the Hessian above 1e8, single parameters mean little",
    AT_BOUND: "a parameter ended on its bound",
    TERM_VANISHES: "a term is below a thousandth of every loss",
    WRONG_SIGN: "an exponent is not positive, the loss grows with that input or does not depend on it",
    STEEP: "an exponent above 4, the term touches the smallest level alone",
    LACK_OF_FIT: "cells miss the law by more than runs of one cell differ (F-test, p < 0.01), the form is wrong",
    POOLED: "runs that differ in more than model size, data and seed are fitted together",
    MANY_PARAMETERS: "fewer than two configurations per parameter",
}
"""Everything that a fit may be flagged with; a flag may name an input or parameter after a colon."""

REFUSING = (FEW_LEVELS, COLLINEAR, NOT_CONVERGED)
"""Flags with which no number of a fit means anything.

An ill-conditioned fit is not among them: its single parameters mean little, its predictions may still be sharp.
"""


@dataclass(frozen=True)
class Optimum:
    """What the solver says of the best start."""

    converged: bool
    agree: int
    condition: float


def explain(flag: str) -> str:
    """A flag in words."""
    name, _, detail = flag.partition(":")
    return FLAGS[name] + (f" ({detail})" if detail else "")


def flags_of(law: Law, data: Data, problem: Problem, theta: np.ndarray, found: Optimum) -> list[str]:
    """All flags of a fit."""
    residual = data.log_loss - problem.surface.value(theta[None])[0]
    flags = [*_of_table(law, data), *_of_parameters(law, data, problem, theta)]
    flags += [LACK_OF_FIT] if lack_of_fit(len(theta), data, residual) < 0.01 else []
    flags += [] if found.converged else [NOT_CONVERGED]
    flags += [LONE_START] if found.agree < 2 else []
    return flags + ([ILL_CONDITIONED] if found.condition > 1e8 else [])


def lack_of_fit(parameters: int, data: Data, residual: np.ndarray) -> float:
    """Probability of residuals this far off in whole cells, if the law held; 1 where no cell was run twice.

    The F-test for lack of fit: mean square of the cells' mean residuals against that of runs around their cell
    (Draper & Smith 1998, section 2.1).
    """
    counts = np.bincount(data.cell)
    means = np.bincount(data.cell, weights=residual) / counts
    between, within = len(counts) - parameters, data.rows - len(counts)
    pure = float(((residual - means[data.cell]) ** 2).sum())
    if between < 1 or within < 1 or pure < 1e-20 * data.rows:
        return 1.0
    ratio = float((counts * means**2).sum()) / between / (pure / within)
    return float(fdtrc(between, within, ratio))


def _of_table(law: Law, data: Data) -> list[str]:
    flags = [f"{POOLED}:{name}" for name in _pooled(data)]
    flags += [f"{FEW_LEVELS}:{name}" for name in law.inputs if len(np.unique(levels(data, name))) < 3]
    for index, one in enumerate(law.inputs):
        for other in law.inputs[index + 1 :]:
            a, b = data.log_x[one], data.log_x[other]
            if a.std() > 0 and b.std() > 0 and abs(np.corrcoef(a, b)[0, 1]) > 0.95:
                flags.append(f"{COLLINEAR}:{one},{other}")
    distinct = len(np.unique(np.stack([data.cell, data.cluster]), axis=1).T)
    return flags + ([MANY_PARAMETERS] if distinct < 2 * len(names(law)) else [])


def _pooled(data: Data) -> list[str]:
    """Fields that vary over the table beside those that make up N, D and repetition."""
    if not has_specs(data.frame):
        return []
    expected = {"model.width", "model.depth", "data.fraction", "data.draw", "seed"}
    varying = settings(data.frame).map(str).nunique()
    return [str(name) for name, count in varying.items() if count > 1 and name not in expected]


def _of_parameters(law: Law, data: Data, problem: Problem, theta: np.ndarray) -> list[str]:
    share = problem.surface.expand(theta[None]).gradient[0, problem.summed].max(axis=1)
    gone = set(problem.summed[share < VANISHED])
    flags = []
    for place, parameter in enumerate(law.parameters):
        on_bound = theta[place] <= problem.low[place] or theta[place] >= problem.high[place]
        if on_bound and place not in gone:
            flags.append(f"{AT_BOUND}:{parameter.name}")
        elif parameter.kind == EXPONENT and parameter.low < 0 and parameter.start[0] >= 0 and theta[place] <= 0:
            flags.append(f"{WRONG_SIGN}:{parameter.name}")
        elif parameter.kind == EXPONENT and theta[place] > 4:
            flags.append(f"{STEEP}:{parameter.name}")
    return flags + [f"{TERM_VANISHES}:{name}" for name, s in zip(law.summands, share, strict=True) if s < 1e-3]
