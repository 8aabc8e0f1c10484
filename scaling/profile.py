"""How sharply the data determine one exponent: the objective with that exponent held, all else refitted."""

from dataclasses import dataclass, replace

import numpy as np

from scaling import newton
from scaling.fit import Fit, problem_of
from scaling.intervals import Bootstrap
from scaling.law import EXPONENT, names

POINTS = 41


@dataclass(frozen=True, eq=False)
class Profile:
    """The lowest objective for each value of an exponent."""

    name: str
    value: np.ndarray
    objective: np.ndarray
    """Sum over rows; infinite where the fit did not converge."""
    rows: int

    @property
    def deviance(self) -> np.ndarray:
        """2 n log(objective / lowest) for a Laplace likelihood with its scale profiled out, zero at the best."""
        return 2 * self.rows * np.log(self.objective / self.objective.min())


def exponents(fitted: Fit) -> list[str]:
    """Exponents of a law as they are fitted."""
    return [parameter.name for parameter in fitted.law.parameters if parameter.kind == EXPONENT]


def profile(draws: Bootstrap, name: str) -> Profile:
    """The profile of one exponent over the range of its bootstrap draws, walked outwards from the fit."""
    fitted = draws.fit
    place = names(fitted.law).index(name)
    best = fitted.theta[place]
    low, high = np.quantile(draws.theta[:, place], [0.005, 0.995])
    reach = max(high - low, 1e-6)
    values = np.linspace(low - 0.25 * reach, high + 0.25 * reach, POINTS)
    held = replace(problem_of(fitted.law, fitted.data, fitted.how), fixed=(place,))
    objective = np.full(POINTS, np.inf)
    ones = np.ones((1, fitted.data.rows))
    middle = int(np.argmin(np.abs(values - best)))
    for walk in (range(middle, POINTS), range(middle - 1, -1, -1)):
        theta = fitted.theta.copy()
        for index in walk:
            theta[place] = values[index]
            found = newton.solve(held, theta[None], ones, near=True)
            if found.gradient_norm[0] <= newton.TOLERANCE:
                objective[index], theta = found.objective[0], found.theta[0]
    return Profile(name, values, objective, fitted.data.rows)
