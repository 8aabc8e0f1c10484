"""What a sweep may use and how it is carried out; none of it can change a result."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from scaling.errors import UserError
from scaling.spec import RunSpec

LOCAL, NO_RAY, CLIENT = "local", "none", "ray://"
"""Addresses: a Ray of this machine alone, no Ray, and the beginning of those that are reached through Ray's client."""


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a sweep is carried out; none of it can change a result."""

    resources: Resources
    habits: Habits
    trackers: tuple[str, ...]
    wait: bool
    """Stay while others hold the last runs."""
    is_sound: bool
    """Whether a run of the sweep was done before."""


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(wanted: Resources, trackers: tuple[str, ...], specs: Iterable[RunSpec]) -> None:
    """Refuse what could never start.

    Raises:
        UserError: options exclude each other, or a run asks for more than there is.

    """
    for name in {"wandb", "mlflow"} & set(trackers) if wanted.pack and wanted.pack > 1 else ():
        raise UserError(
            f"--pack {wanted.pack} cannot go with --log {name}, which takes one run at a time; leave one out"
        )
    smallest = min(spec.train.batch for spec in specs)
    if wanted.workers > smallest:
        raise UserError(f"--workers {wanted.workers} cannot share a train.batch of {smallest}; use fewer workers")
    if wanted.address == NO_RAY:
        if wanted.workers > 1:
            raise UserError(f"--workers {wanted.workers} needs Ray; use --address local, or one worker")
        if set(trackers) - {"none"}:
            raise UserError(f"--log {trackers[0]} needs Ray; use --address local")
        return
    cpus = wanted.cpus or (available_cpus() if wanted.address == LOCAL else None)
    if cpus is not None and wanted.threads * wanted.workers > cpus:
        raise UserError(
            f"one run takes {wanted.workers} worker(s) x {wanted.threads} thread(s), and there are {cpus} core(s) to "
            "use; lower --workers or --threads"
        )
