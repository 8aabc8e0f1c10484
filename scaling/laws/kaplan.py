"""Joint law of model size and data without an irreducible term (Kaplan et al. 2020, Eq. 1.5).

L = [ (N_c / N)^(alpha_N / alpha_D) + D_c / D ]^alpha_D

Fitted as log L = s LSE((a - alpha_N log N) / s, (b - s log D) / s) with s = alpha_D, so that exp(a) and exp(b) are
losses.
"""

from collections.abc import Mapping

import numpy as np

from scaling.formula import Arrays, Formula, Jets
from scaling.jet import Jet, logaddexp
from scaling.law import EXPONENT, Parameter, coefficient, exponent


def _log_loss(p: Jets, x: Arrays) -> Jet:
    s = p["alpha_D"]
    return s * logaddexp((p["log_A"] - p["alpha_N"] * x["N"]) / s, p["log_B"] / s - x["D"])


def _natural(p: Arrays, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
    scales = {
        "N_c": np.exp(centre["N"] + p["log_A"] / p["alpha_N"]),
        "D_c": np.exp(centre["D"] + p["log_B"] / p["alpha_D"]),
    }
    return scales | {"alpha_N": p["alpha_N"], "alpha_D": p["alpha_D"]}


LAW = Formula(
    "kaplan",
    "L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D",
    ("N", "D"),
    (
        coefficient("A"),
        coefficient("B"),
        exponent("alpha_N"),
        Parameter("alpha_D", EXPONENT, 1e-3, 10.0, (0.05, 1.2)),
    ),
    _log_loss,
    _natural,
)
