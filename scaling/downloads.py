"""D4RL's own files, fetched once, going on where an interrupted download stopped."""

import hashlib
import importlib.metadata
import importlib.util
import urllib.error
import urllib.request
from functools import cache
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from scaling.building import alone, cache_folder
from scaling.errors import UserError
from scaling.plug import suggestion

BLOCK = 1 << 20
GONE = (404, 410, 416)
"""Answers after which a part that is here is of no use."""
TIMEOUT = 30.0
"""Seconds of silence after which a server counts as out of reach."""


@cache
def d4rl_infos() -> dict[str, Any] | None:
    """What ``d4rl/infos.py`` says, or nothing where the package is missing.

    The file is read by its path: importing the package needs the binaries of mujoco-py.
    """
    try:
        listed = importlib.metadata.files("d4rl") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    path = next(Path(str(file.locate())) for file in listed if str(file) == "d4rl/infos.py")
    spec = importlib.util.spec_from_file_location("d4rl_infos", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def d4rl_file(name: str) -> Path:
    """The file of one of D4RL's datasets, such as ``hopper-medium-v2``, in the cache.

    Raises:
        UserError: d4rl is not installed, there is no such dataset, or the server is out of reach.

    """
    infos = d4rl_infos()
    if infos is None:
        raise UserError(
            f"data.path d4rl:{name}: the list of D4RL's files is in the package d4rl: pip install --no-deps d4rl, "
            "or give the path of a file"
        )
    urls: dict[str, str] = infos["DATASET_URLS"]
    if name not in urls:
        raise UserError(f"data.path: D4RL has no dataset {name!r}{suggestion(name, list(urls))}")
    return fetch(urls[name], cache_folder() / "downloads" / f"{name}.hdf5")


def fetch(url: str, path: Path) -> Path:
    """The file at ``url``, kept as ``path`` with its SHA-256 beside it once it is whole.

    A part that is there already is not fetched again, unless the server has another file by now. Who comes second waits
    for who came first.

    Raises:
        UserError: the server is out of reach, or sent less than it said, or there is no room.

    """
    if path.exists():
        return path
    with alone(path):
        if not path.exists():
            _fetch(url, path)
    return path


def altered(path: Path) -> bool:
    """Whether a file is no longer what was once fetched; files that were not fetched are not known to be."""
    beside = path.with_suffix(".sha256")
    return beside.exists() and beside.read_text().split()[0] != _sha256(path)


def _fetch(url: str, path: Path) -> None:
    part, tag = path.with_suffix(".part"), path.with_suffix(".etag")
    try:
        _fetch_rest(url, part, tag)
        digest = _sha256(part)
        path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")
        part.replace(path)
        tag.unlink(missing_ok=True)
    except (OSError, HTTPException) as error:
        have = (
            f"{part.stat().st_size:,} bytes are kept; the same command goes on" if part.exists() else "nothing was kept"
        )
        raise UserError(f"{url}: cannot be fetched ({error}); {have}, or put the file at {path}") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch_rest(url: str, part: Path, tag: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    known = tag.read_text() if have and tag.exists() else ""
    headers = {"Range": f"bytes={have}-", "If-Range": known} if known else {}
    try:
        opened = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it was here already
        if error.code in GONE:
            part.unlink(missing_ok=True)  # a part that the server knows nothing of
        raise
    with opened as answer:
        goes_on = answer.status == 206
        tag.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
        with part.open("ab" if goes_on else "wb") as file:
            _copy(answer, file)
        wanted = int(answer.headers.get("Content-Length") or -1)
        if wanted >= 0 and part.stat().st_size - (have if goes_on else 0) < wanted:
            raise ConnectionError(f"the connection ended after {part.stat().st_size:,} bytes")


def _copy(answer: HTTPResponse, file: Any) -> None:
    while block := answer.read(BLOCK):
        file.write(block)
        file.flush()
