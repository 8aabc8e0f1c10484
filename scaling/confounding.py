"""Which of model size, data and training length move together in a sweep."""

import numpy as np

from scaling.cost import Cost

TOO_MUCH = 0.9
"""Correlation from which a fit cannot tell two causes apart."""

MEANINGS = {"N": "a bigger model", "D": "more data", "T": "longer training"}
REMEDIES = {
    frozenset("DT"): "use train.budget updates, or cross fractions with amounts",
    frozenset("NT"): "use train.budget updates, or cross widths with amounts",
    frozenset("ND"): "cross every model with every fraction",
}


def correlations(costs: dict[str, Cost]) -> tuple[list[str], np.ndarray]:
    """Which of N, D and T, tokens seen, vary over the runs, and the correlations of their logarithms."""
    values = {
        "N": [cost.parameters["N"] for cost in costs.values()],
        "D": [cost.D for cost in costs.values()],
        "T": [cost.tokens_seen for cost in costs.values()],
    }
    moving = {name: np.log(column) for name, column in values.items() if len(set(column)) > 1}
    return list(moving), np.corrcoef(list(moving.values())) if len(moving) > 1 else np.eye(len(moving))


def warnings(names: list[str], found: np.ndarray) -> list[str]:
    """A line for each pair that cannot be told apart."""
    return [
        f"{one} and {other} move together (r = {found[i, j]:.2f}): what {MEANINGS[one]} does cannot be told from what "
        f"{MEANINGS[other]} does; {REMEDIES[frozenset((one, other))]}"
        for i, one in enumerate(names)
        for j, other in enumerate(names)
        if i < j and abs(found[i, j]) > TOO_MUCH
    ]
