"""Episodes from an HDF5 file in the D4RL layout (Fu et al. 2020; flat arrays in time order, no episode index).

An episode ends where ``terminals`` or ``timeouts`` is true. A timeout is not a terminal: the episode was cut by a
limit. Rows after the last end belong to an unfinished episode and are left out, as in the Decision Transformer's
conversion script; the store's manifest counts them.
"""

from importlib import resources
from pathlib import Path

import h5py
import numpy as np

from scaling.errors import UserError
from scaling.spec import DataSpec
from scaling.store import Episodes, Store, build_once, file_identity

FIELDS = ("path",)
EMBEDDED = "embedded:"
REQUIRED = ("observations", "actions", "rewards", "terminals")


def locate(path: str, folder: Path) -> Path:
    """The file that a sweep in ``folder`` means by ``path``.

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
    file = folder / Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"data.path: no such file: {file}; give a D4RL HDF5 file or {EMBEDDED}hopper-mini-v5")
    return file


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: the file is missing, truncated, lacks a key, or holds values that cannot be trained on.

    """
    path = locate(spec.path, folder)
    return build_once(file_identity(path), lambda: read(path))


def read(path: Path) -> Episodes:
    """All finished episodes of the file, checked."""
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in REQUIRED if key not in file]
            if missing:
                raise UserError(f"{path}: missing {', '.join(missing)}; a D4RL file needs {', '.join(REQUIRED)}")
            odd = [key for key in (*REQUIRED, "timeouts") if key in file and not _is_numbers(file[key])]
            if odd:
                raise UserError(f"{path}: {odd[0]} is not an array of numbers")
            columns = {key: file[key][()] for key in (*REQUIRED, "timeouts") if key in file}
            env_id = file.attrs.get("env_id")
    except OSError as error:
        raise UserError(f"{path}: not a complete HDF5 file ({error}); copy or download it again") from error
    if "timeouts" not in columns:
        raise UserError(
            f"{path}: there is no 'timeouts', so episodes that a time limit cut cannot be told apart; "
            "add a bool array that is true on the last row of each such episode"
        )
    _check(path, columns)
    return _cut(path, columns, str(env_id) if env_id is not None else None)


def _is_numbers(item: h5py.Dataset | h5py.Group) -> bool:
    return isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub"


def _check(path: Path, columns: dict[str, np.ndarray]) -> None:
    rows = len(columns["observations"])
    for key, array in columns.items():
        dimensions = 2 if key in ("observations", "actions") else 1
        if array.ndim != dimensions or len(array) != rows:
            raise UserError(
                f"{path}: {key} has shape {array.shape}; expected {dimensions} dimension(s) "
                f"and {rows} rows, as observations"
            )
    for key in ("observations", "actions", "rewards"):
        finite = np.isfinite(columns[key]).reshape(rows, -1).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{path}: {key} holds NaN or infinity in {np.count_nonzero(~finite)} of {rows} rows, "
                f"first in row {int(np.argmin(finite))}; repair or remove those episodes"
            )
    largest = float(np.abs(columns["actions"]).max(initial=0.0))
    if largest > 1.0 + 1e-5:
        raise UserError(f"{path}: actions reach {largest:g}; scale them to [-1, 1], the range of the action head")


def _cut(path: Path, columns: dict[str, np.ndarray], env_id: str | None) -> Episodes:
    terminals = columns["terminals"].astype(bool)
    last = np.flatnonzero(terminals | columns["timeouts"].astype(bool))
    if len(last) < 2:
        raise UserError(
            f"{path}: {len(last)} finished episode(s) in {len(terminals)} rows; at least 2 are needed, "
            "one to train on and one to hold out"
        )
    starts = np.concatenate([[0], last + 1]).astype(np.int64)
    stop = int(starts[-1])
    return Episodes(
        states=columns["observations"][:stop].astype(np.float32),
        actions=columns["actions"][:stop].astype(np.float32),
        rewards=columns["rewards"][:stop].astype(np.float32),
        starts=starts,
        terminal=terminals[last],
        about={"env_id": env_id, "transitions_after_last_end": len(terminals) - stop},
    )
