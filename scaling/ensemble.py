"""Several bootstrapped laws as one: draws in proportion to weights, so that the uncertainty of the form is carried."""

from dataclasses import dataclass

import numpy as np

from scaling.data import Data
from scaling.fit import Fit
from scaling.intervals import DRAWS, Bootstrap, bootstrap
from scaling.selection import Selection

ANSWERABLE = {"N", "D", "exposures"}
"""Inputs that are known at sizes nobody has run: passes over the data follow from D, as updates stay fixed."""
LEAST = 0.01
"""Laws with less weight are left out."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Bootstraps of one table with weights."""

    members: tuple[Bootstrap, ...]
    weights: tuple[float, ...]

    @property
    def data(self) -> Data:
        """The rows behind it."""
        return self.members[0].fit.data

    @property
    def lead(self) -> Bootstrap:
        """The member with the largest weight."""
        return self.members[int(np.argmax(self.weights))]

    @property
    def fits(self) -> tuple[Fit, ...]:
        """The members' fits."""
        return tuple(member.fit for member in self.members)

    def loss(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Mean loss, (draw, point), at points (N, D)."""
        total = max(DRAWS, *(len(member.theta) for member in self.members))
        inputs = self._inputs(n, d)
        parts = []
        for member, weight in zip(self.members, self.weights, strict=True):
            rows = np.arange(max(1, round(weight * total))) % len(member.theta)
            parts.append(member.fit.predict(inputs, member.theta)[rows])
        return np.concatenate(parts)

    def estimate(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """(point,) averaged log-linearly over the members' fits."""
        inputs = self._inputs(n, d)
        logs = [weight * np.log(fit.predict(inputs)) for fit, weight in zip(self.fits, self.weights, strict=True)]
        return np.exp(np.sum(logs, axis=0))

    def _inputs(self, n: np.ndarray, d: np.ndarray) -> dict[str, np.ndarray]:
        inputs = {"N": np.asarray(n, float), "D": np.asarray(d, float)}
        frame = self.data.frame
        if "exposures" in self.data.log_x:
            inputs["exposures"] = float((frame["exposures"] * frame["D"]).median()) / inputs["D"]
        return inputs


def single(draws: Bootstrap) -> Ensemble:
    """One law alone."""
    return Ensemble((draws,), (1.0,))


def average(found: Selection, draws: int | None = None, seed: int = 0) -> Ensemble | None:
    """The surviving laws that can be asked about sizes nobody has run; nothing if there is none."""
    alive = [c for c in found.survivors if set(c.fit.law.inputs) <= ANSWERABLE and c.weight >= LEAST]
    if not alive:
        alive = [c for c in found.candidates if {"N", "D"} <= set(c.fit.law.inputs) <= ANSWERABLE][:1]
    if not alive:
        return None
    weights = np.array([max(c.weight, LEAST) for c in alive])
    members = tuple(bootstrap(c.fit, draws, seed) for c in alive)
    return Ensemble(members, tuple(weights / weights.sum()))
