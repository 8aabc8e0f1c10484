"""Behaviour policies as plain arrays: quick for one observation, and small enough to send to many processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

LOG_STD = (-20.0, 2.0)
"""Range of the log standard deviation, as in stable-baselines3."""


class Actor(Protocol):
    """Chooses an action."""

    def act(self, observation: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """An action in [-1, 1], (action,) float32, for an observation (state,)."""


@dataclass(frozen=True)
class Uniform:
    """Every action is as likely as any other."""

    size: int

    def act(self, observation: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A random action."""
        return generator.uniform(-1.0, 1.0, self.size).astype(np.float32)


@dataclass(frozen=True, eq=False)
class SquashedGaussian:
    """tanh(mean(s) + std(s)·ε) with ReLU layers, the policy of soft actor-critic (Haarnoja et al. 2018, App. C)."""

    weights: tuple[np.ndarray, ...]
    """(out, in) of each hidden layer, then of one that gives mean and log std together."""
    biases: tuple[np.ndarray, ...]

    def act(self, observation: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """An action drawn from the policy."""
        hidden = observation.astype(np.float32)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.maximum(_product(weight, hidden) + bias, 0.0)
        mean, log_std = np.split(_product(self.weights[-1], hidden) + self.biases[-1], 2)
        noise = generator.standard_normal(len(mean), np.float32)
        return np.tanh(mean + np.exp(np.clip(log_std, *LOG_STD)) * noise)

    def save(self, path: Path) -> None:
        """Write the arrays to an ``.npz`` file, whole or not at all."""
        arrays = {f"weight_{i}": array for i, array in enumerate(self.weights)}
        arrays |= {f"bias_{i}": array for i, array in enumerate(self.biases)}
        temporary = path.with_name(f".{path.name}.partial")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        temporary.replace(path)


def _product(weight: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Matrix times vector without BLAS, whose rounding depends on its number of threads."""
    product: np.ndarray = np.einsum("oi,i->o", weight, vector)
    return product


def load(path: Path) -> SquashedGaussian:
    """The actor that was saved."""
    with np.load(path) as file:
        layers = range(len(file.files) // 2)
        return SquashedGaussian(tuple(file[f"weight_{i}"] for i in layers), tuple(file[f"bias_{i}"] for i in layers))
