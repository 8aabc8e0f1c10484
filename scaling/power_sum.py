"""Sums of power laws, the form that most scaling laws have.

    log L = LSE_k T_k,   T_k = c_k - sum_j p_kj log x_j

Every T_k is linear in the parameters. With w = softmax(T) and M_k = dT_k / d theta,

    g = sum_k w_k M_k,   Hessian of log L = sum_k w_k M_k M_k^T - g g^T.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scaling.law import LOWEST_EXPONENT, Expansion, Parameter, coefficient, exponent


@dataclass(frozen=True)
class PowerSum:
    """A law: one term per coefficient; a term without powers is the irreducible loss."""

    name: str
    equation: str
    terms: Mapping[str, Mapping[str, str]]
    """Coefficient name to {input: exponent name}; ``{"E": {}, "A": {"N": "alpha"}}`` is E + A N^-alpha.

    A name used in two terms is one parameter.
    """
    rising: tuple[str, ...] = ()
    """Exponents that stand with a positive sign: the term grows with the input."""
    positive: bool = False
    """Whether exponents must not be negative, because terms could change places otherwise."""

    @property
    def summands(self) -> tuple[str, ...]:
        """Names of the coefficients."""
        return tuple(self.terms)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents, each once."""
        return tuple(dict.fromkeys(name for powers in self.terms.values() for name in powers.values()))

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Logarithms of the coefficients, then exponents."""
        low = 0.0 if self.positive else LOWEST_EXPONENT
        return (*map(coefficient, self.summands), *(exponent(name, low) for name in self.exponents))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that the law needs."""
        return tuple(dict.fromkeys(name for powers in self.terms.values() for name in powers))

    def bind(self, log_x: Mapping[str, np.ndarray], centre: Mapping[str, float], rows: int) -> "PowerSurface":
        """The law over the rows of a table."""
        place = {name: len(self.terms) + index for index, name in enumerate(self.exponents)}
        slopes = []
        for powers in self.terms.values():
            signs = {e: 1.0 if e in self.rising else -1.0 for e in powers.values()}
            slopes.append([(place[e], signs[e] * log_x[x]) for x, e in powers.items()])
        return PowerSurface(tuple(map(tuple, slopes)), rows, len(self.terms) + len(place))

    def natural(self, theta: np.ndarray, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Coefficients and exponents on their natural scales."""
        place = {name: len(self.terms) + index for index, name in enumerate(self.exponents)}
        values: dict[str, np.ndarray] = {}
        for k, (name, powers) in enumerate(self.terms.items()):
            shift = np.zeros(theta.shape[:-1])
            for x, e in powers.items():
                shift = shift + (-1.0 if e in self.rising else 1.0) * theta[..., place[e]] * centre[x]
            values[name] = np.exp(theta[..., k] + shift)
        return values | {name: theta[..., index] for name, index in place.items()}


@dataclass(frozen=True, eq=False)
class PowerSurface:
    """A sum of power laws over fixed inputs."""

    slopes: tuple[tuple[tuple[int, np.ndarray], ...], ...]
    """Per term: (place of the exponent, dT / d exponent (row,)) for each of its powers."""
    rows: int
    parameters: int

    def value(self, theta: np.ndarray) -> np.ndarray:
        """Log loss, (problem, row)."""
        return self._shares(theta)[0]

    def expand(self, theta: np.ndarray) -> Expansion:
        """Log loss with derivatives."""
        value, w = self._shares(theta)
        terms = len(self.slopes)
        g = np.zeros((len(theta), self.parameters, self.rows))
        g[:, :terms] = w
        for k, powers in enumerate(self.slopes):
            for place, x in powers:
                g[:, place] += w[:, k] * x

        def contract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            hessian = np.matmul(g * (a - b)[:, None], g.transpose(0, 2, 1))
            for k, powers in enumerate(self.slopes):
                spread = b * w[:, k]
                hessian[:, k, k] += spread.sum(axis=1)
                for place, x in powers:
                    slope = spread @ x
                    hessian[:, k, place] += slope
                    hessian[:, place, k] += slope
                    for other, z in powers:
                        hessian[:, place, other] += spread @ (x * z)
            return hessian

        return Expansion(value, g, contract)

    def _shares(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log loss, (problem, row), and each term's share of the loss, (problem, term, row)."""
        t = np.empty((len(theta), len(self.slopes), self.rows))
        for k, powers in enumerate(self.slopes):
            t[:, k] = theta[:, k, None]
            for place, x in powers:
                t[:, k] += theta[:, place, None] * x
        top = t.max(axis=1, keepdims=True)
        t -= top
        np.exp(t, out=t)
        total = t.sum(axis=1)
        t /= total[:, None]
        return top[:, 0] + np.log(total), t
