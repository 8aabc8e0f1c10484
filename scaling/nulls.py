"""Does model size matter at all? A test that it does nothing, and a test that it does next to nothing.

That size does nothing is A = 0, on the boundary, where alpha has no value: a likelihood ratio has no chi-square
distribution there. Its distribution is simulated instead, from the law without N and the table's own noise
(parametric bootstrap, Davison & Hinkley 1997, section 4.2.3). The second is the two one-sided tests of Schuirmann
(1987): the effect of the whole observed range of N lies within a margin.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scaling import newton
from scaling.data import Data
from scaling.fit import Fit, fit, load_law, surface_of
from scaling.intervals import Bootstrap, percentile
from scaling.law import Law, starts as random_starts
from scaling.objective import Objective
from scaling.variance import components

SIMULATIONS = 499
STARTS, ROUGH = 4, 40
"""Starts of each fit, and steps at most: the ratio needs the lowest objective, not its certificate."""
LEVEL = 0.05
FULL = {"N": "additive", "D": "additive"}
WITHOUT = {"N": "power_d", "D": "power_n"}


@dataclass(frozen=True)
class NullTest:
    """Whether an input of the law does anything."""

    input: str
    p: float
    """Of the hypothesis that it does nothing; small means that it matters."""
    effect: float
    """Log loss at the smallest level minus at the largest, at the largest level of the other input."""
    low: float
    high: float
    """90 % interval of the effect."""
    margin: float
    """What counts as nothing: one standard deviation of a run, unless given."""

    @property
    def matters(self) -> bool:
        """The hypothesis of no effect is rejected."""
        return self.p < LEVEL

    @property
    def negligible(self) -> bool:
        """The effect is shown to lie within the margin."""
        return -self.margin < self.low and self.high < self.margin


def noise(data: Data, residual: np.ndarray, parameters: int) -> tuple[float, float]:
    """Standard deviations of log loss between runs and between subsets."""
    found = components(data, residual)
    if found.seed is None:
        return float(np.sqrt((residual**2).sum() / max(data.rows - parameters, 1))), 0.0
    return found.seed, found.subset or 0.0


def simulate(
    data: Data, mean: np.ndarray, sd: tuple[float, float], count: int, generator: np.random.Generator
) -> np.ndarray:
    """Log losses, (world, row), around ``mean`` (row,): a deviation per run and one per subset of the data."""
    losses = mean + sd[0] * generator.standard_normal((count, data.rows))
    frame = data.frame
    if sd[1] > 0 and {"fraction", "draw"} <= set(frame.columns):
        subset = frame.groupby(["fraction", "draw"], sort=False).ngroup().to_numpy()
        shared = sd[1] * generator.standard_normal((count, int(subset.max()) + 1))[:, subset]
        losses += shared * (frame["fraction"] < 1).to_numpy()
    return losses


def size_test(
    draws: Bootstrap | None,
    data: Data,
    how: Objective,
    which: str = "N",
    margin: float | None = None,
    simulations: int = SIMULATIONS,
    seed: int = 0,
) -> NullTest:
    """Test that ``which`` does nothing, in the additive law.

    Args:
        draws: bootstrap of the additive law, for the interval of the effect; nothing leaves the interval infinite.
        data: rows with N and D.
        how: the objective of both fits.
        which: N or D.
        margin: of log loss, for the test of equivalence.
        simulations: worlds without an effect.
        seed: of the simulation.

    """
    generator = np.random.default_rng(seed)
    full, without = load_law(FULL[which]), load_law(WITHOUT[which])
    null = fit(without, data, how)
    alternative = draws.fit if draws else fit(full, data, how)
    sd = noise(data, alternative.residuals, len(alternative.theta))
    begin = np.vstack([alternative.theta, random_starts(full, STARTS - 1, data.log_loss, generator)])
    mean = surface_of(without, data).value(null.theta[None])[0]
    worlds = np.vstack([data.log_loss, simulate(data, mean, sd, simulations, generator)])
    ratio = _lowest(without, data, how, null.theta[None], worlds) / _lowest(full, data, how, begin, worlds)
    p = (1 + int((ratio[1:] >= ratio[0]).sum())) / (1 + simulations)
    effect, low, high = _effect(draws, alternative, which)
    return NullTest(which, p, effect, low, high, margin if margin is not None else float(np.hypot(*sd)))


def _lowest(law: Law, data: Data, how: Objective, begin: np.ndarray, worlds: np.ndarray) -> np.ndarray:
    """(world,) lowest objective from a few starts each."""
    problem = newton.problem(law, surface_of(law, data), np.repeat(worlds, len(begin), axis=0), how)
    theta = np.tile(begin, (len(worlds), 1))
    found = newton.solve(problem, theta, np.ones((len(theta), data.rows)), near=True, steps=ROUGH)
    return np.maximum(found.objective.reshape(len(worlds), -1).min(axis=1), 1e-300)


def _effect(draws: Bootstrap | None, fitted: Fit, which: str) -> tuple[float, float, float]:
    frame, other = fitted.data.frame, "D" if which == "N" else "N"
    ends = np.array([frame[which].min(), frame[which].max()], float)
    inputs = {which: ends, other: np.full(2, float(frame[other].max()))}

    def difference(losses: np.ndarray) -> np.ndarray:
        return np.log(losses[..., 0]) - np.log(losses[..., 1])

    effect = float(difference(fitted.predict(inputs)))
    if draws is None:
        return effect, -np.inf, np.inf
    low, high = percentile(difference(draws.predict(inputs)), 0.90)
    return effect, float(low), float(high)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm 1979): reject those below the level."""
    ranked = sorted(p, key=lambda name: p[name])
    adjusted, highest = {}, 0.0
    for place, name in enumerate(ranked):
        highest = max(highest, min(1.0, (len(p) - place) * p[name]))
        adjusted[name] = highest
    return adjusted
