"""What a reader gives: transitions in time order, a piece at a time, so that no dataset must fit in memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.store import Store, groups

PIECE_BYTES = 16 << 20
"""About how much a reader holds at once."""

INSIDE, TERMINAL, TIMEOUT = 0, 1, 2
"""What follows a transition: the next one of its episode; nothing, by the environment's word; nothing, by a limit's."""

ACTION_RANGE = 1.0 + 1e-5

MOST_NUMBERS = 1 << 20
"""Choices, or policies, that a dataset may number; arrays of this length are made from them."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive transitions."""

    states: np.ndarray
    """(transition, state), float32; or single pictures, (transition, side, side), uint8."""
    actions: np.ndarray
    """(transition, action) float32, or (transition,) int64 for choices."""
    rewards: np.ndarray
    """(transition,), float32."""
    ends: np.ndarray
    """(transition,), uint8: INSIDE, TERMINAL or TIMEOUT."""
    policies: np.ndarray | None = None
    """(transition,), whole: number of the policy that acted, where the recording says so."""


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset about to be read."""

    name: str
    """Said in front of errors."""
    pieces: Iterable[Piece]
    about: dict[str, Any] = field(default_factory=dict)
    """What the reader knows: the environment's id, the number of choices, the names of policies. It may add to this
    until the last piece is read."""


def place_of(path: str, folder: Path) -> Path:
    """Where ``path``, written in a sweep that lies in ``folder``, leads.

    Raises:
        UserError: it begins with the home of nobody.

    """
    try:
        return folder / Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"data.path {path}: there is no such user; give the folder in full") from error


def rows_at_once(row_bytes: int, multiple_of: int = 1) -> int:
    """Rows in a piece, a multiple of the chunks in which a file keeps them."""
    rows = max(1, PIECE_BYTES // max(1, row_bytes))
    return max(multiple_of, rows - rows % multiple_of)


def checked(piece: Piece, name: str, first: int) -> Piece:
    """The piece, if a network can be trained on it.

    Args:
        piece: transitions.
        name: the dataset, for errors.
        first: number of the piece's first row, for errors.

    Raises:
        UserError: naming the array and the row.

    """
    for key, array in (("observations", piece.states), ("actions", piece.actions), ("rewards", piece.rewards)):
        with np.errstate(invalid="ignore"):  # infinity less infinity
            total = array.sum(dtype=np.float64)
        if array.dtype.kind != "f" or np.isfinite(total):
            continue
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        raise UserError(
            f"{name}: {key} hold NaN, infinity, or a number beyond single precision, first in row "
            f"{first + int(np.argmin(finite))}; repair or remove that episode"
        )
    if piece.actions.ndim == 2:
        _refuse_large(piece.actions, name, first)
    else:
        _refuse_numbers("actions", piece.actions, name, first)
    if piece.policies is not None:
        _refuse_numbers("policies", piece.policies, name, first)
    return piece


def _refuse_numbers(key: str, numbers: np.ndarray, name: str, first: int) -> None:
    wrong = (numbers < 0) | (numbers >= MOST_NUMBERS)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{name}: {key} reach {numbers[row]} in row {first + row}; number them from 0 on, below {MOST_NUMBERS:,}"
        )


def _refuse_large(actions: np.ndarray, name: str, first: int) -> None:
    size = np.abs(actions)
    if size.max(initial=0.0) > ACTION_RANGE:
        row = first + int(np.argmax(size.max(axis=1) > ACTION_RANGE))
        raise UserError(
            f"{name}: actions reach {size.max():g}, beyond [-1, 1] first in row {row}; "
            "scale them to [-1, 1], the range of the action head"
        )


def pieces_of(store: Store, policy: int | None = None) -> Iterator[Piece]:
    """The transitions of a store, all by one policy, or as the store says."""
    size = rows_at_once(store.states[:1].nbytes + store.actions[:1].nbytes)
    for first, stop in groups(store.starts, size):
        rows = slice(store.starts[first], store.starts[stop])
        ends = np.full(store.starts[stop] - store.starts[first], INSIDE, np.uint8)
        last = store.starts[first + 1 : stop + 1] - 1 - store.starts[first]
        ends[last] = np.where(store.terminal[first:stop], TERMINAL, TIMEOUT)
        labels = None
        if policy is not None:
            labels = np.full(len(ends), policy, np.int32)
        elif store.policies is not None:
            labels = np.repeat(store.policies[first:stop], store.lengths[first:stop])
        yield Piece(store.states[rows], store.actions[rows], store.rewards[rows], ends, labels)


@dataclass(frozen=True, eq=False)
class Episode:
    """One recorded episode, as formats with an index of episodes keep it."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminal: bool
    policy: int | None = None


def packed(episodes: Iterable[Episode], name: str) -> Iterator[Piece]:
    """Episodes joined into pieces of a good size, checked.

    Raises:
        UserError: naming the episode.

    """
    waiting: list[Piece] = []
    held = first = 0
    for number, episode in enumerate(episodes):
        waiting.append(_as_piece(episode, f"{name}: episode {number}"))
        held += waiting[-1].states.nbytes + waiting[-1].actions.nbytes
        if held > PIECE_BYTES:
            joined = _joined(waiting, name)
            yield checked(joined, name, first)
            first += len(joined.rewards)
            waiting, held = [], 0
    if waiting:
        yield checked(_joined(waiting, name), name, first)


def _as_piece(episode: Episode, name: str) -> Piece:
    rows = len(episode.states)
    if rows == 0:
        raise UserError(f"{name} has no steps; remove it")
    for key, array in (("actions", episode.actions), ("rewards", episode.rewards)):
        if len(array) != rows:
            raise UserError(f"{name} has {rows} states and {len(array)} {key}; one of each for every step is needed")
    ends = np.zeros(rows, np.uint8)
    ends[-1] = TERMINAL if episode.terminal else TIMEOUT
    policies = None if episode.policy is None else np.full(rows, episode.policy, np.int32)
    return Piece(
        states_of(episode.states, name),
        actions_of(episode.actions, name),
        reward_of(episode.rewards, name),
        ends,
        policies,
    )


def states_of(array: np.ndarray, name: str) -> np.ndarray:
    """States as the store keeps them.

    Raises:
        UserError: neither vectors nor pictures.

    """
    if array.ndim == 3 and array.dtype == np.uint8 and array.shape[1] == array.shape[2]:
        return array
    if array.ndim != 2 or array.dtype.kind not in "fiub" or array.shape[1] == 0:
        raise UserError(
            f"{name}: states have shape {array.shape} and type {array.dtype}; expected numbers, (row, component), or "
            "square pictures, (row, side, side), uint8"
        )
    return _single(array)


def actions_of(array: np.ndarray, name: str) -> np.ndarray:
    """Actions as the store keeps them: vectors, or numbers of choices.

    Raises:
        UserError: neither.

    """
    if array.ndim == 1 and array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.ndim != 2 or array.dtype.kind not in "fiub" or array.shape[1] == 0:
        raise UserError(
            f"{name}: actions have shape {array.shape} and type {array.dtype}; expected numbers, (row, component), or "
            "whole numbers of choices, (row,)"
        )
    return _single(array)


def reward_of(array: np.ndarray, name: str) -> np.ndarray:
    """Rewards as the store keeps them.

    Raises:
        UserError: not a number per row.

    """
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise UserError(f"{name}: rewards have shape {array.shape} and type {array.dtype}; expected numbers, (row,)")
    return _single(array)


def policies_of(array: np.ndarray, name: str) -> np.ndarray:
    """Numbers of policies.

    Raises:
        UserError: not a whole number per row.

    """
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{name}: policies have shape {array.shape} and type {array.dtype}; expected whole numbers")
    return array.astype(np.int64)


def _single(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # told by ``checked``, with its row
        return array.astype(np.float32)


def _joined(pieces: list[Piece], name: str) -> Piece:
    shapes = {(p.states.shape[1:], p.actions.shape[1:], p.states.dtype, p.actions.dtype) for p in pieces}
    if len(shapes) > 1:
        raise UserError(f"{name}: episodes differ in the shape of their states or actions: {_shown(shapes)}")
    labels = [p.policies for p in pieces if p.policies is not None]
    return Piece(
        states=np.concatenate([p.states for p in pieces]),
        actions=np.concatenate([p.actions for p in pieces]),
        rewards=np.concatenate([p.rewards for p in pieces]),
        ends=np.concatenate([p.ends for p in pieces]),
        policies=np.concatenate(labels) if len(labels) == len(pieces) else None,
    )


def _shown(shapes: set[tuple[Any, ...]]) -> str:
    return "; ".join(sorted(f"states {s}, actions {a}" for s, a, *_ in shapes))
