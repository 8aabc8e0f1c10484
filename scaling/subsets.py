"""Which episodes a run may see: the axes of "more data".

Held-out episodes are the same for every run on a dataset. Of the rest, a subset takes whole episodes in an order that
``data.selection`` and ``data.draw`` fix, until it is large enough; of one order, smaller subsets nest in larger ones.
"""

import dataclasses
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.spec import DataSpec
from scaling.store import Store, returns_to_go

SPLIT_SEED = 20240602
"""Chooses the held-out episodes, the same for every run on a dataset."""

FIXED_ORDERS = ("top_return", "low_return", "per_time")
"""Selections that leave nothing to chance."""

Segments = tuple[np.ndarray, np.ndarray]
"""(episode,) timesteps left out at the beginning of each, and timesteps kept."""


def held_out_episodes(store: Store, spec: DataSpec) -> np.ndarray:
    """Episodes that no run trains on, ascending; at least one."""
    count = len(store.terminal)
    size = min(max(1, round(spec.held_out * count)), count - 1)
    return np.sort(np.random.default_rng(SPLIT_SEED).permutation(count)[:size])


def training_episodes(store: Store, spec: DataSpec) -> np.ndarray:
    """The episodes of the subset, ascending.

    Raises:
        UserError: the subset holds no whole episode, or asks for more than there is.

    """
    order = _order(store, spec)
    if spec.weights:
        return np.sort(_weighted(store, spec, order))
    if spec.transitions is not None:
        return np.sort(_amounting_to(store, spec, order, spec.transitions, "data.transitions"))
    kept = round(spec.fraction * len(order))
    if kept < 1:
        raise UserError(
            f"data.fraction {spec.fraction:g} of {len(order)} training episodes holds no episode; "
            f"use at least {1 / len(order):.2g}"
        )
    return np.sort(order[:kept])


def share_of(store: Store, spec: DataSpec) -> float:
    """Share of the training data that a run asks for: the fraction, or its transitions among all there are."""
    if spec.transitions is None:
        return spec.fraction
    held_out = store.lengths[held_out_episodes(store, spec)].sum()
    return spec.transitions / float(len(store.rewards) - held_out)


def _order(store: Store, spec: DataSpec) -> np.ndarray:
    """All training episodes in the order in which they enter subsets."""
    rest = np.setdiff1d(np.arange(len(store.terminal)), held_out_episodes(store, spec))
    if spec.selection == "per_time":
        return rest
    if spec.selection in FIXED_ORDERS:
        returns = store.returns[rest]
        return rest[np.argsort(-returns if spec.selection == "top_return" else returns, kind="stable")]
    order = np.random.default_rng([SPLIT_SEED, spec.draw]).permutation(rest)
    if spec.selection == "random":
        return order
    labels = policies_of(store, "data.selection per_policy")
    turn = np.random.default_rng([SPLIT_SEED, spec.draw, 1]).permutation(int(labels.max()) + 1)
    return order[np.argsort(turn[labels[order]], kind="stable")]


def policies_of(store: Store, wanted_by: str) -> np.ndarray:
    """(episode,) number of the policy that recorded each.

    Raises:
        UserError: the dataset does not say.

    """
    if store.policies is None:
        raise UserError(
            f"{wanted_by} needs to know which policy recorded each episode, and the dataset does not say; use a "
            "mixture, or a file with policies"
        )
    return np.asarray(store.policies)


def _amounting_to(store: Store, spec: DataSpec, order: np.ndarray, transitions: float, asked_by: str) -> np.ndarray:
    """The first episodes of ``order``, as many as come closest to so many transitions, at least one."""
    lengths = store.lengths[order]
    if spec.segment is not None:
        lengths = np.minimum(lengths, spec.segment)
    sums = np.cumsum(lengths)
    if transitions > sums[-1]:
        there = "there are" if spec.segment is None else f"that segments of {spec.segment} leave"
        raise UserError(f"{asked_by} {transitions:,.0f} exceeds the {sums[-1]:,} training transitions {there}")
    return order[: int(np.argmin(np.abs(sums - transitions))) + 1]


def _weighted(store: Store, spec: DataSpec, order: np.ndarray) -> np.ndarray:
    """Episodes of each policy in proportion to its weight in transitions."""
    labels = policies_of(store, "data.weights")
    count = int(labels.max()) + 1
    if len(spec.weights) != count:
        raise UserError(f"data.weights has {len(spec.weights)} values, and the dataset has {count} policies")
    shares = np.array(spec.weights) / sum(spec.weights)
    lengths = store.lengths if spec.segment is None else np.minimum(store.lengths, spec.segment)
    there = np.bincount(labels[order], weights=lengths[order], minlength=count)
    missing = np.flatnonzero((shares > 0) & (there == 0))
    if len(missing):
        raise UserError(
            f"data.weights asks for episodes of policy {missing[0]}, and none is left to train on; give it weight 0"
        )
    most = np.min(there[shares > 0] / shares[shares > 0])
    total = spec.fraction * most if spec.transitions is None else spec.transitions
    if total > most:
        raise UserError(
            f"data.transitions {spec.transitions:,} with data.weights {list(spec.weights)} exceeds the {int(most):,} "
            "training transitions that can have these shares"
        )
    chosen = [
        _amounting_to(store, spec, order[labels[order] == policy], share * total * (1 - 1e-12), "data.weights")
        for policy, share in enumerate(shares)
        if share > 0
    ]
    return np.concatenate(chosen)


def segments_of(store: Store, episodes: np.ndarray, spec: DataSpec) -> Segments:
    """The part of each episode that is kept: all of it, or ``data.segment`` timesteps at a place fixed by the draw."""
    lengths = store.lengths
    kept = lengths if spec.segment is None else np.minimum(lengths, spec.segment)
    place = np.random.default_rng([SPLIT_SEED, spec.draw, 2]).random(len(lengths))
    return np.floor(place * (lengths - kept + 1)).astype(np.int64)[episodes], kept[episodes]


def degraded(store: Store, spec: DataSpec) -> Store:
    """The store with noise on all actions and rewards, the same on a transition whatever the subset; in memory."""
    changed: dict[str, Any] = {}
    if spec.action_noise > 0:
        changed["actions"] = _noisy_actions(store, spec)
    if spec.reward_noise > 0:
        noise = np.random.default_rng([SPLIT_SEED, spec.draw, 4]).standard_normal(len(store.rewards))
        changed["rewards"] = (store.rewards + spec.reward_noise * noise).astype(np.float32)
        changed["rtg"] = returns_to_go(changed["rewards"], store.starts)
    return dataclasses.replace(store, **changed)


def _noisy_actions(store: Store, spec: DataSpec) -> np.ndarray:
    generator = np.random.default_rng([SPLIT_SEED, spec.draw, 3])
    if store.discrete:
        replaced = generator.random(len(store.actions)) < spec.action_noise
        return np.where(replaced, generator.integers(0, store.action_size, len(store.actions)), store.actions)
    noise = generator.standard_normal(store.actions.shape, np.float32)
    return np.clip(store.actions + np.float32(spec.action_noise) * noise, -1.0, 1.0)
