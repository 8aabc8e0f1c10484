"""Whether a run's loss says anything about its return: rank correlation over runs, and where it breaks down.

    rho = correlation of the ranks of loss and return, ties at their mean rank            (Spearman 1904)

A loss that is worth lowering gives a negative rho. Configurations are resampled with all their runs, since runs that
differ in their seed alone hardly tell more about the relation than one of them.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from scaling.errors import UserError
from scaling.robust import DRAWS, LEVEL

FEWEST = 5
"""Runs below which nothing is computed."""
ENOUGH = 8
"""Configurations below which the interval of a rank correlation is not worth reading."""
MARGIN = 0.05
"""Share of the range of losses by which a final loss may exceed the run's best one."""

PREDICTS, MISLEADS, NO_SIGN, CANNOT_TELL = "predicts", "misleads", "shows no relation", "cannot tell"


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of loss and return over runs."""

    runs: int
    configurations: int
    spearman: float
    low: float
    high: float
    kendall: float
    """Kendall's tau-b, which a few runs far off move less."""

    @property
    def verdict(self) -> str:
        """What the interval says: a lower loss comes with a higher return, with a lower one, or with neither."""
        if self.configurations < ENOUGH:
            return CANNOT_TELL
        return PREDICTS if self.high < 0 else MISLEADS if self.low > 0 else NO_SIGN


@dataclass(frozen=True)
class Agreement:
    """How loss and return go together."""

    every: Correlation
    better: Correlation | None
    """Over the half of the runs with the lower losses; nothing where these do not vary or are too few."""
    memorised: int
    """Runs whose loss rose again by more than :data:`MARGIN` of the range."""
    excess: float
    """The loss that this margin is."""
    warnings: tuple[str, ...]


def agreement(runs: pd.DataFrame, loss: str, generator: np.random.Generator, draws: int = DRAWS) -> Agreement:
    """Loss against ``value`` over runs, with what to beware of.

    Args:
        runs: a row per run, with ``cell``, ``value``, the loss and, for memorisation, ``loss_best``.
        loss: column.
        generator: where the draws come from.
        draws: number of resamples.

    Raises:
        UserError: the loss is missing or constant, or there are too few runs with returns.

    """
    x, y = losses(runs, loss)
    cluster = runs["cell"].to_numpy()
    every = correlation(x, y, cluster, generator, draws)
    low = x <= np.median(x)
    can = low.sum() >= FEWEST and np.ptp(x[low]) > 0 and np.ptp(y[low]) > 0
    better = correlation(x[low], y[low], cluster[low], generator, draws) if can else None
    memorised, excess = memorisation(runs)
    return Agreement(every, better, memorised, excess, _warnings(every, better, memorised, len(runs)))


def losses(runs: pd.DataFrame, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """(run,) losses and returns.

    Raises:
        UserError: they cannot be compared.

    """
    if loss not in runs:
        raise UserError(f"the table has no column {loss!r}; it has {', '.join(map(str, runs.columns))}")
    x, y = pd.to_numeric(runs[loss], errors="coerce").to_numpy(float), runs["value"].to_numpy(float)
    if not np.isfinite(x).all():
        raise UserError(f"column {loss!r} is no number in {int((~np.isfinite(x)).sum())} of {len(x)} runs")
    if len(x) < FEWEST:
        raise UserError(f"{len(x)} run(s) with returns; loss against return needs at least {FEWEST}")
    for name, values in ((loss, x), ("return", y)):
        if np.ptp(values) == 0:
            raise UserError(f"{name} is {values[0]:g} in every run; a relation needs it to vary")
    return x, y


def correlation(
    x: np.ndarray, y: np.ndarray, cluster: np.ndarray, generator: np.random.Generator, draws: int = DRAWS
) -> Correlation:
    """Rank correlation of x (run,) and y (run,) with a percentile interval over clusters (run,)."""
    number = np.unique(cluster, return_inverse=True)[1]
    count = int(number.max()) + 1
    times = generator.multinomial(count, np.full(count, 1 / count), size=draws)[:, number]
    found = spearman(x, y, times)
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if np.isfinite(found).any() else (-1.0, 1.0)
    whole = float(spearman(x, y, np.ones((1, len(x))))[0])
    return Correlation(len(x), count, whole, float(low), float(high), float(kendalltau(x, y).statistic))


def spearman(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(draw,) rank correlation of tables in which row i stands ``times`` (draw, run) times.

    No number where one side is constant.
    """
    a, b = _ranks(x, times), _ranks(y, times)
    square_a, square_b, product = ((times * values).sum(-1) for values in (a**2, b**2, a * b))
    scale = np.sqrt(square_a * square_b)
    return np.asarray(product / np.where(scale > 0, scale, np.nan))


def _ranks(x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(draw, run) mean ranks, less their mean."""
    group = np.unique(x, return_inverse=True)[1]
    size = times @ (group[:, None] == np.arange(group.max() + 1))
    return (np.cumsum(size, axis=-1) - size / 2)[:, group] - times.sum(-1, keepdims=True) / 2


def memorisation(runs: pd.DataFrame) -> tuple[int, float]:
    """Number of runs that ended above their best loss by more than a share of the range of losses, and that share."""
    if not {"loss", "loss_best"} <= set(runs.columns):
        return 0, 0.0
    last, best = (pd.to_numeric(runs[name], errors="coerce").to_numpy(float) for name in ("loss", "loss_best"))
    excess = MARGIN * float(np.nanmax(last) - np.nanmin(best)) if np.isfinite(last).any() else 0.0
    return int((last - best > excess).sum()), excess


def _warnings(every: Correlation, better: Correlation | None, memorised: int, runs: int) -> tuple[str, ...]:
    said = []
    if every.verdict == CANNOT_TELL:
        said.append(
            f"cannot tell whether the loss predicts the return: {every.configurations} configurations, {ENOUGH} needed"
        )
    elif every.verdict != PREDICTS:
        said.append(f"the loss {every.verdict}: rank correlation {_span(every)}")
    if better is None or better.verdict == CANNOT_TELL:
        said.append("cannot tell whether the loss still predicts the return among the better half of the runs")
    elif better.verdict != PREDICTS:
        said.append(f"among the {better.runs} runs of lowest loss, the loss {better.verdict}: {_span(better)}")
    if memorised:
        said.append(
            f"{memorised} of {runs} runs ended above their lowest loss by more than {MARGIN:.0%} of the range: they "
            "were trained beyond it, and their return belongs to the last loss"
        )
    return tuple(said)


def _span(found: Correlation) -> str:
    return f"{found.spearman:.2f} [{found.low:.2f}, {found.high:.2f}]"
