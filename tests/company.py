"""Runs of one shape, what keeps their states, and what must be equal of two rows of one run."""

import dataclasses

import numpy as np
import pytest
import torch

from scaling import checkpoint, results
from scaling.checkpoint import Nobody
from scaling.errors import Interrupted
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec

KINDS = ("mambadm", "dmamba", "decision_transformer", "bc")
RUN = RunSpec(
    model=ModelSpec(width=16, depth=2, context=6, subsequence=2, dropout=0.1, max_timestep=100),
    data=DataSpec(path="data.hdf5", rtg_scale=10.0),
    train=TrainSpec(amount=50.0, batch=6, evaluations=4),
)


def changed(spec: RunSpec, **changes: object) -> RunSpec:
    """The spec with fields of its parts replaced, by dotted names with a double underscore."""
    for name, value in changes.items():
        part, _, field = name.partition("__")
        new = dataclasses.replace(getattr(spec, part), **{field: value}) if field else value
        spec = dataclasses.replace(spec, **{part: new})
    return spec


def company(count: int, **changes: object) -> list[RunSpec]:
    """Runs of one shape that differ in all that may differ."""
    return [
        changed(
            RUN,
            seed=number,
            data__fraction=(1.0, 0.5, 0.25)[number % 3],
            data__draw=number,
            train__learning_rate=1e-3 * (1 + number),
            train__clip=0.25 / (1 + number),
            train__weight_decay=0.1 * number,
            **changes,
        )
        for number in range(count)
    ]


class Last(Nobody):
    """Keeps the state after the last update."""

    keeps_last = True

    def keep(self, state) -> None:
        self.state = state


def row_of(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """All of a network that its output depends on.

    Softmax does not notice the bias of keys: its gradient is rounding, which AdamW blows up to the learning rate.
    """
    biases = {name: value.tensor_split(3) for name, value in parameters.items() if name.endswith("qkv.bias")}
    seen = {**parameters, **{name: torch.cat([query, value]) for name, (query, _, value) in biases.items()}}
    return torch.cat([value.flatten() for value in seen.values()])


def assert_rows_equal(one: dict, other: dict, rel: float = 1e-5) -> None:
    """But for rounding."""
    for name, column in results.BY_NAME.items():
        if column.repeatable:
            first, second = one.get(name), other.get(name)
            if name == "curve":
                first, second = [[list(p.values()) for p in row["curve"]] for row in (one, other)]
                assert np.allclose(first, second, rtol=rel)
            elif isinstance(first, float):
                assert first == pytest.approx(second, rel=rel), name
            else:
                assert first == second, name


class Stopping(Nobody):
    """Ends a run after so many updates."""

    def __init__(self, after: int) -> None:
        self.after, self.asked = after, 0

    def wants(self) -> bool:
        self.asked += 1
        return self.asked == self.after

    def keep(self, state) -> None:
        self.state = checkpoint.unpack("x", checkpoint.pack("x", state))
        raise Interrupted
