"""Making a store: once, under a lock that dies with its holder, in place only when whole."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from scaling.errors import UserError
from scaling.source import INSIDE, TERMINAL, Piece, Source
from scaling.store import STORE_VERSION, Store, groups, open_store, returns_to_go

HASHED = ("states", "actions", "rewards", "starts", "terminal", "policies")
"""Arrays in the order in which they enter the content digest; the last one only where it is known."""

BLOCK = 16 << 20
"""Bytes read at once for the digest."""

_ELSEWHERE: ContextVar[Path | None] = ContextVar("elsewhere", default=None)

GROUP = 1 << 22
"""About how many transitions are summed to returns at once."""


def cache_folder() -> Path:
    """Where stores are kept: ``$SCALING_CACHE``, else ``scaling`` in the user's cache folder."""
    if elsewhere := _ELSEWHERE.get():
        return elsewhere
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "scaling"
    return Path(os.environ.get("SCALING_CACHE", default))


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Builds every store anew, in a folder beside the others that is gone afterwards."""
    place = cache_folder()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fresh-", dir=place) as folder:
        token = _ELSEWHERE.set(Path(folder))
        try:
            yield
        finally:
            _ELSEWHERE.reset(token)


def file_identity(source: Path) -> str:
    """Names the content of a file, or of all files below a folder, by place, size and time of change.

    Raises:
        UserError: it cannot be looked at, or is there no longer.

    """
    try:
        if source.is_dir():
            return "|".join(file_identity(file) for file in sorted(source.rglob("*")) if file.is_file())
        stat = source.stat()
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from error
    return f"{source.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def build_once(identity: Callable[[], str], read: Callable[[], Source], cache: Path | None = None) -> Store:
    """The store of the dataset that ``identity`` names, made with ``read`` unless it was built before.

    Args:
        identity: text that differs whenever the content would; see :func:`file_identity`. Asked for again after
            reading, so that a file which is still being written is refused.
        read: gives the transitions.
        cache: folder of stores, instead of :func:`cache_folder`.

    Raises:
        UserError: the dataset cannot be used, or the cache not be written.

    """
    before = identity()
    name = hashlib.sha256(f"{STORE_VERSION}|{before}".encode()).hexdigest()[:24]
    folder = (cache or cache_folder()) / "stores" / name
    if not folder.is_dir():
        with alone(folder):
            if not folder.is_dir():
                for left in folder.parent.glob(f".building-{folder.name}-*"):  # by one who was killed
                    shutil.rmtree(left, ignore_errors=True)
                build(folder, read(), lambda: identity() == before)
    return open_store(folder)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else makes what will be at ``path`` meanwhile; the lock falls when its holder ends, however it ends.

    Raises:
        UserError: the folder cannot be written.

    """
    with ExitStack() as stack:
        with _writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Tells what hinders writing: no right to, no room."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the data cache {cache}: {error.strerror or error}; "
            "set SCALING_CACHE to a folder that can be written and has room"
        ) from error


def build(folder: Path, source: Source, unchanged: Callable[[], bool] = lambda: True) -> None:
    """Write the store under a hidden name and rename it into place.

    Raises:
        UserError: the dataset cannot be used or changed while it was read, or there is no room for the store.

    """
    with _writing(folder.parent):
        temporary = Path(tempfile.mkdtemp(prefix=f".building-{folder.name}-", dir=folder.parent))
    try:
        _write(temporary, source)
        if not unchanged():
            raise UserError(f"{source.name} changed while it was read; wait until it is written, then start again")
        with _writing(folder.parent):
            temporary.chmod(0o755)  # other users of a shared cache may read it
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Growing:
    """A ``.npy`` file to which rows are added; its header is written last, over one of the same length."""

    def __init__(self, path: Path, like: np.ndarray) -> None:
        self.like, self.rows = like[:0], 0
        self.file = path.open("wb")
        self._header(0)
        self.start = self.file.tell()

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self, rows: int) -> None:
        """Keep the first rows."""
        self.file.truncate(self.start + rows * self.like.itemsize * int(np.prod(self.like.shape[1:])))
        self.file.seek(0)
        self._header(rows)
        self.file.close()

    def _header(self, rows: int) -> None:
        shape = (rows, *self.like.shape[1:])
        values = {"descr": npy.dtype_to_descr(self.like.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self.file, values)


class _Columns:
    """The growing arrays of a store and where its episodes end."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder, self.source = folder, source
        self.growing: dict[str, _Growing] = {}
        self.last: list[np.ndarray] = []
        self.terminal: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.rows = self.choices = 0
        self.under_way: int | None = None
        """Policy of the episode that the last piece did not end."""

    def add(self, piece: Piece) -> None:
        arrays = {name: getattr(piece, name) for name in ("states", "actions", "rewards")}
        for name, array in arrays.items():
            if name not in self.growing:
                self.growing[name] = _Growing(self.folder / f"{name}.npy", array)
            like = self.growing[name].like
            if like.shape[1:] != array.shape[1:] or like.dtype != array.dtype:
                raise UserError(
                    f"{self.source.name}: {name} change from {like.shape[1:]} {like.dtype} to {array.shape[1:]} "
                    f"{array.dtype} in row {self.rows}; all episodes must have the same"
                )
            self.growing[name].append(array)
        if piece.actions.ndim == 1:
            self.choices = max(self.choices, int(piece.actions.max(initial=0)) + 1)
        last = np.flatnonzero(piece.ends != INSIDE)
        self.last.append(last + self.rows)
        self.terminal.append(piece.ends[last] == TERMINAL)
        if piece.policies is not None:
            self._refuse_change(piece)
            self.labels.append(piece.policies[last].astype(np.int32))
        self.rows += len(piece.ends)

    def _refuse_change(self, piece: Piece) -> None:
        """An episode is one policy's."""
        assert piece.policies is not None
        before = np.array([] if self.under_way is None else [self.under_way], np.int32)
        labels = np.concatenate([before, piece.policies])
        inside = np.concatenate([np.ones(len(before), bool), piece.ends == INSIDE])
        changes = np.flatnonzero((labels[1:] != labels[:-1]) & inside[:-1])
        if len(changes):
            row = self.rows + int(changes[0]) + 1 - len(before)
            raise UserError(f"{self.source.name}: the policy changes in row {row}, inside an episode; give it one")
        self.under_way = int(labels[-1]) if inside[-1] else None

    def close(self) -> dict[str, Any]:
        """Drop what no end follows, write the index of episodes; what was noticed."""
        last = np.concatenate([np.zeros(0, np.int64), *self.last]).astype(np.int64)
        if len(last) < 2:
            raise UserError(
                f"{self.source.name}: {len(last)} finished episode(s) in {self.rows} rows; at least 2 are needed, "
                "one to train on and one to hold out"
            )
        starts = np.concatenate([[0], last + 1])
        for column in self.growing.values():
            column.close(int(starts[-1]))
        np.save(self.folder / "starts.npy", starts)
        np.save(self.folder / "terminal.npy", np.concatenate(self.terminal))
        if sum(map(len, self.labels)) == len(last):
            np.save(self.folder / "policies.npy", np.concatenate(self.labels))
        _write_returns(self.folder, starts, self.source.name)
        if self.choices > self.source.about.get("choices", self.choices):
            raise UserError(
                f"{self.source.name}: actions reach {self.choices - 1}; the dataset says that there are "
                f"{self.source.about['choices']} choices, numbered from 0 on"
            )
        noticed = {"transitions_after_last_end": self.rows - int(starts[-1])}
        return noticed | ({"choices": self.choices} if self.choices else {}) | self.source.about

    def abandon(self) -> None:
        for column in self.growing.values():
            with suppress(OSError):  # the first one was told
                column.file.close()


def _write(folder: Path, source: Source) -> None:
    columns = _Columns(folder, source)
    try:
        for piece in source.pieces:
            with _writing(folder.parent):
                columns.add(piece)
        with _writing(folder.parent):
            about = columns.close()
            manifest = {"version": STORE_VERSION, "digest": content_digest(folder, about), "about": about}
            (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    finally:
        columns.abandon()


def _write_returns(folder: Path, starts: np.ndarray, name: str) -> None:
    rewards = np.load(folder / "rewards.npy", mmap_mode="r")
    rtg = _Growing(folder / "rtg.npy", rewards)
    try:
        for first, stop in groups(starts, GROUP):
            rows = slice(starts[first], starts[stop])
            with np.errstate(over="ignore"):
                sums = returns_to_go(rewards[rows], starts[first : stop + 1] - starts[first])
            if not np.isfinite(sums).all():
                row = int(starts[first]) + int(np.argmin(np.isfinite(sums)))
                raise UserError(f"{name}: rewards from row {row} on add up beyond single precision; scale them down")
            rtg.append(sums)
        rtg.close(rtg.rows)
    finally:
        rtg.file.close()


def content_digest(folder: Path, about: dict[str, Any]) -> str:
    """SHA-256 over every array of a store with its name, type and shape, and over the number of choices."""
    digest = hashlib.sha256()
    for name in HASHED:
        path = folder / f"{name}.npy"
        if path.exists():
            with path.open("rb") as file:
                npy.read_magic(file)
                shape, _, dtype = npy.read_array_header_1_0(file)
                digest.update(f"{name}|{dtype.str}|{shape}|".encode())
                _hash_rest(file, digest)
    if "choices" in about:
        digest.update(f"choices|{about['choices']}|".encode())
    return digest.hexdigest()


def _hash_rest(file: io.BufferedReader, digest: Any) -> None:
    block = bytearray(BLOCK)
    while count := file.readinto(block):
        digest.update(memoryview(block)[:count])
