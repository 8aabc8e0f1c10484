"""Callbacks that let others watch a sweep: TensorBoard, Weights & Biases, MLflow. Nothing is read back from them."""

import importlib.util
from collections.abc import Callable
from typing import Any

from ray import tune

from scaling.errors import UserError
from scaling.root import Folder, Root

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""The trackers, and the package that each needs."""


def callbacks(names: tuple[str, ...], root: Root, sweep: str, labels: dict[str, str]) -> list[tune.Callback]:
    """A callback per tracker.

    Args:
        names: the trackers; where none is named, TensorBoard if it is installed and the root is a folder.
        root: of the sweep.
        sweep: its name, which becomes the project or experiment.
        labels: each run in words, by run_id.

    Raises:
        UserError: a tracker is not installed, or cannot write to this root.

    """
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"--log {name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")
    if "tensorboard" in names and not isinstance(root, Folder):
        raise UserError(f"--log tensorboard writes to folders only, and the root is {root.uri}; use wandb or mlflow")
    if not names and isinstance(root, Folder) and importlib.util.find_spec("tensorboardX"):
        names = ("tensorboard",)
    makers: dict[str, Callable[[], tune.Callback]] = {
        "tensorboard": lambda: TensorBoard(root, labels),
        "wandb": lambda: _wandb(sweep),
        "mlflow": lambda: _mlflow(sweep),
    }
    return [makers[name]() for name in names]


class TensorBoard(tune.Callback):
    """Writes each run's curve beside its row."""

    def __init__(self, root: Root, labels: dict[str, str]) -> None:
        assert isinstance(root, Folder)
        self.folder, self.labels = root.path, labels
        self.writers: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks and never restores them here."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A point of a curve."""
        run_id = trial.config["run_id"]
        if "update" not in result:
            return
        try:
            writer = self.writers.get(run_id) or self._open(run_id)
            writer.add_scalar("held-out loss", result["loss"], result["update"])
        except OSError:  # who watches must not disturb
            return

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The curve ends."""
        self._close(trial.config["run_id"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The curve breaks off."""
        self._close(trial.config["run_id"])

    def _open(self, run_id: str) -> Any:
        from tensorboardX import SummaryWriter  # optional, comes with ray[tune]

        writer = self.writers[run_id] = SummaryWriter(str(self.folder / run_id), filename_suffix=".scaling")
        writer.add_text("run", self.labels[run_id])
        return writer

    def _close(self, run_id: str) -> None:
        if writer := self.writers.pop(run_id, None):
            writer.close()


def _wandb(sweep: str) -> tune.Callback:
    from ray.air.integrations.wandb import WandbLoggerCallback  # optional: wandb

    return WandbLoggerCallback(project=sweep)


def _mlflow(sweep: str) -> tune.Callback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # optional: mlflow

    return MLflowLoggerCallback(experiment_name=sweep)
