"""Callbacks that let others watch a sweep: TensorBoard, Weights & Biases, MLflow. Nothing is read back from them."""

import importlib.util
import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from scaling import results
from scaling.errors import UserError
from scaling.root import Folder, Root

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""The trackers, and the package that each needs."""

FLUSH = 30.0
"""Seconds for which points of a curve may wait in memory."""


@dataclass(frozen=True)
class Wanted:
    """Who is to watch a sweep."""

    names: tuple[str, ...]
    """The trackers; where none is named, TensorBoard if it is installed and the root is a folder."""
    root: Root
    sweep: str
    """Its name, which becomes the project or experiment."""
    labels: dict[str, str]
    """Each run in words, by run_id."""

    def callbacks(self) -> list[tune.Callback]:
        """A callback per tracker.

        Raises:
            UserError: a tracker is not installed, or cannot write to this root.

        """
        makers: dict[str, Callable[[], tune.Callback]] = {
            "tensorboard": lambda: TensorBoard(self.root, self.labels),
            "wandb": lambda: _wandb(self.sweep),
            "mlflow": lambda: _mlflow(self.sweep),
        }
        return [makers[name]() for name in self._checked()]

    def _checked(self) -> tuple[str, ...]:
        in_folder = isinstance(self.root, Folder)
        if not self.names:
            return ("tensorboard",) if in_folder and importlib.util.find_spec("tensorboardX") else ()
        if "none" in self.names:
            return ()
        for name in self.names:
            if importlib.util.find_spec(PACKAGES[name]) is None:
                raise UserError(f"--log {name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")
        if "tensorboard" in self.names and not in_folder:
            raise UserError(f"--log tensorboard writes to folders, not to {self.root.uri}; use wandb or mlflow")
        return self.names


class TensorBoard(tune.Callback):
    """Writes each run's curve beside its row; where a file makes trouble, the curve goes on in another one."""

    def __init__(self, root: Root, labels: dict[str, str]) -> None:
        assert isinstance(root, Folder)
        self.root, self.folder, self.labels = root, root.path, labels
        self.curves: dict[str, _Curve] = {}
        self.last: dict[str, int] = {}
        """Updates of the last points written."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks and never restores them here."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A point of a curve."""
        if "update" in result and "loss_best" not in result:  # not the numbers of the end, which the row has
            with suppress(OSError):  # who watches must not disturb
                self._add(result["run_id"], result["update"], result["loss"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The curves end; points that were not reported, as they came too fast, are in the rows."""
        for run_id in trial.config["run_ids"]:
            with suppress(OSError):
                row = results.read_row(self.root, run_id)
                for point in (row and row["curve"]) or []:
                    if point["update"] > self.last.get(run_id, 0):
                        self._add(run_id, point["update"], point["loss"])
            self._close(run_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The curves break off."""
        for run_id in trial.config["run_ids"]:
            self._close(run_id)

    def _add(self, run_id: str, update: int, loss: float) -> None:
        if run_id not in self.curves:
            self.curves[run_id] = _Curve(self.folder / run_id, self.labels[run_id])
        try:
            self.curves[run_id].add(update, loss)
        except OSError:
            self._close(run_id)
            raise
        self.last[run_id] = update

    def _close(self, run_id: str) -> None:
        self.last.pop(run_id, None)
        if curve := self.curves.pop(run_id, None):
            with suppress(OSError):
                curve.close()


class _Curve:
    """A file of TensorBoard's, written here and now.

    The usual SummaryWriter leaves that to a thread, whose death by a full disk nobody notices until its queue is full,
    and then whoever adds a point waits for ever.
    """

    def __init__(self, folder: Path, label: str) -> None:
        from tensorboardX.record_writer import RecordWriter  # optional, comes with ray[tune]
        from tensorboardX.summary import text

        folder.mkdir(parents=True, exist_ok=True)
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.scaling"))
        self._flushed = -math.inf
        self._write(file_version="brain.Event:2")
        self._write(summary=text("run", label))

    def add(self, update: int, loss: float) -> None:
        """Write a point."""
        from tensorboardX.summary import scalar

        self._write(step=update, summary=scalar("held-out loss", loss))
        if time.monotonic() - self._flushed > FLUSH:
            self._file.flush()
            self._flushed = time.monotonic()

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write(Event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


def _wandb(sweep: str) -> tune.Callback:
    from ray.air.integrations.wandb import WandbLoggerCallback  # optional: wandb

    return WandbLoggerCallback(project=sweep)


def _mlflow(sweep: str) -> tune.Callback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # optional: mlflow

    return MLflowLoggerCallback(experiment_name=sweep)
