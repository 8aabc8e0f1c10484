"""What a law is: a prediction of log loss from the logarithms of its inputs, with exact first and second derivatives.

A :class:`Law` knows its parameters; bound to the inputs of a table it becomes a :class:`Surface`, which is all that
the solver sees. Coefficients are fitted as logarithms, for inputs whose logarithms are centred.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

LOWEST_COEFFICIENT, HIGHEST_COEFFICIENT = -45.0, 45.0
"""How far, in natural logarithms, a centred coefficient may lie from the losses. At the lower end it is zero."""
LOWEST_EXPONENT, HIGHEST_EXPONENT = -4.0, 10.0
"""Negative exponents are admitted, so that a loss that grows with an input is seen and flagged instead of cut off."""

COEFFICIENT, EXPONENT, SHAPE = "coefficient", "exponent", "shape"


@dataclass(frozen=True)
class Parameter:
    """One fitted number."""

    name: str
    kind: str
    """``coefficient`` (logarithm of a positive factor of a term of the loss), ``exponent`` or ``shape``."""
    low: float
    high: float
    start: tuple[float, float]
    """Range from which random starts are drawn; for coefficients, below the median log loss."""


def coefficient(name: str) -> Parameter:
    """``log_<name>``, a positive factor."""
    return Parameter(f"log_{name}", COEFFICIENT, LOWEST_COEFFICIENT, HIGHEST_COEFFICIENT, (-4.0, 0.0))


def exponent(name: str, low: float = LOWEST_EXPONENT) -> Parameter:
    """A power of an input."""
    return Parameter(name, EXPONENT, low, HIGHEST_EXPONENT, (0.05, 1.2))


@dataclass(frozen=True, eq=False)
class Expansion:
    """Log loss and its derivatives at a batch of parameter vectors."""

    value: np.ndarray
    """f, (problem, row)."""
    gradient: np.ndarray
    """df / d theta, (problem, parameter, row)."""
    contract: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(a, b) -> sum_i a_i g_i g_i^T + b_i Hessian(f_i), (problem, parameter, parameter); a, b are (problem, row)."""


class Surface(Protocol):
    """A law over fixed inputs."""

    def value(self, theta: np.ndarray) -> np.ndarray:
        """Log loss, (problem, row), for parameters (problem, parameter)."""

    def expand(self, theta: np.ndarray) -> Expansion:
        """Log loss with derivatives."""


class Law(Protocol):
    """A functional form."""

    name: str
    equation: str
    inputs: tuple[str, ...]
    """Columns that the law needs."""
    parameters: tuple[Parameter, ...]
    summands: tuple[str, ...]
    """Coefficients whose terms add up to the loss, so that each could be zero."""

    def bind(self, log_x: Mapping[str, np.ndarray], centre: Mapping[str, float], rows: int) -> Surface:
        """The law over ``rows`` rows with centred logarithms ``log_x`` of the inputs, (row,) each."""

    def natural(self, theta: np.ndarray, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Parameters on their natural scales from centred ones (..., parameter); keeps leading axes."""


def names(law: Law) -> tuple[str, ...]:
    """Names of the fitted parameters, in order."""
    return tuple(parameter.name for parameter in law.parameters)


def bounds(law: Law, log_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest parameters, (parameter,) each."""
    shift = np.array([p.kind == COEFFICIENT for p in law.parameters], float)
    low = np.array([p.low for p in law.parameters]) + shift * float(log_loss.min())
    high = np.array([p.high for p in law.parameters]) + shift * float(log_loss.max())
    return low, high


def starts(law: Law, count: int, log_loss: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(start, parameter): exponents at random; the loss at the centre of the data shared out over the terms."""
    low = np.array([p.start[0] for p in law.parameters])
    high = np.array([p.start[1] for p in law.parameters])
    theta = generator.uniform(low, high, (count, len(low)))
    terms = [index for index, p in enumerate(law.parameters) if p.kind == COEFFICIENT]
    shares = generator.dirichlet(np.ones(len(terms)), count) if terms else np.ones((count, 0))
    theta[:, terms] = float(np.median(log_loss)) + np.log(np.maximum(shares, 1e-6))
    return theta
