"""Everything that a report or a notebook says about one table: fit, intervals, comparison of laws, answer."""

from dataclasses import dataclass

import pandas as pd

from scaling import answer as answers, plug
from scaling.answer import Answer
from scaling.errors import UserError
from scaling.fit import DELTA, Fit, fit, load_law, prepare
from scaling.intervals import DRAWS, Bootstrap, Extrapolation, bootstrap, extrapolate, percentile

LOSS = "loss_best"
"""The loss that is fitted unless another is named: the lowest on a run's curve, as early stopping would keep.

CHOICE: the loss after the last update mixes over-fitting of small subsets with the chosen number of updates.
"""
LAW = "additive"


@dataclass(frozen=True, eq=False)
class Study:
    """One table, looked at through one law, with the other laws beside it."""

    frame: pd.DataFrame
    """All rows, failed runs included."""
    loss: str
    fit: Fit
    bootstrap: Bootstrap
    answer: Answer
    others: tuple[Fit, ...]
    extrapolations: tuple[Extrapolation, ...]

    def parameters(self) -> pd.DataFrame:
        """Estimate and percentile interval of each parameter."""
        draws = self.bootstrap.parameters
        ends = {name: percentile(values) for name, values in draws.items()}
        rows = [(name, value, *map(float, ends[name])) for name, value in self.fit.parameters.items()]
        return pd.DataFrame(rows, columns=["parameter", "estimate", "low", "high"])

    def laws(self) -> pd.DataFrame:
        """In-sample objective and held-out errors of every law that can be fitted."""
        rows = []
        for fitted in self.others:
            row = {"law": fitted.law.name, "equation": fitted.law.equation, "objective": fitted.objective}
            for e in self.extrapolations:
                if e.law == fitted.law.name:
                    row |= {f"log RMSE, largest {e.axis} held out": e.log_rmse, f"bias, {e.axis}": e.bias}
            rows.append(row)
        return pd.DataFrame(rows)


def study(
    frame: pd.DataFrame, law: str = LAW, loss: str = LOSS, delta: float = DELTA, draws: int = DRAWS, seed: int = 0
) -> Study:
    """Fit ``law`` to a table, bootstrap it, compare it with the other laws, answer.

    Raises:
        UserError: the table cannot be fitted, or the law does not take both N and D.

    """
    chosen = load_law(law)
    if set(chosen.inputs) != {"N", "D"}:
        raise UserError(f"an answer needs a law in both N and D; {law} takes {', '.join(chosen.inputs) or 'neither'}")
    data = prepare(frame, loss)
    fitted = fit(chosen, data, delta)
    resampled = bootstrap(fitted, draws, seed)
    laws = [load_law(name) for name in plug.names("laws")]
    others = tuple(fit(item, data, delta) for item in laws if data.rows >= len(item.theta))
    errors = (extrapolate(other, axis) for other in others for axis in ("N", "D"))
    extrapolations = tuple(error for error in errors if error is not None)
    return Study(frame, loss, fitted, resampled, answers.answer(resampled), others, extrapolations)
