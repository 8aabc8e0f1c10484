"""What the root knows about a sweep: its runs and what they will take, so that any machine can tell how it stands.

It is written when a sweep is run, and again when the sweep has changed. ``status`` and ``retry`` read it; ``run`` does,
to tell whether there may be work before it knows the runs.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from scaling.errors import UserError
from scaling.root import Root


@dataclass(frozen=True)
class Known:
    """One run, as far as it is known before it starts."""

    label: str
    """Its model and its data in words."""
    updates: int
    flops: float


@dataclass(frozen=True)
class Manifest:
    """The runs of a sweep by run_id."""

    name: str
    digest: str
    """Of the sweep's file, comments included."""
    runs: dict[str, Known]


def digest_of(sweep: Path) -> str:
    """Names the content of a sweep's file.

    Raises:
        UserError: it cannot be read.

    """
    try:
        return hashlib.sha256(sweep.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{sweep}: {error.strerror}") from error


def write(root: Root, manifest: Manifest) -> None:
    """Leave it in the root."""
    root.write(_path(manifest.name), json.dumps(asdict(manifest)).encode())


def read(root: Root, name: str, digest: str) -> Manifest | None:
    """The manifest of this very sweep, or nothing where it was never run or has changed since."""
    content = root.read(_path(name))
    try:
        values = json.loads(content) if content else {}
        if values.get("digest") != digest:
            return None
        return Manifest(values["name"], digest, {key: Known(**run) for key, run in values["runs"].items()})
    except (ValueError, KeyError, TypeError, AttributeError):  # of another version
        return None


def _path(name: str) -> str:
    return f"sweeps/{name}.json"
