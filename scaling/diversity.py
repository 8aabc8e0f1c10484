"""How varied a training subset is, so that "more of the same" and "more diverse" can be told apart.

Behaviour is looked at as points: a state and its action, each component divided by its standard deviation over the
whole dataset; choices as indicators; pictures through a fixed random projection. The scale is the dataset's, not the
subset's, so that subsets of one dataset can be compared.
"""

import math
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln

from scaling.store import Store
from scaling.windows import Windows

SEED = 20240603
"""Of the projections and samples, the same for every run."""
DIRECTIONS, BINS = 3, 16
"""Of the grid whose cells are counted: each axis is a random direction, cut into bins equally full over the dataset."""
CELLS = BINS**DIRECTIONS
SAMPLE, PICTURES = 200_000, 2_000
"""Points at most that stand for a dataset or subset when cells are counted; fewer where they are pictures."""
NEIGHBOURS, POINTS = 4, 2_000
"""Of the entropy estimate; always as many points, so that its bias is the same for subsets of any size."""
PIXELS = 16
"""Directions in which pictures are looked at."""
CHOICES = 18
"""Choices up to which each has a direction of its own; more are given random ones."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def diversity(windows: Windows, store: Store) -> dict[str, Any]:
    """The columns ``return_quantiles``, ``return_sd``, ``coverage`` and ``entropy`` of a training subset.

    Args:
        windows: which transitions.
        store: the dataset as it was recorded, without noise.

    """
    returns = store.returns[windows.episodes]
    scale = _Scale(store)
    generator = np.random.default_rng(SEED)
    cells = scale.cells(_sample(windows, generator, _most(store)))
    return {
        "return_quantiles": np.quantile(returns, QUANTILES).tolist(),
        "return_sd": float(returns.std()),
        "coverage": len(np.unique(cells)) / CELLS,
        "entropy": knn_entropy(scale.points(_sample(windows, generator, POINTS)), NEIGHBOURS),
    }


def projection(store: Store, most: int) -> np.ndarray:
    """(transition, direction) where some of the dataset's transitions lie along the directions of the grid."""
    rows = np.random.default_rng(SEED).choice(len(store.rewards), min(most, len(store.rewards)), replace=False)
    scale = _Scale(store)
    along: np.ndarray = scale.points(np.sort(rows)) @ scale.directions
    return along


def knn_entropy(points: np.ndarray, neighbours: int) -> float | None:
    """Differential entropy of the points' distribution in nats, from distances to near neighbours.

        H = psi(n) - psi(k) + log V_d + d/n * sum log r_i        (Kraskov et al. 2004, Eq. 20)

    with r_i the Euclidean distance from point i to its k-th neighbour and V_d the volume of the unit ball. Points that
    coincide are counted once.

    Args:
        points: (point, component).
        neighbours: k.

    Returns:
        The entropy, or nothing with k points or fewer.

    """
    points = np.unique(points, axis=0)
    count, size = points.shape
    if count <= neighbours:
        return None
    radius = cKDTree(points).query(points, neighbours + 1)[0][:, -1]
    ball = 0.5 * size * math.log(math.pi) - float(gammaln(0.5 * size + 1))
    return float(digamma(count) - digamma(neighbours) + ball + size * np.log(radius).mean())


def _most(store: Store) -> int:
    return PICTURES if store.image else SAMPLE


def _sample(windows: Windows, generator: np.random.Generator, most: int) -> np.ndarray:
    """Rows of the store, so many of the subset's transitions at random, or all."""
    chosen = np.arange(len(windows)) if len(windows) <= most else generator.choice(len(windows), most, replace=False)
    episode = np.searchsorted(windows.before, chosen, side="right") - 1
    return windows.first[episode] + chosen - windows.before[episode]


class _Scale:
    """The yardstick of a dataset: scales, directions, edges of bins."""

    def __init__(self, store: Store) -> None:
        self.store = store
        generator = np.random.default_rng(SEED)
        count = len(store.rewards)
        most = _most(store)
        rows = np.arange(count) if count <= most else np.sort(generator.choice(count, most, replace=False))
        if store.image:
            self.eye = generator.standard_normal((store.states[0].size, PIXELS)).astype(np.float32) / 255.0
        size = store.action_size
        self.choices = np.eye(size) if size <= CHOICES else generator.standard_normal((size, CHOICES))
        raw = self._raw(rows)
        self.deviation = np.where(raw.std(axis=0) > 0, raw.std(axis=0), 1.0)
        self.directions = generator.standard_normal((raw.shape[1], DIRECTIONS))
        along = raw / self.deviation @ self.directions
        self.edges = np.quantile(along, np.linspace(0, 1, BINS + 1)[1:-1], axis=0)

    def points(self, rows: np.ndarray) -> np.ndarray:
        """(row, component) behaviour in the scale of the dataset."""
        return self._raw(rows) / self.deviation

    def cells(self, rows: np.ndarray) -> np.ndarray:
        """(row,) number of the cell that each lies in."""
        along = self.points(rows) @ self.directions
        places = [np.searchsorted(self.edges[:, axis], along[:, axis]) for axis in range(DIRECTIONS)]
        return np.ravel_multi_index(places, (BINS,) * DIRECTIONS)

    def _raw(self, rows: np.ndarray) -> np.ndarray:
        states, actions = self.store.states[rows], self.store.actions[rows]
        if self.store.image:
            states = states.reshape(len(rows), -1).astype(np.float32) @ self.eye
        if self.store.discrete:
            actions = self.choices[actions]
        return np.concatenate([states, actions], axis=1).astype(np.float64)
