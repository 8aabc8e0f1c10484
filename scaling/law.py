"""Sums of power laws, the form that most scaling laws have, with exact derivatives.

    log L = LSE_k T_k,   T_k = c_k - sum_j p_kj log x_j

Every T_k is linear in the parameters, T = M theta with a design M that depends on the inputs alone. With
w = softmax(T):  grad log L = g = sum_k w_k M_k  and  Hessian of log L = sum_k w_k M_k M_k^T - g g^T.
Coefficients are positive by construction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LARGEST_EXPONENT = 4.0
COEFFICIENT_RANGE = 18.0
"""How far, in natural logarithms, a centred coefficient may lie from the losses: a factor of e^18 either way."""
SMALLEST_FLOOR = 1e-4
"""Lowest irreducible loss, as a share of the smallest loss: below it nothing could be told from zero."""


@dataclass(frozen=True)
class PowerSum:
    """A law: one term per coefficient; a term without powers is the irreducible loss."""

    name: str
    equation: str
    terms: Mapping[str, Mapping[str, str]]
    """Coefficient name to {input: exponent name}; ``{"E": {}, "A": {"N": "alpha"}}`` is E + A N^-alpha."""

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the positive coefficients."""
        return tuple(self.terms)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents; a name used in two terms is one parameter."""
        return tuple(dict.fromkeys(exponent for powers in self.terms.values() for exponent in powers.values()))

    @property
    def theta(self) -> tuple[str, ...]:
        """Names of the parameters: logarithms of the coefficients, then exponents."""
        return (*(f"log_{name}" for name in self.coefficients), *self.exponents)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that the law needs."""
        return tuple(dict.fromkeys(name for powers in self.terms.values() for name in powers))

    def design(self, log_x: Mapping[str, np.ndarray]) -> np.ndarray:
        """M, (term, row, parameter), at inputs given by their natural logarithms, (row,) each."""
        rows = len(next(iter(log_x.values())))
        m = np.zeros((len(self.terms), rows, len(self.theta)))
        for k, powers in enumerate(self.terms.values()):
            m[k, :, k] = 1.0
            for name, exponent in powers.items():
                m[k, :, self.theta.index(exponent)] -= log_x[name]
        return m

    def bounds(self, log_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest parameters, (parameter,) each, for centred inputs."""
        count = len(self.coefficients)
        below = [COEFFICIENT_RANGE if powers else -float(np.log(SMALLEST_FLOOR)) for powers in self.terms.values()]
        low = [float(log_loss.min()) - reach for reach in below] + [0.0] * len(self.exponents)
        high = [float(log_loss.max()) + COEFFICIENT_RANGE] * count + [LARGEST_EXPONENT] * len(self.exponents)
        return np.array(low), np.array(high)

    def starts(self, count: int, log_loss: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(start, parameter): the loss at the centre of the data is shared out over the terms at random."""
        shares = generator.dirichlet(np.ones(len(self.coefficients)), count)
        coefficients = float(np.median(log_loss)) + np.log(np.maximum(shares, 1e-6))
        return np.hstack([coefficients, generator.uniform(0.05, 1.2, (count, len(self.exponents)))])

    def natural(self, theta: np.ndarray, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Parameters on their natural scales, from those of centred inputs; keeps leading axes."""
        values: dict[str, np.ndarray] = {}
        for k, (name, powers) in enumerate(self.terms.items()):
            shift = sum(theta[..., self.theta.index(exponent)] * centre[x] for x, exponent in powers.items())
            values[name] = np.exp(theta[..., k] + shift)
        return values | {name: theta[..., self.theta.index(name)] for name in self.exponents}


def log_predict(theta: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Log L, (..., row), for parameters (..., parameter)."""
    return weights(theta, design)[0]


def weights(theta: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log L, (..., row), and the terms' shares w, (..., term, row)."""
    terms, rows, parameters = design.shape
    t = (theta @ design.reshape(terms * rows, parameters).T).reshape(*theta.shape[:-1], terms, rows)
    top = t.max(axis=-2, keepdims=True)
    raw = np.exp(t - top)
    total = raw.sum(axis=-2, keepdims=True)
    return (top + np.log(total))[..., 0, :], raw / total


def gradient(w: np.ndarray, design: np.ndarray) -> np.ndarray:
    """g, (problem, row, parameter), from the shares w (problem, term, row)."""
    return np.matmul(w.transpose(2, 0, 1), design.transpose(1, 0, 2)).transpose(1, 0, 2)
