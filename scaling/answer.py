"""More data or a bigger model? A verdict with a probability, or "cannot tell" and what to run next."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling.costs import Costs, Spending, spend
from scaling.design import Cell, next_cells
from scaling.ensemble import Ensemble
from scaling.flags import explain
from scaling.intervals import LEVEL, percentile
from scaling.nulls import NullTest

DATA, MODEL, CANNOT_TELL = "more data", "a bigger model", "cannot tell"
CONFIDENCE = 0.95
"""A verdict is given when the probability of either side reaches this."""
DOUBLING = 2.0


@dataclass(frozen=True)
class Gain:
    """How much lower the loss is expected to be."""

    estimate: float
    """Share of the loss that goes away, 1 - L_after / L_before."""
    low: float
    high: float


@dataclass(frozen=True)
class Balance:
    """The model size at which one doubling of either side would help alike, for the data at hand."""

    estimate: float
    low: float
    high: float
    inside: bool
    """Whether the whole interval lies within the sizes that were run."""


@dataclass(frozen=True)
class Answer:
    """The verdict and what it rests on."""

    verdict: str
    probability: float | None
    """P(more data lowers the loss more than a bigger model); nothing where the fit is refused."""
    N: float
    D: float
    """The point from which both are doubled: the largest model and the largest subset of the table."""
    data: Gain | None
    model: Gain | None
    regret: dict[str, float]
    """Expected share of the loss given away by choosing ``data`` or ``model``, where the other was better."""
    laws: dict[str, float]
    """Weight of each law."""
    balance: Balance | None
    spending: Spending | None
    """What the budget buys, where costs were given; gains and verdict are then per budget, not per doubling."""
    size_test: NullTest | None
    reasons: tuple[str, ...]
    """Why it cannot be told, or what to keep in mind."""
    next_cells: tuple[Cell, ...]


def gains(draws: Ensemble, n: float, d: float) -> tuple[np.ndarray, np.ndarray]:
    """(draw,) each: the gain of doubling the data, and of doubling the model, at N = n and D = d."""
    loss = draws.loss(np.array([n, n, n * DOUBLING]), np.array([d, d * DOUBLING, d]))
    return 1 - loss[:, 1] / loss[:, 0], 1 - loss[:, 2] / loss[:, 0]


def answer(draws: Ensemble, costs: Costs | None = None, test: NullTest | None = None, cells: int = 3) -> Answer:
    """The verdict of bootstrapped laws in N and D.

    Args:
        draws: the laws, with weights.
        costs: of a transition and of a GPU-hour; without them a doubling of either side is compared.
        test: whether size matters at all, to be reported with the verdict.
        cells: how many configurations to name when it cannot be told.

    Raises:
        UserError: the budget buys nothing, or the table does not say how long runs take.

    """
    frame = draws.data.frame
    n, d = float(frame["N"].max()), float(frame["D"].max())
    laws = {fit.law.name: weight for fit, weight in zip(draws.fits, draws.weights, strict=True)}
    reasons = _reasons(draws)
    if draws.lead.fit.refusal is not None:
        return Answer(CANNOT_TELL, None, n, d, None, None, {}, laws, None, None, test, tuple(reasons), ())
    spending = spend(draws, costs, n, d) if costs else None
    if spending is None:
        by_data, by_model = gains(draws, n, d)
        ends = np.array([n, n, n * DOUBLING]), np.array([d, d * DOUBLING, d])
    else:
        ends = spending.ends(n, d)
        loss = draws.loss(*ends)
        by_data, by_model = 1 - loss[:, 1] / loss[:, 0], 1 - loss[:, 2] / loss[:, 0]
    probability = float(np.mean(by_data > by_model) + 0.5 * np.mean(by_data == by_model))
    verdict = DATA if probability >= CONFIDENCE else MODEL if probability <= 1 - CONFIDENCE else CANNOT_TELL
    point = draws.estimate(*ends)
    best = np.maximum(by_data, by_model)
    return Answer(
        verdict,
        probability,
        n,
        d,
        _gain(by_data, 1 - point[1] / point[0]),
        _gain(by_model, 1 - point[2] / point[0]),
        {"data": float(np.mean(best - by_data)), "model": float(np.mean(best - by_model))},
        laws,
        balance(draws, d),
        spending,
        test,
        tuple(reasons),
        next_cells(draws.lead.fit, n, d, cells) if verdict == CANNOT_TELL else (),
    )


def _reasons(draws: Ensemble) -> list[str]:
    found = [explain(flag) for flag in draws.lead.fit.flags]
    found += [
        f"{member.failures} of {member.draws} refits of {member.fit.law.name} did not converge"
        for member in draws.members
        if member.failures > 0.01 * member.draws
    ]
    found += [f"{count:,} rows left out ({reason})" for reason, count in draws.data.refused.items()]
    if all("N" not in fit.law.inputs for fit in draws.fits):
        found.append("every law that survives does without N")
    return found


def _gain(values: np.ndarray, estimate: float) -> Gain:
    low, high = percentile(values)
    return Gain(float(estimate), float(low), float(high))


def balance(draws: Ensemble, d: float) -> Balance | None:
    """Where the elasticities of the loss by N and by D cross, at D = d; nothing if they do not on four decades."""
    sizes = draws.data.frame["N"].to_numpy(float)
    grid = np.geomspace(sizes.min() / 100, sizes.max() * 100, 120)
    step = 1.02
    base, wider, longer = (
        np.log(draws.loss(grid * k, np.full(len(grid), d * j))) for k, j in ((1, 1), (step, 1), (1, step))
    )
    excess = (base - wider) - (base - longer)
    crossed = (excess <= 0) & (np.maximum.accumulate(excess, axis=1) > 0)
    if crossed.any(axis=1).mean() < LEVEL:
        return None
    where = grid[np.argmax(crossed, axis=1)][crossed.any(axis=1)]
    low, high = percentile(where)
    inside = bool(sizes.min() <= low and high <= sizes.max())
    return Balance(float(np.median(where)), float(low), float(high), inside)


def to_json(given: Answer) -> dict[str, Any]:
    """The answer as plain values."""
    values = dataclasses.asdict(given)
    if given.size_test is not None:
        values["size_test"] |= {"matters": given.size_test.matters, "negligible": given.size_test.negligible}
    return values


def in_words(given: Answer) -> str:
    """The answer as a short paragraph."""
    lines = [f"Verdict: {given.verdict}."]
    if given.probability is not None and given.data is not None and given.model is not None:
        lines.append(_comparison(given, given.data, given.model))
        lines.append(
            f"P(data beats model) = {given.probability:.3f}; a verdict needs {CONFIDENCE:g} on either side. "
            f"Expected regret of choosing data {given.regret['data']:.2%} of the loss, of choosing the model "
            f"{given.regret['model']:.2%}."
        )
        lines.append("Laws: " + ", ".join(f"{name} ({weight:.0%})" for name, weight in given.laws.items()) + ".")
    if given.spending is not None:
        lines.append(given.spending.in_words())
    if given.balance is not None:
        place = "within" if given.balance.inside else "not safely within"
        lines.append(
            f"For these data, both sides would help alike at N = {given.balance.estimate:,.0f} "
            f"[{given.balance.low:,.0f}, {given.balance.high:,.0f}], {place} the sizes that were run."
        )
    if given.size_test is not None:
        lines.append(_size(given.size_test))
    if given.reasons:
        lines.append("Keep in mind: " + "; ".join(given.reasons) + ".")
    return "\n".join([*lines, *_advice(given)])


def _comparison(given: Answer, data: Gain, model: Gain) -> str:
    both = ("the budget spent on data", "spent on the model") if given.spending else ("doubling the data", "the model")
    return (
        f"From N = {given.N:,.0f} parameters and D = {given.D:,.0f} transitions, {both[0]} is expected to lower the "
        f"held-out loss by {_share(data)}, {both[1]} by {_share(model)} ({LEVEL:.0%} intervals)."
    )


def _size(test: NullTest) -> str:
    effect = f"the observed range of N changes log loss by {test.effect:.3g} [{test.low:.3g}, {test.high:.3g}]"
    if test.matters:
        said = "Model size matters"
    elif test.negligible:
        said = "Model size does not help: its effect is within the margin"
    else:
        said = "Whether model size matters is not shown"
    return f"{said} (p = {test.p:.3f} for no effect; {effect}, margin {test.margin:.3g})."


def _advice(given: Answer) -> list[str]:
    if not given.next_cells:
        return []
    times = Counter(cell.in_words() for cell in given.next_cells)
    cells = "; ".join(f"{count} x {cell}" if count > 1 else cell for cell, count in times.items())
    left = given.next_cells[-1].variance_left
    return [f"Run next, with new seeds and draws: {cells} (would leave {left:.0%} of the variance)."]


def _share(gain: Gain) -> str:
    return f"{gain.estimate:.1%} [{gain.low:.1%}, {gain.high:.1%}]"
