"""How far a fit can be trusted: bootstrap over configurations, and extrapolation to what was held out."""

from dataclasses import dataclass

import numpy as np

from scaling import newton
from scaling.errors import UserError
from scaling.fit import Data, Fit, fit, levels, problem_of, subset

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits of one law to resampled tables."""

    fit: Fit
    theta: np.ndarray
    """(draw, parameter), for centred inputs: the refits that converged."""
    failures: int
    """Refits that did not converge; they are left out."""

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """(draw,) for each parameter on its natural scale."""
        return self.fit.law.natural(self.theta, self.fit.data.centre)

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Loss, (draw, row), at inputs on their natural scale."""
        return self.fit.predict(inputs, self.theta)


def bootstrap(fitted: Fit, draws: int = DRAWS, seed: int = 0) -> Bootstrap:
    """Refit after drawing whole cells with replacement: the runs of a cell stay together.

    Each refit starts from the fitted parameters.

    Raises:
        UserError: fewer than two cells, or fewer than two refits that converge.

    """
    data, law = fitted.data, fitted.law
    cells = int(data.cell.max()) + 1
    if cells < 2:
        raise UserError("the table has a single configuration; an interval needs several")
    generator = np.random.default_rng(seed)
    times = generator.multinomial(cells, np.full(cells, 1 / cells), size=draws)
    weight = times[:, data.cell].astype(float)
    found = newton.solve(problem_of(law, data, fitted.delta), np.repeat(fitted.theta[None], draws, axis=0), weight)
    kept = found.converged
    if kept.sum() < 2:
        raise UserError(f"{kept.sum()} of {draws} bootstrap refits converged; this law has no interval on this table")
    return Bootstrap(fitted, found.theta[kept], failures=int((~kept).sum()))


def percentile(draws: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the percentile interval along the first axis."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


@dataclass(frozen=True)
class Extrapolation:
    """How a law fares on the largest level of an input when fitted to the rest."""

    law: str
    axis: str
    rows: int
    """Rows held out."""
    log_rmse: float
    """Root mean square of log loss minus its prediction."""
    bias: float
    """Mean of the same difference; positive where the law promised too low a loss."""


def extrapolate(fitted: Fit, axis: str) -> Extrapolation | None:
    """Leave out the rows at the largest level of ``axis`` and predict them; nothing if too few remain."""
    held_out = _top_level(fitted.data, axis)
    if (~held_out).sum() < len(fitted.law.theta) or held_out.all():
        return None
    rest = fit(fitted.law, subset(fitted.data, ~held_out), fitted.delta)
    inputs = {name: np.exp(x[held_out] + fitted.data.centre[name]) for name, x in fitted.data.log_x.items()}
    error = fitted.data.log_loss[held_out] - np.log(rest.predict(inputs))
    return Extrapolation(
        fitted.law.name, axis, int(held_out.sum()), float(np.sqrt(np.mean(error**2))), float(error.mean())
    )


def _top_level(data: Data, axis: str) -> np.ndarray:
    level = levels(data, axis)
    return level == level.max()
