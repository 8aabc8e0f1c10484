"""A Ray of this machine alone, or a running one."""

import functools
import logging
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # without GPUs of its own a process sees none

import ray
from ray._common.utils import get_ray_address_file
from ray._private import parameter, ray_constants

from scaling.errors import UserError

DEADLINE = 30.0
"""Seconds in which a running Ray must answer."""


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """Ray with ``cpus`` cores, heard by this machine alone, quiet, ended on leaving; or the one connected to."""
    if ray.is_initialized():
        yield
        return
    with _loopback():
        try:
            with _quiet():
                _start(cpus)
            yield
        finally:
            ray.shutdown()


@contextmanager
def starting_ray(cpus: int) -> Iterator[Callable[[], None]]:
    """The same, started beside the block by a thread, for which the function waits that is handed out.

    The thread must live as long as Ray, whose processes end with the thread that started them.
    """
    if ray.is_initialized():
        yield lambda: None
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _loopback(), ThreadPoolExecutor(1) as thread:
        started = thread.submit(_start, cpus)
        try:
            yield started.result
        finally:
            started.exception()
            ray.shutdown()


def _start(cpus: int) -> None:
    """Start it, but not what looks after machines that come and go, nor what reads logs aloud: seconds of work."""
    before = parameter.RayParams
    parameter.RayParams = functools.partial(before, no_monitor=True, include_log_monitor=False)
    try:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **_SILENT)
    finally:
        parameter.RayParams = before


@contextmanager
def _loopback() -> Iterator[None]:
    """Every port of a Ray that is started is bound to the loopback address."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def running_ray(address: str) -> Iterator[None]:
    """The Ray at ``auto``, ``host:port`` or ``ray://host:port``, left running on leaving.

    Raises:
        UserError: nothing answers there, or it refuses.

    """
    place = _current() if address == "auto" else address
    _probe(place)
    with _quiet():
        _connect(place)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def told_when_lost() -> Iterator[None]:
    """Turns the loss of Ray into trouble that passes.

    Raises:
        ConnectionError: Ray is gone, or what it ran for us.

    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ConnectionError(f"Ray was lost: {_first_line(error)}") from error


def _current() -> str:
    try:
        return Path(get_ray_address_file(None)).read_text().strip()
    except OSError as error:
        raise UserError(
            "--address auto finds no Ray on this machine; start one with 'ray start --head', or use --address local"
        ) from error


def _probe(address: str) -> None:
    """Refuse an address where no port is open; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5.0):
            return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"no Ray answers at {address}: {reason}; start one with 'ray start --head', or use --address local"
        ) from error


def _connect(address: str) -> None:
    """Connect in a thread, so that whatever listens there cannot hold us for ever."""
    trouble: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address=address, **_SILENT)
        except BaseException as error:  # noqa: BLE001 - told below
            trouble.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    if thread.is_alive():
        raise UserError(f"what listens at {address} did not answer as a Ray within {DEADLINE:g} s")
    if trouble:
        raise UserError(f"the Ray at {address} cannot be used: {_first_line(trouble[0])}") from trouble[0]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


_SILENT = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("ray").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own deprecations on import of its dashboard and state modules
        yield
