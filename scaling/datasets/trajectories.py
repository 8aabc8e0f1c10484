"""Episodes from the pickled trajectories of the Decision Transformer's Gym code (Chen et al. 2021).

The file is a pickled list of dicts, one per episode, with ``observations``, ``actions``, ``rewards`` and
``terminals`` (gym/data/download_d4rl_datasets.py). A pickle may hold any program: only NumPy arrays and plain values
are taken out of it, and anything else is refused unread.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scaling.building import build_once, file_identity
from scaling.errors import UserError
from scaling.source import Episode, Source, packed, place_of
from scaling.spec import DataSpec
from scaling.store import Store

FIELDS = ("path",)
NEEDED = ("observations", "actions", "rewards", "terminals")


class _Type:
    """Stands for ``numpy.dtype``, whose state could say of plain bytes that they point to objects."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "fiubSU":
            raise pickle.UnpicklingError(f"it holds an array of {self.dtype}, which is not one of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array until its content is known."""

    values = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        self.values = _from_bytes(raw, kind, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_bytes(raw: bytes, kind: _Type, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.ndarray(shape, kind.dtype, raw, order=order)


def _scalar(kind: _Type, raw: bytes) -> Any:
    return np.ndarray((), kind.dtype, raw)[()]


def _encode(text: str, _: str) -> bytes:
    return text.encode("latin1")


ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
} | {
    (f"{core}.{module}", name): made
    for core in ("numpy.core", "numpy._core")
    for module, name, made in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_bytes),
    )
}
"""What a pickled array is made of, and what makes it here: nothing that the pickle names is run."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The function of ours that stands for one of NumPy's."""
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")
        return ARRAYS[module, name]


def recognises(path: Path) -> bool:
    """Whether the file is a pickle."""
    return path.is_file() and path.suffix in (".pkl", ".pickle")


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: the file is missing, damaged, or holds something else.

    """
    path = place_of(spec.path, folder)
    if not path.is_file():
        raise UserError(f"data.path: no such file: {path}; give a pickle of the Decision Transformer's Gym code")
    return build_once(lambda: f"trajectories|{file_identity(path)}", lambda: read(path))


def read(path: Path) -> Source:
    """All episodes of the file, which a pickle only gives at once."""
    try:
        with path.open("rb") as file:
            episodes = _Unpickler(file).load()
    except Exception as error:
        raise UserError(f"{path}: not a pickled list of trajectories ({' '.join(str(error).split())})") from error
    if not isinstance(episodes, list) or not all(isinstance(episode, dict) for episode in episodes):
        raise UserError(f"{path}: holds {type(episodes).__name__}; expected a list of dicts with {', '.join(NEEDED)}")
    return Source(str(path), packed(_episodes(episodes, path), str(path)), {"env_id": None})


def _episodes(episodes: list[dict[str, Any]], path: Path) -> Iterator[Episode]:
    for number, episode in enumerate(episodes):
        missing = [key for key in NEEDED if key not in episode]
        if missing:
            raise UserError(f"{path}: episode {number} has no {', '.join(missing)}; expected {', '.join(NEEDED)}")
        observations, actions, rewards, terminals = (_array(episode[key], key, number, path) for key in NEEDED)
        if terminals.shape != rewards.shape or terminals.ndim != 1 or terminals.dtype.kind not in "fiub":
            raise UserError(
                f"{path}: episode {number} has rewards of shape {rewards.shape} and terminals of {terminals.shape}, "
                f"{terminals.dtype}; expected one each per step, true or false"
            )
        if terminals[:-1].any():
            raise UserError(
                f"{path}: in episode {number}, terminals is true at step {int(np.argmax(terminals != 0))} of "
                f"{len(terminals)}; an episode ends there"
            )
        yield Episode(observations, actions, rewards, terminal=bool(terminals[-1:].any()))


def _array(values: Any, key: str, number: int, path: Path) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UserError(f"{path}: episode {number} has {key} of unequal length from step to step") from error
