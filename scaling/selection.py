"""Which laws survive extrapolation, and with what weights to average over those that do.

Laws are compared on rows that they were not fitted to: the dearer part of the table (rolling origin), the largest N,
the largest D. Two laws are *indistinguishable* when the paired bootstrap interval of their difference in squared
hold-out error contains zero, when their AICc differ by less than :data:`CLOSE`, or when AICc prefers the one and
hold-out errors, not far apart, the other. In-sample fit alone decides nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from scaling import newton, plug
from scaling.data import Data, levels, prepare, subset, thin
from scaling.errors import UserError
from scaling.fit import Fit, fit, load_law, problem_of
from scaling.flags import REFUSING, explain
from scaling.law import names
from scaling.objective import LOG_MSE, Objective
from scaling.table import Table

ORIGINS = (0.5, 2 / 3, 5 / 6)
"""Shares of the cost levels that the rolling origin fits; the rest is predicted."""
CLOSE = 2.0
"""Difference of AICc below which two laws are not told apart."""
FAR = 4.0
"""Ratio of mean squared hold-out errors from which AICc is not asked."""
DRAWS = 2000
LARGEST = 2000
"""Rows beyond this are sampled: many laws are fitted many times."""
STARTS = 16
"""Of each fit to what is left when rows are held out."""
KNOWN = ("N", "D", "width", "depth", "exposures")


@dataclass(frozen=True, eq=False)
class Hold:
    """Rows kept out of a fit."""

    name: str
    out: np.ndarray
    """(row,) whether the row is predicted."""
    trained: np.ndarray
    """(row,) whether the row is fitted."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One law on the table."""

    fit: Fit
    errors: dict[str, np.ndarray]
    """Hold-out to log loss minus prediction, (row,) of its predicted rows."""
    aicc: float
    survives: bool
    """Not worse than the best beyond doubt."""
    weight: float
    """Share in averages over laws."""

    def rmse(self, hold: str) -> float:
        """Root mean square of log loss minus prediction."""
        return float(np.sqrt(np.mean(self.errors[hold] ** 2)))


@dataclass(frozen=True, eq=False)
class Selection:
    """All laws on one table."""

    candidates: tuple[Candidate, ...]
    """Best first, by the error over all hold-outs."""
    failed: dict[str, str]
    """Law to the reason why it is out."""
    holds: tuple[str, ...]

    @property
    def survivors(self) -> tuple[Candidate, ...]:
        """The laws that cannot be told from the best."""
        return tuple(c for c in self.candidates if c.survives)

    def frame(self) -> pd.DataFrame:
        """A row per law."""
        rows = []
        for c in self.candidates:
            row = {"law": c.fit.law.name, "survives": c.survives, "weight": c.weight}
            for hold in self.holds:
                row |= {f"log RMSE, {hold}": c.rmse(hold), f"bias, {hold}": float(c.errors[hold].mean())}
            rows.append(row | {"AICc": c.aicc, "objective": c.fit.objective, "certified": c.fit.certified})
        return pd.DataFrame(rows)


def inputs_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Columns of a table that some law could use: known, numeric and not constant."""
    usable = []
    for name in (known for known in KNOWN if known in frame):
        values = pd.to_numeric(frame[name], errors="coerce")
        sound = name in ("N", "D") or bool((values > 0).all())  # a fault in N or D is named later
        if sound and values.nunique() > 1:
            usable.append(name)
    return tuple(usable)


def prepare_all(table: Table, loss: str, cluster: str | None = None) -> Data:
    """The rows of a table with every input that it has.

    Raises:
        UserError: it has neither N nor D, or cannot be used.

    """
    done = table.frame[table.frame["status"] != "failed"] if "status" in table.frame else table.frame
    inputs = inputs_of(done)
    if not {"N", "D"} & set(inputs):
        inputs = ("N", "D")  # says what is missing
    return prepare(table, loss, inputs, cluster)


def holds_of(data: Data) -> list[Hold]:
    """Every way of keeping rows out that this table allows."""
    found = []
    cost = _cost(data)
    steps = np.unique(cost)
    for origin in ORIGINS:
        cut = steps[min(int(np.ceil(origin * len(steps))), len(steps) - 1) - 1]
        if len(steps) > 3:
            found.append(Hold(f"cost above {origin:.0%}", cost > cut, cost <= cut))
    for name in ("N", "D"):
        if name in data.log_x and len(np.unique(level := levels(data, name))) > 2:
            found.append(Hold(f"largest {name}", level == level.max(), level < level.max()))
    return found


def select(data: Data, how: Objective | None = None, seed: int = 0) -> Selection:
    """Fit every law that the table can bear, predict what was held out, compare.

    Raises:
        UserError: no law can be fitted and held out.

    """
    data = thin(data, LARGEST, seed)
    fits, failed = _fits(data, how or Objective())
    holds = holds_of(data)
    errors: dict[str, dict[str, np.ndarray]] = {}
    for fitted in list(fits):
        try:
            errors[fitted.law.name] = {hold.name: _predict(fitted, hold) for hold in holds}
        except UserError as error:
            failed[fitted.law.name] = f"held out: {error}"
            fits.remove(fitted)
    if not fits or not holds:
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "too few levels to hold any out"
        raise UserError(f"no law can be compared on this table ({why})")
    return _compare(fits, errors, holds, failed, np.random.default_rng(seed))


def _fits(data: Data, how: Objective) -> tuple[list[Fit], dict[str, str]]:
    fits, failed = [], {}
    for name in plug.names("laws"):
        law = load_law(name)
        missing = [x for x in law.inputs if x not in data.log_x]
        if missing:
            failed[name] = f"needs {', '.join(missing)}, which the table lacks or does not vary"
            continue
        try:
            fitted = fit(law, data, how)
        except UserError as error:
            failed[name] = str(error)
            continue
        if fitted.refusal:
            failed[name] = fitted.refusal
        else:
            fits.append(fitted)
    return fits, failed


def _predict(fitted: Fit, hold: Hold) -> np.ndarray:
    """Log loss minus prediction on the rows held out."""
    data = fitted.data
    rest = fit(fitted.law, subset(data, hold.trained), fitted.how, STARTS)
    broken = [explain(flag) for flag in rest.flags if flag.split(":")[0] == REFUSING[-1]]
    if broken:
        raise UserError(f"{hold.name}: {broken[0]}")
    inputs = {name: np.exp(x[hold.out] + data.centre[name]) for name, x in data.log_x.items()}
    inputs = inputs or {"row": np.ones(int(hold.out.sum()))}
    return data.log_loss[hold.out] - np.log(np.maximum(rest.predict(inputs), 1e-300))


def _compare(
    fits: list[Fit],
    errors: dict[str, dict[str, np.ndarray]],
    holds: list[Hold],
    failed: dict[str, str],
    generator: np.random.Generator,
) -> Selection:
    table = {f.law.name: np.concatenate([errors[f.law.name][hold.name] for hold in holds]) for f in fits}
    scores = {name: float(np.mean(error**2)) for name, error in table.items()}
    ranked = sorted(fits, key=lambda f: scores[f.law.name])
    best = ranked[0]
    cluster = np.concatenate([best.data.cluster[hold.out] for hold in holds])
    aicc = {f.law.name: _aicc(f) for f in fits}
    alive = [
        f
        for f in ranked
        if _no_worse(table[f.law.name], table[best.law.name], cluster, generator)
        or _disputed(aicc[f.law.name] - aicc[best.law.name], scores[f.law.name] / max(scores[best.law.name], 1e-300))
    ]
    weights = _stack([table[f.law.name] for f in alive])
    share = {f.law.name: float(w) for f, w in zip(alive, weights, strict=True)}
    made = [
        Candidate(f, errors[f.law.name], aicc[f.law.name], f.law.name in share, share.get(f.law.name, 0.0))
        for f in ranked
    ]
    return Selection(tuple(made), failed, tuple(hold.name for hold in holds))


def _no_worse(error: np.ndarray, best: np.ndarray, cluster: np.ndarray, generator: np.random.Generator) -> bool:
    """Whether the 95 % interval of the mean difference of squared errors, over clusters, contains zero."""
    numbers = np.unique(cluster, return_inverse=True)[1]
    excess = np.bincount(numbers, error**2 - best**2)
    size = np.bincount(numbers)
    drawn = generator.multinomial(len(size), np.full(len(size), 1 / len(size)), size=DRAWS)
    return bool(np.quantile((drawn @ excess) / (drawn @ size), 0.025) <= 0)


def _disputed(aicc: float, error: float) -> bool:
    """Whether AICc is about the same; or contradicts hold-out errors that are not far apart."""
    return abs(aicc) < CLOSE or (aicc < 0 and error < FAR)


def _stack(errors: list[np.ndarray]) -> np.ndarray:
    """Non-negative weights that sum to one and make the averaged prediction best on the hold-outs (Breiman 1996)."""
    scale = float(np.sqrt(np.mean(np.square(errors)))) or 1.0
    matrix = np.vstack([np.stack(errors, axis=1) / scale, 1e4 * np.ones((1, len(errors)))])
    ridge = 1e-3 * np.sqrt(len(matrix)) * np.eye(len(errors))  # equal errors get equal weights
    right = np.concatenate([np.zeros(len(matrix) - 1), [1e4], np.full(len(errors), ridge[0, 0] / len(errors))])
    weights, _ = nnls(np.vstack([matrix, ridge]), right)
    return weights / weights.sum()


def _aicc(fitted: Fit) -> float:
    """Corrected Akaike criterion of cell means, weighted by their runs (Hurvich & Tsai 1989, Eq. 7).

    The law is refitted by least squares, which is what the Gaussian likelihood belongs to.
    """
    data = fitted.data
    squares = newton.solve(
        problem_of(fitted.law, data, Objective(LOG_MSE)), fitted.theta[None], np.ones((1, data.rows)), near=True
    )
    residual = data.log_loss - problem_of(fitted.law, data, fitted.how).surface.value(squares.theta)[0]
    counts = np.bincount(data.cell)
    means = np.bincount(data.cell, residual) / counts
    cells, free = len(counts), len(names(fitted.law)) + 1
    if cells - free - 1 < 1:
        return float("inf")
    spread = max(float((counts * means**2).sum() / counts.sum()), 1e-300)
    return cells * np.log(spread) + 2 * free + 2 * free * (free + 1) / (cells - free - 1)


def _cost(data: Data) -> np.ndarray:
    """(row,) what a run cost, to order runs by: C if the table has it, else N D, else the only input."""
    if "C" in data.frame and (data.frame["C"] > 0).all():
        return data.frame["C"].to_numpy(float)
    return np.round(sum(data.log_x[name] for name in ("N", "D") if name in data.log_x), 9)


def in_words(found: Selection) -> str:
    """The outcome as a short paragraph."""
    best, *others = found.candidates
    alive = [c.fit.law.name for c in found.survivors if c is not best]
    lines = [f"Best out of sample: {best.fit.law.name} ({best.fit.law.equation})."]
    if alive:
        lines.append(f"Indistinguishable from it on this table: {', '.join(alive)}.")
    worse = [c.fit.law.name for c in others if not c.survives]
    if worse:
        lines.append(f"Worse beyond doubt: {', '.join(worse)}.")
    lines += [f"Out: {name}: {reason}." for name, reason in found.failed.items()]
    return "\n".join(lines)


def to_json(found: Selection) -> dict[str, Any]:
    """The comparison as plain values."""
    laws = [
        {
            "law": c.fit.law.name,
            "survives": c.survives,
            "weight": c.weight,
            "aicc": c.aicc,
            "certified": c.fit.certified,
            "flags": list(c.fit.flags),
            "hold_outs": {
                hold: {"log_rmse": c.rmse(hold), "bias": float(c.errors[hold].mean())} for hold in found.holds
            },
        }
        for c in found.candidates
    ]
    return {"laws": laws, "failed": found.failed, "survivors": [c.fit.law.name for c in found.survivors]}
