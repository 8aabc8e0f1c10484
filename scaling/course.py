"""One run on its way: what it is trained and measured on, how far it is, what it has cost; but not its network."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from scaling import provenance
from scaling.batches import Resident, batches
from scaling.checkpoint import State
from scaling.cost import Cost, Subset
from scaling.errors import Diverged
from scaling.evaluate import HeldOut
from scaling.optimisation import learning_rate
from scaling.spec import RunSpec, Space


class Course:
    """One run between its updates."""

    def __init__(
        self,
        spec: RunSpec,
        space: Space,
        subset: Subset,
        updates: int,
        device: torch.device,
        resident: Resident | None,
        unseen: Resident | None,
    ) -> None:
        """Before the first update.

        Args:
            spec: the run.
            space: of its dataset.
            subset: what it trains on and is measured on.
            updates: how many there will be, unless it converges before.
            device: of the network.
            resident: the dataset on the device, if it is there.
            unseen: the same for the held-out episodes.

        """
        self.spec, self.space, self.updates, self.device = spec, space, updates, device
        self.windows, self.normalise = subset.training, subset.training.normaliser()
        self.batches = batches(subset.training, self.normalise, device, resident)
        self.held_out = HeldOut(batches(subset.held_out, self.normalise, device, unseen), 4 * spec.train.batch)
        steps = np.linspace(0, updates, spec.train.evaluations + 1).round().astype(int)
        self.marks: list[int] = np.unique(steps)[1:].tolist()
        """Numbers of updates at which the curve has its points."""
        self.done = self.supervised = self.resumes = 0
        self.points: list[dict[str, Any]] = []
        self.seconds = {"train": 0.0, "evaluate": 0.0}
        self._timed: tuple[str, float] | None = None

    @property
    def mark(self) -> int | None:
        """Where the next point of the curve will be; nothing once the run is complete."""
        is_complete = len(self.points) == len(self.marks) or self._has_converged()
        return None if is_complete else self.marks[len(self.points)]

    def _has_converged(self) -> bool:
        return self.spec.train.budget == "convergence" and converged(self.points, self.spec.train.patience)

    def draw(self) -> tuple[np.ndarray, int]:
        """Starts of the next update's windows, and how many timesteps they supervise.

        The draw depends on the seed and the number of the update alone.
        """
        generator = np.random.default_rng([self.spec.seed, self.done])
        starts = self.windows.draw(self.spec.train.batch, generator)
        return starts, self.windows.steps(starts)

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        return learning_rate(self.spec.train, self.spec.model.width, self.done, self.updates)

    def updated(self, steps: int) -> None:
        """An update is done, which supervised so many timesteps."""
        self.done += 1
        self.supervised += steps

    def measure(self, trained: float, summed: float) -> float:
        """Add a point to the curve; its held-out loss.

        Args:
            trained: the sum of training losses since the last point.
            summed: the held-out loss, added over transitions.

        Raises:
            Diverged: one of the two is not finite.

        """
        loss = summed / self.held_out.transitions
        if not (math.isfinite(trained) and math.isfinite(loss)):
            raise Diverged(
                f"diverged: training or held-out loss is not finite after {self.done} of {self.updates} updates"
            )
        self.points.append({"update": self.done, "loss": loss})
        return loss

    def measured(self, cost: Cost) -> dict[str, Any]:
        """The columns of the row that come out of training, once the curve is complete."""
        taken = cost.after(self.done)
        names = ("D", "episodes", "updates", "tokens_seen", "C")
        on_gpu = self.device.type == "cuda"
        return {
            **taken.parameters,
            **{name: getattr(taken, name) for name in names},
            "exposures": self.supervised / len(self.windows),
            "loss": self.points[-1]["loss"],
            "loss_best": min(point["loss"] for point in self.points),
            "loss_constant": self._constant_loss(),
            "curve": self.points,
            "held_out": self.held_out.transitions,
            "train_seconds": self.seconds["train"],
            "evaluate_seconds": self.seconds["evaluate"],
            "samples_per_second": self.done * self.spec.train.batch / self.seconds["train"],
            "peak_memory": float(torch.cuda.max_memory_allocated()) if on_gpu else provenance.peak_memory(),
            "resumes": self.resumes,
        }

    def _constant_loss(self) -> float:
        """Held-out loss of predicting the subset's mean action, or its frequencies of choices, everywhere."""
        seen, unseen, count = self.windows, self.held_out.windows, self.held_out.transitions
        if self.space.discrete:
            frequency = np.ones(self.space.action)
            for actions in seen.actions():
                frequency += np.bincount(actions, minlength=self.space.action)
            surprise = -np.log(frequency / frequency.sum())
            return float(sum(surprise[actions].sum() for actions in unseen.actions()) / count)
        mean = sum(actions.sum(axis=0, dtype=np.float64) for actions in seen.actions()) / len(seen)
        error = sum(np.square(actions - mean).mean(axis=1).sum() for actions in unseen.actions())
        return float(error / count)

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Count the seconds that the block takes as spent on training or evaluation."""
        self._timed = (what, time.perf_counter())
        try:
            yield
        finally:
            self.seconds, self._timed = self._seconds(), None

    def spend(self, what: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self.seconds[what] += seconds

    def _seconds(self) -> dict[str, float]:
        """Seconds spent until now."""
        if self._timed is None:
            return dict(self.seconds)
        what, begin = self._timed
        return {**self.seconds, what: self.seconds[what] + time.perf_counter() - begin}

    def state(self) -> State:
        """All that decides how the run goes on but for its network, optimiser, losses and generators."""
        return {
            "done": self.done,
            "supervised": self.supervised,
            "resumes": self.resumes,
            "points": list(self.points),
            "seconds": self._seconds(),
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.done, self.supervised, self.resumes = state["done"], state["supervised"], state["resumes"] + 1
        self.points = list(state["points"])
        self.seconds = dict(state["seconds"])


def converged(curve: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last ``patience`` points bring no loss lower than any before."""
    losses = [point["loss"] for point in curve]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])
