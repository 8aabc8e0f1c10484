"""Tables from a known law, with seeds and subsets of the data as random effects, for simulations."""

import os
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd

TRUTH = {"E": 0.15, "A": 4.94, "B": 7.57, "alpha": 0.4, "beta": 0.45}
"""On a grid of 5e3 to 1e6 parameters and up to 1e5 transitions, each term is of the order of E."""
GRIDS = {
    "6 sizes x 5 fractions x 3 draws": (6, (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), 3),
    "4 sizes x 4 fractions x 2 draws": (4, (1 / 27, 1 / 9, 1 / 3, 1.0), 2),
}
LARGEST_N, LARGEST_D = 1e6, 1e5
SUBSET_SHARE = 0.5
"""Standard deviation between subsets, as a share of that between seeds."""


def loss(n: Any, d: Any, truth: dict[str, float]) -> Any:
    """The additive law."""
    return truth["E"] + truth["A"] * n ** -truth["alpha"] + truth["B"] * d ** -truth["beta"]


def world(grid: str, noise: float, seed: int, truth: dict[str, float] | None = None) -> pd.DataFrame:
    """One table: every size on every subset; subsets of one fraction differ a little in their number of transitions."""
    sizes, fractions, draws = GRIDS[grid]
    generator = np.random.default_rng(seed)
    rows = []
    for fraction in fractions:
        for draw in range(draws):
            partial = fraction < 1
            d = LARGEST_D * fraction * (np.exp(0.05 * generator.standard_normal()) if partial else 1.0)
            shared = SUBSET_SHARE * noise * generator.standard_normal() * partial
            for n in np.geomspace(5e3, LARGEST_N, sizes):
                value = loss(n, d, truth or TRUTH) * np.exp(shared + noise * generator.standard_normal())
                rows.append({"N": n, "D": d, "fraction": fraction, "draw": draw, "seed": draw, "loss": value})
    return pd.DataFrame(rows)


def in_parallel(function: Callable, arguments: Iterable) -> list:
    """The function of each argument, on all cores, one thread each."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with get_context("spawn").Pool() as pool:
        return pool.map(function, arguments, chunksize=4)
