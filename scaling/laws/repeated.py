"""Additive law for data seen several times (Muennighoff et al. 2023, "Scaling data-constrained language models").

L = E + A N'^-alpha + B D'^-beta                                  (their Eq. 5)
D' = U + U R_D (1 - exp(-(passes - 1) / R_D))                     (their Eq. 6, U unique transitions)
N' = U_N + U_N R_N (1 - exp(-(N / U_N - 1) / R_N)) where N > U_N  (likewise; N' = N otherwise)

U_N is the model size that the law without repetition would choose for U transitions (their Eq. 7, from Hoffmann et
al. 2022, Eq. 4): U_N = G (G U)^(beta / alpha) with G = (alpha A / (beta B))^(1 / (alpha + beta)).

``D`` is U and ``exposures`` the number of passes. DEVIATION: below one pass, the transitions seen stand for U.
"""

from collections.abc import Mapping

import numpy as np

from scaling.formula import Arrays, Formula, Jets
from scaling.jet import Jet, exp, expm1, log, logaddexp, where
from scaling.law import EXPONENT, SHAPE, Parameter, coefficient


def _worth(excess: Jet | np.ndarray, decay: Jet) -> Jet:
    """Log of 1 + R (1 - exp(-excess / R))."""
    return log(1.0 - decay * expm1(-(excess * exp(-log(decay)))))


def _log_loss(p: Jets, x: Arrays) -> Jet:
    alpha, beta = p["alpha"], p["beta"]
    repeats = np.maximum(np.expm1(x["exposures"]), 0.0)
    unique = x["D"] + np.minimum(x["exposures"], 0.0)
    log_d = _worth(repeats, exp(p["log_R_D"])) + unique
    log_g = (log(alpha) - log(beta) + p["log_A"] - p["log_B"]) / (alpha + beta)
    log_u = log_g + beta * (log_g + unique) / alpha
    over = x["N"] > log_u.value
    excess = where(over, expm1(where(over, x["N"] - log_u, log_u * 0.0)), log_u * 0.0)
    log_n = where(over, log_u + _worth(excess, exp(p["log_R_N"])), log_u * 0.0 + x["N"])
    return logaddexp(p["log_E"], logaddexp(p["log_A"] - alpha * log_n, p["log_B"] - beta * log_d))


def _natural(p: Arrays, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
    return {
        "E": np.exp(p["log_E"]),
        "A": np.exp(p["log_A"] + p["alpha"] * centre["N"]),
        "B": np.exp(p["log_B"] + p["beta"] * centre["D"]),
        "alpha": p["alpha"],
        "beta": p["beta"],
        "R_D": np.exp(p["log_R_D"]),
        "R_N": np.exp(p["log_R_N"]),
    }


LAW = Formula(
    "repeated",
    "L = E + A N'^-alpha + B D'^-beta, N' and D' with decay R_N, R_D",
    ("N", "D", "exposures"),
    (
        coefficient("E"),
        coefficient("A"),
        coefficient("B"),
        Parameter("alpha", EXPONENT, 1e-2, 10.0, (0.05, 1.2)),
        Parameter("beta", EXPONENT, 1e-2, 10.0, (0.05, 1.2)),
        Parameter("log_R_D", SHAPE, -3.0, 7.0, (0.0, 4.0)),
        Parameter("log_R_N", SHAPE, -3.0, 7.0, (0.0, 4.0)),
    ),
    _log_loss,
    _natural,
    summands=("E",),
    uncentred=("exposures",),
)
