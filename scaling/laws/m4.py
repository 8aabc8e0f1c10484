"""Bounded law in data, for scores (Alabdulmohsin et al. 2022, "Revisiting neural scaling laws", M4).

(L - E) / (L_0 - L)^gamma = B D^-beta

L lies between E and L_0, the loss of a guess; with gamma = 0 it is a power law. Made for errors that are bounded, such
as 1 - score. The equation is solved for s in L = E + (L_0 - E) s, with s = sigmoid(t):

    log s - gamma log(1 - s) = b - beta log D.

Map another column onto D to have the law along it.
"""

from collections.abc import Mapping

import numpy as np

from scaling.formula import Arrays, Formula, Jets
from scaling.jet import Jet, exp, logaddexp, sigmoid_of, softplus, solve
from scaling.law import SHAPE, Parameter, coefficient, exponent


def _log_loss(p: Jets, x: Arrays) -> Jet:
    gamma, right = exp(p["log_gamma"]), p["b"] - p["beta"] * x["D"]
    g = gamma.value
    t = np.where(right.value > 0, right.value / g, right.value)
    for _ in range(60):
        step = (np.logaddexp(0, -t) - g * np.logaddexp(0, t) + right.value) / (sigmoid_of(-t) + g * sigmoid_of(t))
        t = t + step
        if np.abs(step).max() < 1e-13 * (1 + np.abs(t).max()):
            break
    root = solve(
        lambda u: gamma * softplus(u) - softplus(-u) - right,
        lambda u: sigmoid_of(-u) + g * sigmoid_of(u),
        t,
    )
    return logaddexp(p["log_E"], p["log_range"] - softplus(-root))


def _natural(p: Arrays, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
    gamma, spread = np.exp(p["log_gamma"]), np.exp(p["log_range"])
    floor = np.exp(p["log_E"])
    scale = np.exp(p["b"] + p["beta"] * centre["D"] + (1 - gamma) * p["log_range"])
    return {"E": floor, "L_0": floor + spread, "B": scale, "beta": p["beta"], "gamma": gamma}


LAW = Formula(
    "m4",
    "(L - E) / (L_0 - L)^gamma = B D^-beta",
    ("D",),
    (
        coefficient("E"),
        coefficient("range"),
        Parameter("b", SHAPE, -40.0, 40.0, (-2.0, 2.0)),
        exponent("beta"),
        Parameter("log_gamma", SHAPE, -4.0, 3.0, (-1.0, 1.0)),
    ),
    _log_loss,
    _natural,
    summands=("E",),
)
