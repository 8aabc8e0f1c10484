"""What a fit minimises: per row, a function of the predicted log loss f, with its derivatives by f.

    log-huber   Huber_delta(log L - f),  Huber_delta(r) = r^2/2 if |r| <= delta else delta (|r| - delta/2)
    log-mse     (log L - f)^2 / 2
    mse         (L - exp f)^2 / 2

(Hoffmann et al. 2022, Appendix D.2, for the first.) The objective of a fit is the **sum** over rows. The solver works
with the sum divided by ``scale``, which makes it of order one.
"""

from dataclasses import dataclass

import numpy as np

LOG_HUBER, LOG_MSE, MSE = "log-huber", "log-mse", "mse"
KINDS = (LOG_HUBER, LOG_MSE, MSE)
DELTA = 1e-3
"""Residuals of log loss beyond this count linearly."""


@dataclass(frozen=True)
class Objective:
    """A loss for losses."""

    kind: str = LOG_HUBER
    delta: float = DELTA
    """Of log-huber; the others have none."""

    def widened(self, factor: float) -> "Objective":
        """The same with a larger delta."""
        return Objective(self.kind, self.delta * factor)

    def scale(self, y: np.ndarray) -> float:
        """What the solver divides by, from the log losses y."""
        if self.kind == LOG_HUBER:
            return self.delta
        return float(np.exp(2 * np.median(y))) if self.kind == MSE else 1.0

    def value(self, y: np.ndarray, f: np.ndarray) -> np.ndarray:
        """Per row; not scaled."""
        if self.kind == MSE:
            return 0.5 * (np.exp(y) - np.exp(f)) ** 2
        r = np.abs(y - f)
        if self.kind == LOG_MSE:
            return 0.5 * r * r
        inside = np.minimum(r, self.delta)
        return inside * (r - 0.5 * inside)

    def derivatives(self, y: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second derivative by f, per row; not scaled."""
        if self.kind == MSE:
            predicted = np.exp(f)
            slope = (predicted - np.exp(y)) * predicted
            return slope, slope + predicted * predicted
        r = f - y
        if self.kind == LOG_MSE:
            return r, np.ones_like(r)
        return np.clip(r, -self.delta, self.delta), (np.abs(r) <= self.delta).astype(float)
