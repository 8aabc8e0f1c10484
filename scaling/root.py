"""Where the rows of runs live: a folder, or a bucket of an object store. Files appear whole or not at all.

runs                         a folder
s3://bucket/studies          anything that pyarrow.fs knows; options such as endpoint_override follow a ?
"""

import errno
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
from pyarrow import fs

from scaling.errors import UserError

PATIENCE = 10.0
"""Seconds after which a request to an object store that has trouble is not made again; the pauses between requests
double from half a second. A store that says nothing is waited for some 3 s at a time."""

REFUSALS = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": "the store refuses these credentials, or there are none",
    "INVALID_ACCESS_KEY_ID": "the store does not know these credentials",
    "INVALID_CLIENT_TOKEN_ID": "the store does not know these credentials",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is not the one of the access key",
}
"""Answers of S3 that do not change when asked again."""

Result = TypeVar("Result")


class Root(Protocol):
    """Files below one place, by paths relative to it, with forward slashes."""

    uri: str
    """From which any process opens the same root."""

    def read(self, path: str) -> bytes | None:
        """The content of a file, or nothing where there is none."""

    def write(self, path: str, content: bytes) -> None:
        """Make or replace a file; readers see all of it or nothing."""

    def remove(self, path: str) -> None:
        """Remove a file if it is there."""

    def files(self, folder: str = "") -> dict[str, float]:
        """Paths of the files below a folder, with the time of their last change by the root's own clock."""


class Folder:
    """A folder that all processes see."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.uri = str(self.path)

    def read(self, path: str) -> bytes | None:
        """The content of a file, or nothing where there is none."""
        try:
            return (self.path / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, content: bytes) -> None:
        """Write to a hidden name beside it, flush to disk, rename."""
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        """Remove a file if it is there."""
        (self.path / path).unlink(missing_ok=True)

    def files(self, folder: str = "") -> dict[str, float]:
        """Paths of the files below a folder, hidden ones left out, with the time of their last change."""
        found: dict[str, float] = {}
        self._walk(self.path / folder, f"{folder}/" if folder else "", found)
        return found

    def _walk(self, folder: Path, prefix: str, found: dict[str, float]) -> None:
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):  # not there, or gone in the meantime
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                self._walk(Path(entry.path), f"{prefix}{entry.name}/", found)
                continue
            with suppress(FileNotFoundError):  # gone in the meantime
                found[prefix + entry.name] = entry.stat().st_mtime


class Bucket:
    """A prefix in an object store; a file is one object, put in one request, or in parts that are joined at the end."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.filesystem, self.prefix = _connect(uri)

    def read(self, path: str) -> bytes | None:
        """The content of a file, or nothing where there is none."""

        def once() -> bytes | None:
            try:
                with self.filesystem.open_input_file(f"{self.prefix}/{path}") as file:
                    content: bytes = file.read()
                    return content
            except FileNotFoundError:
                return None

        return self._again(once)

    def write(self, path: str, content: bytes) -> None:
        """Put an object."""

        def once() -> None:
            # A stream that is closed after an error joins what it has, so all is given to it in one call that either
            # takes it or not; parts that were lost in the background make closing fail, and nothing appears.
            with self.filesystem.open_output_stream(f"{self.prefix}/{path}", compression=None) as file:
                file.write(content)

        self._again(once)

    def remove(self, path: str) -> None:
        """Remove an object if it is there."""

        def once() -> None:
            try:
                self.filesystem.delete_file(f"{self.prefix}/{path}")
            except FileNotFoundError:
                return

        self._again(once)

    def files(self, folder: str = "") -> dict[str, float]:
        """Paths of the objects below a prefix, hidden ones left out, with the time of their last change."""
        place = f"{self.prefix}/{folder}" if folder else self.prefix

        def once() -> list[Any]:
            try:  # to allow what is not found would allow buckets that do not exist
                found: list[Any] = self.filesystem.get_file_info(fs.FileSelector(place, recursive=True))
                return found
            except FileNotFoundError:
                return []

        skip = len(self.prefix) + 1
        times = {info.path[skip:]: info.mtime.timestamp() for info in self._again(once) if info.is_file}
        return {path: changed for path, changed in times.items() if "/." not in f"/{path}"}

    def _again(self, request: Callable[[], Result]) -> Result:
        """The answer to a request, asked again while the store has trouble.

        Raises:
            OSError: the trouble lasts, or no asking helps.

        """
        begin, pause = time.monotonic(), 0.5
        while True:
            try:
                return request()
            except (PermissionError, FileNotFoundError):
                raise
            except OSError as error:
                said = _line(error)
                refusal = next((meaning for answer, meaning in REFUSALS.items() if answer in said), None)
                if refusal or time.monotonic() - begin + pause > PATIENCE:
                    said = f"{refusal} ({said})" if refusal else said
                    raise OSError(errno.EIO, said, self.uri) from error
            time.sleep(pause)
            pause *= 2


@functools.cache
def _connect(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it; made once per process, as S3 is asked for the bucket's region.

    Raises:
        UserError: there is no such file system.

    """
    scheme, _, place = uri.partition("://")
    if "@" in place.partition("/")[0]:
        raise UserError(
            f"--root {scheme}://...@...: keys do not belong into a root, which is printed and written down; use the "
            "store's own variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        filesystem, prefix = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError, NotImplementedError) as error:
        raise UserError(f"--root {uri} cannot be used: {_line(error)}") from error
    if filesystem.type_name == "s3":
        filesystem = _patient(filesystem)
    prefix = prefix.rstrip("/")
    if not prefix:
        raise UserError(f"--root {uri} cannot be used: it names no bucket, as s3://bucket/prefix does")
    return filesystem, prefix


def _patient(found: fs.S3FileSystem) -> fs.S3FileSystem:
    """The same file system, which puts an object in one request, not in three, and asks twice, not thirty times."""
    _, (options,) = found.__reduce__()
    kept = {name: value for name, value in options.items() if value and value != -1.0 and name != "proxy_options"}
    strategy = fs.AwsStandardS3RetryStrategy(max_attempts=2)
    return fs.S3FileSystem(**{**kept, "allow_delayed_open": True, "retry_strategy": strategy})


def open_root(where: str | Path) -> Root:
    """The root that the user named.

    Raises:
        UserError: no file system of this kind is known.

    """
    if "://" not in str(where):
        return Folder(Path(where))
    if _connect(str(where))[0].type_name == "local":
        return Folder(Path(_connect(str(where))[1]))
    return Bucket(str(where))


def check_writable(root: Root) -> None:
    """Refuse a root that rows cannot be written to.

    Raises:
        UserError: with the reason.

    """
    probe = f"probe-{uuid.uuid4().hex}"
    try:
        root.write(probe, b"")
        root.remove(probe)
    except OSError as error:
        raise UserError(f"the root {root.uri} cannot be written: {_line(error)}; choose another with --root") from error


def now(root: Root, folder: str = "") -> float:
    """The root's own time, as its files are dated; this machine's where nothing can be written."""
    probe = f"{folder}/now-{uuid.uuid4().hex}" if folder else f"now-{uuid.uuid4().hex}"
    try:
        root.write(probe, b"")
        dated = root.files(folder)[probe]
        root.remove(probe)
    except OSError:
        return time.time()
    return dated


def _line(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(str(reason).split())
