"""More data or a bigger model? A verdict with a probability, or "cannot tell" and what to run next."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling.fit import Fit, explain
from scaling.intervals import LEVEL, Bootstrap, percentile

DATA, MODEL, CANNOT_TELL = "more data", "a bigger model", "cannot tell"
CONFIDENCE = 0.95
"""A verdict is given when the probability of either side reaches this."""
DOUBLING = 2.0


@dataclass(frozen=True)
class Gain:
    """How much lower the loss is expected to be after one doubling."""

    estimate: float
    """Share of the loss that goes away, 1 - L_after / L_before."""
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """A configuration worth running again."""

    settings: Mapping[str, Any]
    """Column to value: what identifies the cell in the table."""
    N: float
    D: float
    variance_left: float
    """Share of the variance of the difference of gains that would remain, by linearisation."""


@dataclass(frozen=True)
class Answer:
    """The verdict and what it rests on."""

    verdict: str
    probability: float | None
    """P(doubling the data lowers the loss more than doubling the model); nothing where the fit is refused."""
    N: float
    D: float
    """The point from which both are doubled: the largest model and the largest subset of the table."""
    data: Gain | None
    model: Gain | None
    reasons: tuple[str, ...]
    """Why it cannot be told, or what to keep in mind."""
    next_cells: tuple[Cell, ...]


def gains(draws: Bootstrap, n: float, d: float) -> tuple[np.ndarray, np.ndarray]:
    """(draw,) each: the gain of doubling the data, and of doubling the model, at N = n and D = d."""
    inputs = {"N": np.array([n, n, n * DOUBLING]), "D": np.array([d, d * DOUBLING, d])}
    loss = draws.predict(inputs)
    return 1 - loss[:, 1] / loss[:, 0], 1 - loss[:, 2] / loss[:, 0]


def answer(draws: Bootstrap, cells: int = 3) -> Answer:
    """The verdict of a bootstrapped fit of a law in N and D.

    Args:
        draws: the bootstrap; its law must take both N and D.
        cells: how many configurations to name when it cannot be told.

    Raises:
        ValueError: the law lacks N or D.

    """
    fitted = draws.fit
    if set(fitted.law.inputs) != {"N", "D"}:
        raise ValueError(f"a verdict needs a law in N and D; {fitted.law.name} has {fitted.law.inputs}")
    n, d = (float(fitted.data.frame[name].max()) for name in ("N", "D"))
    reasons = [explain(flag) for flag in fitted.flags]
    if draws.failures:
        reasons.append(f"{draws.failures} of {draws.failures + len(draws.theta)} bootstrap refits did not converge")
    if fitted.refusal is not None:
        return Answer(CANNOT_TELL, None, n, d, None, None, tuple(reasons), ())
    by_data, by_model = gains(draws, n, d)
    probability = float(np.mean(by_data > by_model) + 0.5 * np.mean(by_data == by_model))
    verdict = DATA if probability >= CONFIDENCE else MODEL if probability <= 1 - CONFIDENCE else CANNOT_TELL
    point = gains(Bootstrap(fitted, fitted.theta[None], 0), n, d)
    data, model = (_gain(values, estimate) for values, estimate in zip((by_data, by_model), point, strict=True))
    proposals = next_cells(fitted, n, d, cells) if verdict == CANNOT_TELL else ()
    return Answer(verdict, probability, n, d, data, model, tuple(reasons), proposals)


def _gain(values: np.ndarray, estimate: np.ndarray) -> Gain:
    low, high = percentile(values)
    return Gain(float(estimate[0]), float(low), float(high))


def next_cells(fitted: Fit, n: float, d: float, count: int) -> tuple[Cell, ...]:
    """Configurations of the table whose repetition narrows the difference of gains most, greedily.

    With rows g_i = d log L_i / d theta the information is sum g_i g_i^T, and the variance of a contrast c of theta is
    c^T information^-1 c, up to the noise; one more run of a cell adds its g g^T. Parameters are kept identifiable by
    a ridge far below the information at hand.
    """
    step = 1e-4
    directions = np.eye(len(fitted.theta)) * step
    rows = {name: fitted.data.frame[name].to_numpy(float) for name in ("N", "D")}

    def derivative(inputs: dict[str, np.ndarray]) -> np.ndarray:
        up, down = (np.log(fitted.predict(inputs, fitted.theta + sign * directions)) for sign in (1, -1))
        return (up - down).T / (2 * step)

    g = derivative(rows)
    corner = derivative({"N": np.array([n, n * DOUBLING]), "D": np.array([d * DOUBLING, d])})
    contrast = corner[0] - corner[1]
    information = g.T @ g
    information += np.eye(len(contrast)) * 1e-9 * np.trace(information)
    before = contrast @ np.linalg.solve(information, contrast)
    firsts = np.unique(fitted.data.cell, return_index=True)[1]
    chosen = []
    for _ in range(count):
        left = [contrast @ np.linalg.solve(information + np.outer(g[i], g[i]), contrast) for i in firsts]
        best = int(firsts[int(np.argmin(left))])
        information += np.outer(g[best], g[best])
        chosen.append(_cell(fitted, best, float(min(left) / before)))
    return tuple(chosen)


def _cell(fitted: Fit, row: int, variance_left: float) -> Cell:
    record = fitted.data.frame.iloc[row]
    told_apart_by = [name for name in ("kind", "width", "depth", "context", "fraction") if name in record]
    names = [name for name in told_apart_by if fitted.data.frame[name].nunique() > 1]
    values = (record[name] for name in names)
    settings = {n: v.item() if isinstance(v, np.generic) else v for n, v in zip(names, values, strict=True)}
    return Cell(settings, float(record["N"]), float(record["D"]), variance_left)


def to_json(given: Answer) -> dict[str, Any]:
    """The answer as plain values."""
    return dataclasses.asdict(given)


def in_words(given: Answer) -> str:
    """The answer as a short paragraph."""
    lines = [f"Verdict: {given.verdict}."]
    if given.probability is not None and given.data is not None and given.model is not None:
        lines.append(
            f"From N = {given.N:,.0f} parameters and D = {given.D:,.0f} transitions, doubling the data is expected to "
            f"lower the held-out loss by {_share(given.data)}, doubling the model by {_share(given.model)} "
            f"({LEVEL:.0%} intervals)."
        )
        lines.append(f"P(data beats model) = {given.probability:.3f}; a verdict needs {CONFIDENCE:g} on either side.")
    if given.reasons:
        lines.append("Keep in mind: " + "; ".join(given.reasons) + ".")
    if given.next_cells:
        times = Counter(
            ", ".join(f"{name} {value}" for name, value in cell.settings.items()) or f"N {cell.N:g}, D {cell.D:g}"
            for cell in given.next_cells
        )
        cells = "; ".join(f"{count} x {cell}" if count > 1 else cell for cell, count in times.items())
        left = given.next_cells[-1].variance_left
        lines.append(f"Run next, with new seeds and draws: {cells} (would leave {left:.0%} of the variance).")
    return "\n".join(lines)


def _share(gain: Gain) -> str:
    return f"{gain.estimate:.1%} [{gain.low:.1%}, {gain.high:.1%}]"
