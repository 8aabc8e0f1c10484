"""Smoothly broken power law in data with one break (Caballero et al. 2022, Eq. 1, n = 1).

L = E + B D^-beta (1 + (D / d_1)^(1 / f_1))^(-c_1 f_1)

Below the break d_1 the slope is beta, above it beta + c_1; f_1 says how gradual the break is. Map another column onto
D to have the law along it.
"""

from collections.abc import Mapping

import numpy as np

from scaling.formula import Arrays, Formula, Jets
from scaling.jet import Jet, exp, logaddexp, softplus
from scaling.law import EXPONENT, SHAPE, Parameter, coefficient, exponent


def _log_loss(p: Jets, x: Arrays) -> Jet:
    f = exp(p["log_f"])
    bend = p["c_1"] * f * softplus((x["D"] - p["log_d"]) / f)
    return logaddexp(p["log_E"], p["log_B"] - p["beta"] * x["D"] - bend)


def _natural(p: Arrays, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
    scales = {"E": np.exp(p["log_E"]), "B": np.exp(p["log_B"] + p["beta"] * centre["D"])}
    breaks = {"d_1": np.exp(p["log_d"] + centre["D"]), "f_1": np.exp(p["log_f"])}
    return scales | {"beta": p["beta"], "c_1": p["c_1"]} | breaks


LAW = Formula(
    "broken",
    "L = E + B D^-beta (1 + (D/d_1)^(1/f_1))^(-c_1 f_1)",
    ("D",),
    (
        coefficient("E"),
        coefficient("B"),
        exponent("beta"),
        Parameter("c_1", EXPONENT, -4.0, 10.0, (-0.6, 0.8)),
        Parameter("log_d", SHAPE, -12.0, 12.0, (-2.0, 2.0)),
        Parameter("log_f", SHAPE, -3.0, 2.0, (-2.0, 0.0)),
    ),
    _log_loss,
    _natural,
    summands=("E",),
)
