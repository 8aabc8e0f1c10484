"""Several datasets as one; each part counts as a policy, by which ``data.weights`` and ``data.selection`` know it.

``data.parts`` lists what would stand as ``data.path``; the kind of each is recognised. An episode that an earlier part
holds too, as medium-replay is part of full-replay, is left out and counted: otherwise it would count twice, and one
that is held out could be trained on.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scaling.building import build_once
from scaling.errors import UserError
from scaling.recognise import open_path
from scaling.source import Piece, Source, pieces_of
from scaling.spec import DataSpec
from scaling.store import Store

FIELDS = ("parts", "step_limit")


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: fewer than two parts, one that cannot be used, or parts of different shapes.

    """
    if len(spec.parts) < 2:
        raise UserError(f"data.parts must name at least two datasets to mix: {list(spec.parts)}")
    stores = [open_path(part, folder, spec.step_limit) for part in spec.parts]
    _refuse_unlike(stores, spec.parts)
    known = [(part, store.digest, store.about) for part, store in zip(spec.parts, stores, strict=True)]
    return build_once(lambda: f"mixture 2|{known}", lambda: read(stores, spec.parts))


def read(stores: list[Store], parts: tuple[str, ...]) -> Source:
    """The transitions of one part after the other."""
    env_ids = {store.about.get("env_id") for store in stores}
    about: dict[str, Any] = {"env_id": env_ids.pop() if len(env_ids) == 1 else None, "policies": list(parts)}
    if stores[0].discrete:
        about["choices"] = max(store.action_size for store in stores)
    return Source(" + ".join(parts), _each_once(stores, about), about)


def _each_once(stores: list[Store], about: dict[str, Any]) -> Iterator[Piece]:
    seen: set[bytes] = set()
    about["episodes_left_out"] = 0
    for number, store in enumerate(stores):
        for piece in pieces_of(store, number):
            last = (np.flatnonzero(piece.ends) + 1).tolist()
            begins = [0, *last[:-1]]
            fresh = [_is_new(piece, first, stop, seen) for first, stop in zip(begins, last, strict=True)]
            about["episodes_left_out"] += fresh.count(False)
            rows = np.repeat(fresh, np.diff(last, prepend=0))
            yield piece if rows.all() else _rows(piece, rows)


def _is_new(piece: Piece, first: int, stop: int, seen: set[bytes]) -> bool:
    """Whether no episode with these states, actions and rewards was seen before; now it is."""
    content = hashlib.blake2b(digest_size=16)
    for array in (piece.states, piece.actions, piece.rewards):
        content.update(np.ascontiguousarray(array[first:stop]).data)
    known = content.digest() in seen
    seen.add(content.digest())
    return not known


def _rows(piece: Piece, rows: np.ndarray) -> Piece:
    assert piece.policies is not None
    return Piece(piece.states[rows], piece.actions[rows], piece.rewards[rows], piece.ends[rows], piece.policies[rows])


def _refuse_unlike(stores: list[Store], parts: tuple[str, ...]) -> None:
    def shape(store: Store) -> tuple[object, ...]:
        return store.states.shape[1:], store.states.dtype, store.actions.shape[1:], store.actions.dtype

    for store, part in zip(stores[1:], parts[1:], strict=True):
        if shape(store) != shape(stores[0]):
            raise UserError(
                f"data.parts: {part} has states {shape(store)[0]} and actions {shape(store)[2]}; {parts[0]} has "
                f"{shape(stores[0])[0]} and {shape(stores[0])[2]}"
            )
