"""The state of a run between two updates, as bytes that hold tensors and plain values alone.

They are read without unpickling objects, so a checkpoint that somebody else wrote can be wrong but runs nothing.
"""

import hashlib
import io
import pickle
import zipfile
from typing import Any, Protocol

import torch

from scaling import provenance

SUM = hashlib.sha256().digest_size
"""Bytes in front that tell whether the rest is whole."""

State = dict[str, Any]
"""Tensors and plain values by name."""


class Keeper(Protocol):
    """Decides when a run's state is saved; asked between any two updates, and between steps of rollouts."""

    keeps_last: bool
    """Whether the state after the last update is wanted in any case."""

    def wants(self) -> bool:
        """Whether the state should be saved now."""

    def keep(self, state: State) -> None:
        """Save the state; to end the run there, raise :class:`scaling.errors.Interrupted`."""


class Nobody:
    """Never saves."""

    keeps_last = False

    def wants(self) -> bool:
        """No."""
        return False

    def keep(self, state: State) -> None:
        """Nothing."""


def path_of(run_id: str) -> str:
    """Where in the root a run's checkpoint lies."""
    return f"{run_id}/checkpoint.pt"


def pack(run_id: str, state: State) -> bytes:
    """The state as bytes, marked with the run and the code that made it."""
    buffer = io.BytesIO()
    torch.save({**_origin(run_id), "state": state}, buffer)
    content = buffer.getvalue()
    return hashlib.sha256(content).digest() + content


def unpack(run_id: str, content: bytes) -> State | None:
    """The state, or nothing where the bytes are damaged, of another run, or made by other code or packages."""
    sum_, content = content[:SUM], content[SUM:]
    if hashlib.sha256(content).digest() != sum_:
        return None
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None
    origin = _origin(run_id)
    if not isinstance(found, dict) or {name: found.get(name) for name in origin} != origin:
        return None
    state: State = found["state"]
    return state


def _origin(run_id: str) -> dict[str, Any]:
    return {"run_id": run_id, "code": provenance.code(), "versions": provenance.versions()}
