"""Additive law whose two terms share an outer exponent (Busbridge et al. 2025, "Distillation scaling laws", Eq. 1).

L = E + (A N^-alpha + B D^-beta)^gamma

With gamma = 1 it is the additive law; with gamma below 1 the larger of the two shortages dominates. Fitted with the
outer exponents a = alpha gamma and b = beta gamma, and with coefficients that are losses.
"""

from collections.abc import Mapping

import numpy as np

from scaling.formula import Arrays, Formula, Jets
from scaling.jet import Jet, exp, logaddexp
from scaling.law import SHAPE, Parameter, coefficient, exponent


def _log_loss(p: Jets, x: Arrays) -> Jet:
    gamma = exp(p["log_gamma"])
    n, d = p["log_A"] - p["outer_alpha"] * x["N"], p["log_B"] - p["outer_beta"] * x["D"]
    return logaddexp(p["log_E"], gamma * logaddexp(n / gamma, d / gamma))


def _natural(p: Arrays, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
    gamma = np.exp(p["log_gamma"])
    return {
        "E": np.exp(p["log_E"]),
        "A": np.exp((p["log_A"] + p["outer_alpha"] * centre["N"]) / gamma),
        "B": np.exp((p["log_B"] + p["outer_beta"] * centre["D"]) / gamma),
        "alpha": p["outer_alpha"] / gamma,
        "beta": p["outer_beta"] / gamma,
        "gamma": gamma,
    }


LAW = Formula(
    "coupled",
    "L = E + (A N^-alpha + B D^-beta)^gamma",
    ("N", "D"),
    (
        coefficient("E"),
        coefficient("A"),
        coefficient("B"),
        exponent("outer_alpha"),
        exponent("outer_beta"),
        Parameter("log_gamma", SHAPE, -4.0, 3.0, (-0.7, 0.7)),
    ),
    _log_loss,
    _natural,
    summands=("E",),
)
