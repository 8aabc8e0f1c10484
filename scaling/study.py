"""Everything that a report or a notebook says about one table: laws, fit, intervals, answer."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from scaling import answer as answers
from scaling.answer import Answer
from scaling.costs import Costs
from scaling.data import Data, thin
from scaling.ensemble import ANSWERABLE, Ensemble, average, single
from scaling.errors import UserError
from scaling.fit import Fit, fit, load_law
from scaling.intervals import Bootstrap, bootstrap
from scaling.isocompute import IsoCompute, iso_compute
from scaling.law import Law
from scaling.nulls import FULL, NullTest, holm, size_test
from scaling.objective import Objective
from scaling.selection import LARGEST, Selection, prepare_all, select
from scaling.table import Table
from scaling.variance import Components, components

LOSS = ("loss_best", "loss")
"""The column that is fitted unless another is named: the first of these that the table has.

CHOICE: the lowest loss on a run's curve, as early stopping would keep, because the loss after the last update mixes
over-fitting of small subsets with the chosen number of updates.
"""


@dataclass(frozen=True, eq=False)
class Study:
    """One table, looked at through the laws that survive on it."""

    frame: pd.DataFrame
    """All rows, failed runs included."""
    data: Data
    selection: Selection | None
    """Nothing where a law was prescribed."""
    ensemble: Ensemble
    answer: Answer
    variance: Components
    iso_compute: IsoCompute | None
    """Nothing where the table has no grid of equal compute."""

    @property
    def loss(self) -> str:
        """The fitted column."""
        return self.data.loss

    @property
    def bootstrap(self) -> Bootstrap:
        """Of the law with the largest weight."""
        return self.ensemble.lead

    @property
    def fit(self) -> Fit:
        """The law with the largest weight."""
        return self.bootstrap.fit

    def parameters(self) -> pd.DataFrame:
        """Estimate, percentile and BCa interval of each parameter of the leading law."""
        ends = self.bootstrap.intervals()
        rows = [
            (name, value, *ends["percentile"][name], *ends["bca"][name]) for name, value in self.fit.parameters.items()
        ]
        return pd.DataFrame(rows, columns=["parameter", "estimate", "low", "high", "BCa low", "BCa high"])

    def laws(self) -> pd.DataFrame:
        """Held-out errors, weights and AICc of every law that could be compared."""
        return self.selection.frame() if self.selection else pd.DataFrame()


def loss_column(frame: pd.DataFrame, named: str | None = None) -> str:
    """The column to fit."""
    if named is not None:
        return named
    return next((name for name in LOSS if name in frame), LOSS[-1])


def study(
    table: Table | pd.DataFrame,
    law: str | None = None,
    loss: str | None = None,
    how: Objective | None = None,
    draws: int | None = None,
    seed: int = 0,
    costs: Costs | None = None,
    margin: float | None = None,
    cluster: str | None = None,
) -> Study:
    """Compare the laws on a table, bootstrap those that survive, answer.

    Args:
        table: the rows.
        law: use this law alone instead of all that survive.
        loss: column to fit; by default the first of :data:`LOSS`.
        how: the objective.
        draws: bootstrap refits per law.
        seed: of all resampling.
        costs: prices, for a verdict per budget.
        margin: of log loss, below which an effect of size counts as none.
        cluster: column that names the training run.

    Raises:
        UserError: the table cannot be fitted, or no law can be asked about N and D.

    """
    table = Table(table) if isinstance(table, pd.DataFrame) else table
    how = how or Objective()
    data = prepare_all(table, loss_column(table.frame, loss), cluster)
    for name in ("N", "D"):
        if name not in data.log_x:
            raise UserError(f"an answer needs both N and D to vary; {name} is missing or the same in every row")
    selection = None
    if law is None:
        selection = select(data, how, seed)
        ensemble = average(selection, draws, seed)
        if ensemble is None:
            raise UserError("no law in N and D can be compared on this table; name one with --law")
    else:
        ensemble = single(bootstrap(fit(_answerable(law), data, how), draws, seed))
    seen = ensemble.data
    few = thin(seen, LARGEST, seed)
    test = size_test(_additive(ensemble, few, how, draws, seed), few, how, margin=margin, seed=seed)
    given = answers.answer(ensemble, costs, test)
    spread = components(seen, ensemble.lead.fit.residuals)
    return Study(table.frame, seen, selection, ensemble, given, spread, _iso_compute(few, seed))


def studies(table: Table, by: str, run: Callable[[Table], Study]) -> tuple[dict[str, Study], dict[str, float]]:
    """A study per value of a column, such as the environment, and Holm's p-values that size does nothing.

    Raises:
        UserError: no such column.

    """
    if by not in table.frame:
        raise UserError(f"the table has no column {by!r}; it has {', '.join(map(str, table.frame.columns))}")
    groups = {
        str(value): rows.reset_index(drop=True) for value, rows in table.frame.groupby(by, sort=True, dropna=False)
    }
    found = {}
    for value, rows in groups.items():
        try:
            found[value] = run(Table(rows))
        except UserError as error:
            raise UserError(f"{by} = {value}: {error}") from error
    tests = {value: one.answer.size_test for value, one in found.items()}
    return found, holm({value: test.p for value, test in tests.items() if isinstance(test, NullTest)})


def _answerable(name: str) -> Law:
    law = load_law(name)
    if not {"N", "D"} <= set(law.inputs) <= ANSWERABLE:
        raise UserError(f"an answer needs a law in N and D; {name} takes {', '.join(law.inputs) or 'neither'}")
    return law


def _additive(ensemble: Ensemble, data: Data, how: Objective, draws: int | None, seed: int) -> Bootstrap | None:
    """The bootstrap of the law that the test of size rests on."""
    for member in ensemble.members:
        if member.fit.law.name == FULL["N"] and member.fit.data.rows == data.rows:
            return member
    try:
        return bootstrap(fit(load_law(FULL["N"]), data, how), draws, seed)
    except UserError:
        return None


def _iso_compute(data: Data, seed: int) -> IsoCompute | None:
    try:
        return iso_compute(data, seed)
    except UserError:
        return None
