"""The folder of a collection: who works in it, for which command, and how far it is."""

import importlib.metadata
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.provenance import git_commit, processor, versions

MANIFEST = "manifest.json"
PARTS = ".parts"
"""Folder of finished pieces of what is under way."""
PACKAGES = ("stable-baselines3", "ale-py")
"""Named in the manifest beside those of every run."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What decides the content of the files, apart from how much of it is wanted."""

    env: str
    policy: str
    seed: int
    checkpoint_every: int | None = None
    """Steps between saved policies."""
    rows_per_file: int | None = None


@contextmanager
def claim(folder: Path, request: Request) -> Iterator[dict[str, Any]]:
    """The manifest so far, while no other process may work in the folder.

    Raises:
        UserError: the folder cannot be written, is in use, or holds something else.

    """
    import fcntl  # POSIX only; other verbs run anywhere

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}; choose another folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield _manifest(folder, request)
    except BlockingIOError as error:
        raise UserError(
            f"--out {folder}: another process is collecting there; wait for it or choose another"
        ) from error
    finally:
        os.close(lock)


def _manifest(folder: Path, request: Request) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        foreign = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        if foreign:
            raise UserError(f"--out {folder} holds {foreign[0]} and no {MANIFEST}; choose a new or empty folder")
        write(folder, {"request": asdict(request)})
    manifest: dict[str, Any] = json.loads(path.read_text())
    for name, value in manifest["request"].items():
        if value != getattr(request, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"--out {folder} was begun with {option} {value}, not {getattr(request, name)}; choose another folder"
            )
    return manifest


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest, with versions added."""
    found = {**json.loads(versions())}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    origin = {"git_commit": git_commit(), "processor": processor(), "versions": found}
    temporary = folder / f".{MANIFEST}.partial"
    temporary.write_text(json.dumps({**manifest, **origin}, indent=2) + "\n")
    temporary.replace(folder / MANIFEST)
