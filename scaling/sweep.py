"""Hand the unfinished runs of a sweep to Ray Tune; the truth about each is its row on disk."""

import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Tune reads these when it is imported: no result folders in the home directory, no tables on the terminal.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # without GPUs of its own a run sees none

import ray
import torch
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from scaling import episodes, results
from scaling.building import cache_folder
from scaling.errors import Diverged, UserError
from scaling.local_ray import local_ray
from scaling.plan import Costs
from scaling.runs import Runs, open_store, sign_path
from scaling.spec import RunSpec, from_dict, to_dict
from scaling.train import identity, train

ATTEMPTS = 2
"""Further tries of a run whose worker process died; errors inside a run are not tried again."""


REPORT_SECONDS = 2.0
"""A run speaks up at most this often; each word waits for the driver."""


@dataclass(frozen=True)
class Resources:
    """What the sweep may use; none of it can change a result."""

    cpus: int
    threads: int = 1
    """CPU threads per run."""
    gpus: float = 0.0
    """GPUs per run."""


class Watcher(Protocol):
    """Told of what happens to runs; the command line's display is one."""

    def progress(self, run_id: str, update: int, loss: float) -> None:
        """A run has reached a point of its curve."""

    def ended(self, run_id: str, loss: float | None) -> None:
        """A run has its row; the loss is missing where it failed."""


def run(runs: Runs, costs: Costs, todo: list[str], root: Path, resources: Resources, watcher: Watcher) -> None:
    """Run those named in ``todo``, longest first; returns when all have ended or the user interrupts."""
    ordered = sorted(todo, key=lambda name: costs[name].C, reverse=True)
    tune_folder = root.resolve() / f".tune-{os.getpid()}"
    config = {
        "threads": resources.threads,
        "folder": str(runs.sweep.folder),
        "root": str(root.resolve()),
        "cache": str(cache_folder().resolve()),
    }
    trials = [
        {"run_id": name, "digest": runs.store(runs.specs[name]).digest, "spec": to_dict(runs.specs[name])}
        for name in ordered
    ]
    with _local_ray(resources):
        tuner = tune.Tuner(
            tune.with_resources(_trial, {"cpu": resources.threads, "gpu": resources.gpus}),
            param_space={**config, "run": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=max(1, resources.cpus // resources.threads),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"{runs.sweep.name}-{os.getpid()}",
                storage_path=str(tune_folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS),
                callbacks=[_Callback(root, watcher)],
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(tune_folder, ignore_errors=True)


def check_writable(root: Path) -> None:
    """Refuse a results folder that rows cannot be written to.

    Raises:
        UserError: it cannot be created or written.

    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the results folder {root}: {error.strerror}; choose another with --root"
        ) from error
    if not os.access(root, os.W_OK):
        raise UserError(f"the results folder {root} cannot be written; choose another with --root")


@contextmanager
def _local_ray(resources: Resources) -> Iterator[None]:
    """A Ray of this machine alone that has what the sweep asks for; or the one already connected to."""
    if ray.is_initialized():
        yield
        return
    with local_ray(max(resources.cpus, resources.threads)):
        at_hand = ray.cluster_resources().get("GPU", 0.0)
        if resources.gpus > at_hand:
            raise UserError(f"--gpus-per-run {resources.gpus:g} exceeds the {at_hand:g} GPU(s) of this machine")
        yield


def _trial(config: dict[str, Any]) -> None:
    """One run in a worker process that serves many; ends with a row, whatever happens inside the run.

    A row that another driver wrote in the meantime stands.
    """
    spec, root, run_id = from_dict(config["run"]["spec"]), Path(config["root"]), config["run"]["run_id"]
    before = results.read_row(root, run_id)
    if before is not None and before["status"] == results.DONE:
        return
    torch.set_num_threads(config["threads"])
    os.environ["SCALING_CACHE"] = config["cache"]
    said = time.monotonic()

    def report(update: int, loss: float) -> None:
        nonlocal said
        if time.monotonic() - said > REPORT_SECONDS:
            _sign(root, run_id, {"update": update, "loss": loss})
            tune.report({"run_id": run_id, "update": update, "loss": loss})
            said = time.monotonic()

    _sign(root, run_id, {"update": 0})
    try:
        store = open_store(spec, Path(config["folder"]))
        if store.digest != config["run"]["digest"]:
            raise UserError(f"{spec.data.path} has changed since the sweep began; start the sweep again")
        outcome = train(spec, store, report)
        if outcome.episodes:
            episodes.write(outcome.episodes, episodes.path_of(root, run_id))
        row = outcome.row
    except (Diverged, UserError) as error:
        row = failed_row(spec, config["run"]["digest"], str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the row says it and the sweep goes on
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        row = failed_row(spec, config["run"]["digest"], reason)
    results.write_row(root, row)
    sign_path(root, run_id).unlink(missing_ok=True)


def failed_row(spec: RunSpec, digest: str, reason: str) -> dict[str, Any]:
    """The row of a run that ended without numbers."""
    return {**identity(spec, digest), "status": results.FAILED, "error": reason}


def _sign(root: Path, run_id: str, said: dict[str, Any]) -> None:
    """Leave word of who works on the run and how far it is."""
    path = sign_path(root, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), **said}))
    temporary.replace(path)


class _Callback(TrialProgressCallback):
    """Passes Tune's events on, and turns a worker's death into a failed row.

    Derived from Tune's own printer because Tune adds that one unless it finds one among the callbacks.
    """

    def __init__(self, root: Path, watcher: Watcher) -> None:
        super().__init__()
        self._root, self._watcher = root, watcher

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nothing here is worth restoring, since the rows are on disk."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A point of a curve."""
        if "update" in result:
            self._watcher.progress(result["run_id"], result["update"], result["loss"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A run has ended."""
        self._ended(trial.config["run"]["run_id"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker died on every attempt."""
        run = trial.config["run"]
        if results.read_row(self._root, run["run_id"]) is None:
            said = f"the worker process died {ATTEMPTS + 1} times; out of memory or killed"
            results.write_row(self._root, failed_row(from_dict(run["spec"]), run["digest"], said))
        sign_path(self._root, run["run_id"]).unlink(missing_ok=True)
        self._ended(run["run_id"])

    def _ended(self, run_id: str) -> None:
        row = results.read_row(self._root, run_id)
        self._watcher.ended(run_id, row["loss_best"] if row else None)
