"""Episodes from an HDF5 file in the D4RL layout (Fu et al. 2020; flat arrays in time order, no episode index).

An episode ends where ``terminals`` or ``timeouts`` is true. A timeout is not a terminal: the episode was cut by a
limit. Older files have no ``timeouts``: there an episode also ends after ``data.step_limit`` steps, by default the
limit of the environment that the file names, as in d4rl's ``qlearning_dataset``. Rows after the last end belong to an
unfinished episode and are left out, as in the Decision Transformer's conversion script; the store's manifest counts
them. A ``policies`` array, if there is one, numbers the policies that acted.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np

from scaling.building import build_once, file_identity
from scaling.downloads import d4rl_file
from scaling.errors import UserError
from scaling.recognise import kind_of
from scaling.source import (
    INSIDE,
    TERMINAL,
    TIMEOUT,
    Piece,
    Source,
    actions_of,
    checked,
    place_of,
    policies_of,
    reward_of,
    rows_at_once,
    states_of,
)
from scaling.spec import DataSpec
from scaling.store import Store

FIELDS = ("path", "step_limit")
EMBEDDED, REMOTE = "embedded:", "d4rl:"
REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "policies")
MAGIC = b"\x89HDF\r\n\x1a\n"


def recognises(path: Path) -> bool:
    """Whether the file is HDF5."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def locate(path: str, folder: Path) -> Path:
    """The file that a sweep in ``folder`` means by ``path``; one of D4RL's own is downloaded.

    Raises:
        UserError: there is no such file.

    """
    if path.startswith(EMBEDDED):
        name = path.removeprefix(EMBEDDED)
        assets = Path(str(resources.files("scaling"))) / "assets"
        known = sorted(file.stem for file in assets.glob("*.hdf5"))
        if name not in known:
            raise UserError(f"there is no embedded dataset {name!r}; known: {', '.join(EMBEDDED + k for k in known)}")
        return assets / f"{name}.hdf5"
    if path.startswith(REMOTE):
        return d4rl_file(path.removeprefix(REMOTE))
    file = place_of(path, folder)
    if not file.is_file():
        raise UserError(
            f"data.path: no such file: {file}; give a D4RL HDF5 file, {REMOTE}hopper-medium-v2 to download one, or "
            f"{EMBEDDED}hopper-mini-v5"
        )
    return file


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: the file is missing, truncated, lacks a key, or holds values that cannot be trained on.

    """
    path = locate(spec.path, folder)
    _refuse_other_kinds(path)
    limit = spec.step_limit
    return build_once(lambda: f"{file_identity(path)}|{limit}", lambda: read(path, limit))


def _refuse_other_kinds(path: Path) -> None:
    """Say what a file is that another reader would recognise."""
    try:
        kind = kind_of(str(path), path.parent)
    except UserError:
        return  # damaged, which is told when it is read
    if kind != "d4rl":
        raise UserError(f"{path} is no HDF5 file but looks like {kind}: set data.kind: {kind}")


def read(path: Path, step_limit: int | None = None) -> Source:
    """The transitions of the file, checked as they are read."""
    with _Opened(path) as file:
        _check(path, file)
        about: dict[str, Any] = {"env_id": (env_id := _env_id(file))}
        if "choices" in file.attrs and file["actions"].ndim == 1:
            about["choices"] = int(file.attrs["choices"])
        limit = step_limit if "timeouts" not in file or step_limit else None
        if "timeouts" not in file and limit is None:
            limit = _limit_of(env_id, path)
    return Source(str(path), _pieces(path, limit), about)


def _env_id(file: h5py.File) -> str | None:
    found = file.attrs.get("env_id")
    if isinstance(found, bytes):
        return found.decode(errors="replace")
    return None if found is None else str(found)


class _Opened:
    """The file, with damage told as such."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> h5py.File:
        try:
            self.file = h5py.File(self.path, "r")
        except OSError as error:
            raise self._damaged(error) from error
        return self.file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, OSError | RuntimeError | KeyError | ValueError | TypeError | MemoryError):
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> UserError:
        said = " ".join(str(error).split())
        return UserError(
            f"{self.path}: not a complete HDF5 file ({said}); copy or download it again, or wait for its writer"
        )


def _check(path: Path, file: h5py.File) -> None:
    missing = [key for key in REQUIRED if key not in file]
    if missing:
        if "episode_0" in file:
            raise UserError(f"{path} belongs to a Minari dataset: use data.kind minari and the folder above 'data'")
        raise UserError(f"{path}: missing {', '.join(missing)}; a D4RL file needs {', '.join(REQUIRED)}")
    present = [key for key in (*REQUIRED, *OPTIONAL) if key in file]
    for key in present:
        if not isinstance(file[key], h5py.Dataset) or file[key].dtype.kind not in "fiub":
            raise UserError(f"{path}: {key} is not an array of numbers")
    rows = len(file["observations"]) if file["observations"].ndim else 0
    for key in present:
        wanted = {"observations": (2, 3), "actions": (1, 2)}.get(key, (1,))
        if file[key].ndim not in wanted or len(file[key]) != rows:
            raise UserError(
                f"{path}: {key} has shape {file[key].shape}; expected {' or '.join(map(str, wanted))} dimension(s) "
                f"and {rows} rows, as observations"
            )


def _limit_of(env_id: str | None, path: Path) -> int:
    try:
        limit = gymnasium.spec(env_id).max_episode_steps if env_id else None
    except gymnasium.error.Error:
        limit = None
    if limit is None:
        raise UserError(
            f"{path}: there is no 'timeouts', so episodes that a time limit cut cannot be told apart, and the file "
            "names no environment with a limit; give data.step_limit (--step-limit), 1000 for Gym MuJoCo"
        )
    return limit


def _pieces(path: Path, limit: int | None) -> Iterator[Piece]:
    with _Opened(path) as file:
        observations = file["observations"]
        rows = len(observations)
        row_bytes = sum(int(np.prod(file[key].shape[1:])) * file[key].dtype.itemsize for key in REQUIRED)
        step = rows_at_once(row_bytes, observations.chunks[0] if observations.chunks else 1)
        since = 0
        for first in range(0, rows, step):
            columns = {key: file[key][first : first + step] for key in (*REQUIRED, *OPTIONAL) if key in file}
            _refuse_odd_flags(columns, path, first)
            ends, since = _ends(columns, limit, since)
            piece = Piece(
                states_of(columns["observations"], str(path)),
                actions_of(columns["actions"], str(path)),
                reward_of(columns["rewards"], str(path)),
                ends,
                policies_of(columns["policies"], str(path)) if "policies" in columns else None,
            )
            yield checked(piece, str(path), first)


def _refuse_odd_flags(columns: dict[str, np.ndarray], path: Path, first: int) -> None:
    for key in ("terminals", "timeouts"):
        finite = np.isfinite(columns.get(key, np.zeros(0)))
        if not finite.all():
            row = first + int(np.argmin(finite))
            raise UserError(f"{path}: {key} hold NaN or infinity, first in row {row}; they must be true or false")


def _ends(columns: dict[str, np.ndarray], limit: int | None, since: int) -> tuple[np.ndarray, int]:
    """What follows each row, and how many rows of an episode are under way after the last."""
    terminals = columns["terminals"].astype(bool)
    ends = np.full(len(terminals), INSIDE, np.uint8)
    if "timeouts" in columns:
        ends[columns["timeouts"].astype(bool)] = TIMEOUT
    ends[terminals] = TERMINAL
    stops = np.flatnonzero(ends != INSIDE)
    if limit is not None:
        begins = np.concatenate([[-since], stops + 1])
        rows = np.arange(len(ends))
        steps = rows - begins[np.searchsorted(stops, rows)] + 1
        ends[(ends == INSIDE) & (steps % limit == 0)] = TIMEOUT
        stops = np.flatnonzero(ends != INSIDE)
    return ends, len(ends) - 1 - int(stops[-1]) if len(stops) else since + len(ends)
