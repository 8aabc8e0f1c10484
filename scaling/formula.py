"""Laws written as formulas; their derivatives come from :mod:`scaling.jet`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from scaling import jet
from scaling.jet import Jet
from scaling.law import Expansion, Parameter

Jets = Mapping[str, Jet]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Formula:
    """A law given by its log prediction."""

    name: str
    equation: str
    inputs: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    log_loss: Callable[[Jets, Arrays], Jet]
    """Log loss from the parameters by name and the logarithms of the inputs, (row,) each."""
    to_natural: Callable[[Arrays, Mapping[str, float]], dict[str, np.ndarray]]
    """Natural parameters from fitted ones by name, and the inputs' centres."""
    summands: tuple[str, ...] = ()
    uncentred: tuple[str, ...] = ()
    """Inputs that the formula needs on their own scale."""

    def bind(self, log_x: Arrays, centre: Mapping[str, float], rows: int) -> "FormulaSurface":
        """The law over the rows of a table."""
        x = {name: log_x[name] + (centre[name] if name in self.uncentred else 0.0) for name in self.inputs}
        return FormulaSurface(self, x, rows)

    def natural(self, theta: np.ndarray, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Parameters on their natural scales."""
        return self.to_natural({p.name: theta[..., index] for index, p in enumerate(self.parameters)}, centre)


@dataclass(frozen=True, eq=False)
class FormulaSurface:
    """A formula over fixed inputs."""

    law: Formula
    x: Arrays
    rows: int

    def value(self, theta: np.ndarray) -> np.ndarray:
        """Log loss, (problem, row)."""
        columns = {p.name: Jet(theta[:, i, None], {}, {}) for i, p in enumerate(self.law.parameters)}
        return np.broadcast_to(self.law.log_loss(columns, self.x).value, (len(theta), self.rows))

    def expand(self, theta: np.ndarray) -> Expansion:
        """Log loss with derivatives."""
        shape = (len(theta), self.rows)
        columns = {p.name: jet.variable(theta[:, i, None], i) for i, p in enumerate(self.law.parameters)}
        found = self.law.log_loss(columns, self.x)
        g = np.zeros((len(theta), theta.shape[1], self.rows))
        for place, values in found.first.items():
            g[:, place] = values

        def contract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            hessian = np.matmul(g * a[:, None], g.transpose(0, 2, 1))
            for (i, j), values in found.second.items():
                total = (b * values).sum(axis=1)
                hessian[:, i, j] += total
                if i != j:
                    hessian[:, j, i] += total
            return hessian

        return Expansion(np.broadcast_to(found.value, shape), g, contract)
