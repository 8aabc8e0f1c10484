"""From a sweep to what its processes are told, whichever way they are started."""

import os
from dataclasses import dataclass
from typing import Protocol

from scaling.building import cache_folder
from scaling.manifest import Known, Manifest
from scaling.order import Order
from scaling.plan import Costs, longest_first
from scaling.root import Root
from scaling.runs import Runs
from scaling.spec import to_dict

LOCAL, NO_RAY, CLIENT = "local", "none", "ray://"
"""Addresses: a Ray of this machine alone, no Ray, and the beginning of those that are reached through Ray's client."""

Replaces = dict[str, str | None]
"""The runs to be done, with the time on the failed row that is to be replaced, or nothing where there is none."""


class Watcher(Protocol):
    """Told of what happens to runs; the command line's display is one."""

    def progress(self, run_id: str, update: int, loss: float) -> None:
        """A run has reached a point of its curve."""

    def ended(self, run_id: str, loss: float | None) -> None:
        """A run has its row; the loss is missing where it failed."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How each run is carried out; none of it can change a result."""

    threads: int
    """CPU threads per process."""
    checkpoint_seconds: float
    keep_checkpoints: bool


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the sweep may use; none of it can change a result."""

    address: str
    """Of Ray: ``local``, ``auto``, ``host:port``, ``ray://host:port``; or ``none``."""
    cpus: int | None
    """CPU cores in all; nothing for all there are."""
    workers: int
    """Processes per run."""
    threads: int
    """CPU cores per process."""
    gpus: float
    """GPUs per process."""
    max_concurrent: int | None
    """Runs at a time; nothing for as many as the cores allow."""
    pack: int | None
    """Runs of one shape that a process trains together; nothing to choose it by trying."""
    retries: int
    """Further tries of a run whose processes died; errors inside a run are not tried again."""


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def orders_of(runs: Runs, costs: Costs, root: Root, replaces: Replaces, habits: Habits) -> dict[str, Order]:
    """What is to be done of a sweep, longest first.

    Args:
        runs: the sweep.
        costs: of its runs.
        root: where rows go.
        replaces: the runs to be done.
        habits: of the runs.

    """
    return {
        name: Order(
            run_id=name,
            spec=to_dict(runs.specs[name]),
            digest=runs.store(runs.specs[name]).digest,
            folder=str(runs.sweep.folder),
            root=root.uri,
            cache=str(cache_folder().resolve()),
            threads=habits.threads,
            checkpoint_seconds=habits.checkpoint_seconds,
            keep_checkpoint=habits.keep_checkpoints,
            replaces=replaces[name],
        )
        for name in longest_first(costs, replaces)
    }


def manifest_of(runs: Runs, costs: Costs, digest: str) -> Manifest:
    """What the root is to know about a sweep."""
    known = {name: Known(runs.label(name), costs[name].updates, costs[name].C) for name in runs.specs}
    return Manifest(runs.sweep.name, digest, known)
