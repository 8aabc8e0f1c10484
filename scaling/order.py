"""A run to be done, as plain values that travel to the process that does it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaling import garbage, results
from scaling.errors import UserError
from scaling.runs import open_store
from scaling.spec import from_dict
from scaling.store import Store
from scaling.train import Outcome, identity


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run to be done and all that a process needs for it; plain values, so that it travels."""

    run_id: str
    spec: dict[str, Any]
    digest: str
    """Of the dataset when the sweep began."""
    folder: str
    """Of the sweep; relative dataset paths start here."""
    root: str
    cache: str
    """Folder of data stores."""
    threads: int
    checkpoint_seconds: float
    keep_checkpoint: bool
    """Leave the state after the last update beside the row."""
    replaces: str | None = None
    """The time on the failed row that this attempt is to replace."""


def store_of(order: Order) -> Store:
    """The run's dataset.

    Raises:
        UserError: it has changed since the sweep began.

    """
    spec = from_dict(order.spec)
    store = open_store(spec, Path(order.folder))
    if store.digest != order.digest:
        raise UserError(f"{spec.data.path} has changed since the sweep began; start the sweep again")
    return store


def prepare_process(order: Order) -> None:
    """Set what belongs to the process, not to a run, and drop what an earlier run may have left."""
    torch.set_num_threads(order.threads)
    os.environ["SCALING_CACHE"] = order.cache
    garbage.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def failure(order: Order, reason: str) -> Outcome:
    """The outcome of a run that ended without numbers."""
    return Outcome({**identity(from_dict(order.spec), order.digest), "status": results.FAILED, "error": reason}, [])
