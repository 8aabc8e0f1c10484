"""A Ray of this machine alone."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """Ray with ``cpus`` cores, quiet, ended on leaving; or the one already connected to."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own deprecations on import of its dashboard and state modules
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
        try:
            yield
        finally:
            ray.shutdown()
