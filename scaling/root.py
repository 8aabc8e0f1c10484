"""Where the rows of runs live: a folder, or a bucket of an object store. Files appear whole or not at all.

runs                         a folder
s3://bucket/studies          anything that pyarrow.fs knows; options such as endpoint_override follow a ?
"""

import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
from pyarrow import fs

from scaling.errors import UserError

TRIES = 5
"""Of a request to an object store; the pauses between them double from half a second."""

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
        except FileNotFoundError:
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
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        self._walk(Path(entry.path), f"{prefix}{entry.name}/", found)
                    else:
                        found[prefix + entry.name] = entry.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):  # gone in the meantime
            return


class Bucket:
    """A prefix in an object store; a file is one object, put in one request."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self.filesystem, self.prefix = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, OSError, NotImplementedError) as error:
            raise UserError(f"--root {uri} cannot be used: {_line(error)}") from error

    def read(self, path: str) -> bytes | None:
        """The content of a file, or nothing where there is none."""

        def once() -> bytes | None:
            try:
                with self.filesystem.open_input_file(f"{self.prefix}/{path}") as file:
                    content: bytes = file.read()
                    return content
            except FileNotFoundError:
                return None

        return _again(once)

    def write(self, path: str, content: bytes) -> None:
        """Put an object."""

        def once() -> None:
            with self.filesystem.open_output_stream(f"{self.prefix}/{path}") as file:
                file.write(content)

        _again(once)

    def remove(self, path: str) -> None:
        """Remove an object if it is there."""

        def once() -> None:
            try:
                self.filesystem.delete_file(f"{self.prefix}/{path}")
            except FileNotFoundError:
                return

        _again(once)

    def files(self, folder: str = "") -> dict[str, float]:
        """Paths of the objects below a prefix, with the time of their last change."""
        place = f"{self.prefix}/{folder}" if folder else self.prefix

        def once() -> list[Any]:
            found: list[Any] = self.filesystem.get_file_info(
                fs.FileSelector(place, allow_not_found=True, recursive=True)
            )
            return found

        skip = len(self.prefix) + 1
        return {info.path[skip:]: info.mtime.timestamp() for info in _again(once) if info.type == fs.FileType.File}


def open_root(where: str | Path) -> Root:
    """The root that the user named.

    Raises:
        UserError: no file system of this kind is known.

    """
    if "://" not in str(where):
        return Folder(Path(where))
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


def _again(request: Callable[[], Result]) -> Result:
    """The answer to a request, asked again while the store has trouble."""
    pause = 0.5
    for _ in range(TRIES - 1):
        try:
            return request()
        except PermissionError:
            raise
        except OSError:
            time.sleep(pause)
            pause *= 2
    return request()


def _line(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(str(reason).split())
