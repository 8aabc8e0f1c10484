"""What a run sees and what it will take, known before it starts."""

import dataclasses
import math
from dataclasses import dataclass

from scaling import plug
from scaling.errors import UserError
from scaling.spec import RunSpec, TrainSpec
from scaling.store import Store
from scaling.subsets import degraded, held_out_episodes, segments_of, share_of, training_episodes
from scaling.windows import Windows, check_fits


@dataclass(frozen=True, eq=False)
class Subset:
    """The parts of a dataset that a run trains on and is measured on."""

    training: Windows
    held_out: Windows
    episodes: int


@dataclass(frozen=True)
class Cost:
    """What a run will take, known before it starts."""

    parameters: dict[str, int]
    share: float
    """Of the training data, as asked for."""
    D: int
    episodes: int
    updates: int
    tokens_seen: int
    exposures: float
    """Expected passes over each transition of the subset."""
    C: float

    def after(self, updates: int) -> "Cost":
        """What a run took that stopped after so many updates."""
        share = updates / self.updates
        tokens = self.tokens_seen // self.updates * updates
        return dataclasses.replace(
            self, updates=updates, tokens_seen=tokens, exposures=self.exposures * share, C=self.C * share
        )


def subset_of(spec: RunSpec, store: Store, *, noise: bool = True) -> Subset:
    """Training and held-out windows of the run; their size is the same with and without noise.

    Raises:
        UserError: the run does not fit the dataset.

    """
    check_fits(store, spec)
    episodes = training_episodes(store, spec.data)
    segments = segments_of(store, episodes, spec.data)
    training = Windows(degraded(store, spec.data) if noise else store, episodes, spec, segments)
    return Subset(training, Windows(store, held_out_episodes(store, spec.data), spec), len(episodes))


def updates_of(spec: TrainSpec, windows: Windows, flops_per_window: float) -> int:
    """Optimiser steps that the budget amounts to; of a run to convergence, the most it may take.

    Raises:
        UserError: the training compute does not suffice for one step.

    """
    if spec.budget in ("updates", "convergence"):
        return int(spec.amount)
    if spec.budget == "epochs":
        return math.ceil(spec.amount * windows.possible / spec.batch)
    if spec.budget == "exposures":
        return math.ceil(spec.amount * len(windows) / (spec.batch * windows.mean_steps()))
    updates = int(spec.amount / (flops_per_window * spec.batch))
    if updates < 1:
        raise UserError(
            f"train.amount {spec.amount:g} FLOPs is less than one update takes: {flops_per_window * spec.batch:.3g}"
        )
    return updates


def cost_of(spec: RunSpec, store: Store, subset: Subset | None = None) -> Cost:
    """Parameters, data and compute of the run, without building it.

    Raises:
        UserError: the run does not fit the dataset, or there is no such model.

    """
    subset = subset or subset_of(spec, store, noise=False)
    space = store.space
    architecture = plug.load("models", spec.model.kind)
    per_window = 3.0 * architecture.flops(spec.model, space, spec.model.context)
    updates = updates_of(spec.train, subset.training, per_window)
    windows = updates * spec.train.batch
    tokens = 3 * spec.model.context * windows
    return Cost(
        parameters=architecture.count(spec.model, space),
        share=share_of(store, spec.data),
        D=len(subset.training),
        episodes=subset.episodes,
        updates=updates,
        tokens_seen=tokens,
        exposures=windows * subset.training.mean_steps() / len(subset.training),
        C=per_window * windows,
    )
