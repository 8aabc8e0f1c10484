"""Episodes from one's own logs, a row per step in a Parquet or Arrow file, or in a folder of such files by name.

    episode      whole number or text; the rows of an episode stand together, in time order
    observation  list of numbers, equally long in every row
    action       list of numbers in [-1, 1], or a whole number from 0 on for choices
    reward       number
    terminal     true where the environment ended the episode; the last row of one that a limit cut has false

Two more columns may be there: ``timestep``, which must then count up by one within an episode, and ``policy``, a whole
number that says who acted.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scaling.building import build_once, file_identity
from scaling.errors import UserError
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

FIELDS = ("path",)
NEEDED = ("episode", "observation", "action", "reward", "terminal")
OPTIONAL = ("timestep", "policy")
SUFFIXES = (".parquet", ".arrow", ".feather")


def recognises(path: Path) -> bool:
    """Whether it is such a file, or a folder of them."""
    return path.suffix in SUFFIXES if path.is_file() else any(_files(path))


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: there is no file, a column is missing or of the wrong type, or time does not go on.

    """
    path = place_of(spec.path, folder)
    if not path.exists():
        raise UserError(f"data.path: no such file or folder: {path}; give a {' or '.join(SUFFIXES)} file")
    return build_once(lambda: f"arrow|{'|'.join(map(file_identity, _files(path)))}", lambda: read(path))


def read(path: Path) -> Source:
    """The transitions of all files, checked as they are read."""
    files = _files(path)
    if not files:
        raise UserError(f"{path}: no file that ends in {', '.join(SUFFIXES)}")
    return Source(str(path), _pieces(files, str(path)), {"env_id": None, **_choices(files[0])})


def _choices(file: Path) -> dict[str, int]:
    """How many choices there are, where a Parquet file says so of itself."""
    if file.suffix != ".parquet":
        return {}
    try:
        said = (pq.read_schema(file).metadata or {}).get(b"choices", b"")
    except (OSError, ValueError, pa.ArrowException):
        return {}  # told when the file is read
    return {"choices": int(said)} if said.isdigit() else {}


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in SUFFIXES)


def _pieces(files: list[Path], name: str) -> Iterator[Piece]:
    """Each row's end is known from the next row, so one row is held back."""
    waiting: list[pa.RecordBatch] = []
    seen: set[object] = set()
    first = size = 0
    for file in files:
        for batch in _batches(file):
            if waiting and waiting[0].schema != batch.schema:
                raise UserError(f"{file}: its columns or their types differ from those of the file before it")
            waiting.append(batch)
            size += batch.nbytes
            if size >= rows_at_once(1) and (whole := _joined(waiting)).num_rows > 1:
                yield _piece(whole, name, first, seen, last=False)
                first += len(whole) - 1
                waiting, size = [whole.slice(len(whole) - 1)], 0
    if waiting:
        yield _piece(_joined(waiting), name, first, seen, last=True)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as parquet:
                names = _columns(file, parquet.schema_arrow)
                rows = max(1, parquet.metadata.num_rows)
                size = sum(parquet.metadata.row_group(i).total_byte_size for i in range(parquet.num_row_groups)) // rows
                for batch in parquet.iter_batches(rows_at_once(4 * size), columns=names):
                    yield from _slices(batch)
        else:
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_file(mapped) as reader:
                names = _columns(file, reader.schema)
                for number in range(reader.num_record_batches):
                    yield from _slices(reader.get_batch(number).select(names))
    except (OSError, ValueError, pa.ArrowException) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{file}: not a whole {file.suffix} file ({said}); copy or write it again") from error


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch, valid, cut where it is large: that of an Arrow file may hold all rows there are, as they lie in it."""
    batch.validate(full=True)
    rows = rows_at_once(batch.nbytes // max(1, len(batch)))
    yield from (batch.slice(first, rows) for first in range(0, len(batch), rows))


def _columns(file: Path, schema: pa.Schema) -> list[str]:
    missing = [name for name in NEEDED if name not in schema.names]
    if missing:
        raise UserError(f"{file}: no column {', '.join(missing)}; expected {', '.join(NEEDED)}")
    return [name for name in (*NEEDED, *OPTIONAL) if name in schema.names]


def _piece(batch: pa.RecordBatch, name: str, first: int, seen: set[object], *, last: bool) -> Piece:
    """The rows of a batch, but the last one unless nothing follows it."""
    for column in batch.schema.names:
        if batch[column].null_count:
            row = first + int(np.argmax(batch[column].is_null().to_numpy(zero_copy_only=False)))
            raise UserError(f"{name}: {column} is missing in row {row}")
    rows = len(batch) if last else len(batch) - 1
    values = {key: _numbers(batch[key], key, name, first) for key in batch.schema.names if key != "episode"}
    episode = _episode_names(batch["episode"], name)
    changes = np.ones(rows, bool)
    changes[: len(episode) - 1] = episode[1 : rows + 1] != episode[: min(rows, len(episode) - 1)]
    _refuse_scattered(episode[:rows][changes], name, seen)
    if "timestep" in values:
        _refuse_jumps(_whole("timestep", values["timestep"], name), changes, name, first)
    terminal = _true_or_false(values["terminal"], name)[:rows]
    if (terminal & ~changes).any():
        row = int(np.argmax(terminal & ~changes))
        goes_on = episode[row : row + 1].tolist()[0]
        raise UserError(f"{name}: terminal is true in row {first + row}, and episode {goes_on!r} goes on after it")
    piece = Piece(
        states_of(values["observation"][:rows], name),
        actions_of(values["action"][:rows], name),
        reward_of(values["reward"][:rows], name),
        ends=np.where(changes, np.where(terminal, TERMINAL, TIMEOUT), INSIDE).astype(np.uint8),
        policies=policies_of(values["policy"][:rows], name) if "policy" in values else None,
    )
    return checked(piece, name, first)


def _episode_names(column: pa.Array, name: str) -> np.ndarray:
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    kind = plain.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{name}: episode has type {kind}; expected whole numbers or text")
    return plain.to_numpy(zero_copy_only=False)


def _whole(key: str, values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(f"{name}: {key} has shape {values.shape} and type {values.dtype}; expected whole numbers")
    return values.astype(np.int64)


def _true_or_false(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise UserError(
            f"{name}: terminal has shape {values.shape} and type {values.dtype}; expected true or false, (row,)"
        )
    return values.astype(bool)


def _refuse_scattered(ended: np.ndarray, name: str, seen: set[object]) -> None:
    for episode in ended.tolist():
        if episode in seen:
            raise UserError(f"{name}: the rows of episode {episode!r} do not stand together; sort by episode and time")
        seen.add(episode)


def _refuse_jumps(timestep: np.ndarray, changes: np.ndarray, name: str, first: int) -> None:
    inside = np.flatnonzero(~changes[: len(timestep) - 1])
    jumps = inside[np.diff(timestep)[inside] != 1]
    if len(jumps):
        row = int(jumps[0])
        raise UserError(
            f"{name}: timestep goes from {timestep[row]} to {timestep[row + 1]} after row {first + row}; it must count "
            "up by one within an episode"
        )


def _numbers(column: pa.Array, key: str, name: str, first: int) -> np.ndarray:
    """A column as an array; lists become rows."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = column.value_lengths().to_numpy()
        other = np.flatnonzero(lengths != lengths[0])
        if len(other):
            raise UserError(
                f"{name}: {key} has {lengths[0]} numbers in row {first} and {lengths[other[0]]} in row "
                f"{first + int(other[0])}; all rows must have as many"
            )
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), int(lengths[0]))
    return column.to_numpy(zero_copy_only=False)
