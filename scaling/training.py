"""The state of one run while it lasts: network, optimiser, generators, curve; and what moves it on."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from scaling import plug, provenance
from scaling.batches import batches, resident_on
from scaling.checkpoint import Keeper, Nobody, State
from scaling.cost import Cost, Subset
from scaling.errors import Diverged
from scaling.evaluate import HeldOut, episode_rows, play, summed_loss
from scaling.layers.dropout import Share, take_share
from scaling.optimisation import learning_rate, parameter_groups, peak_rate
from scaling.spec import RunSpec, Space

Report = Callable[[int, float], None]
"""Called with the number of updates done and the held-out loss, at every point of the curve."""


def silent(update: int, loss: float) -> None:
    """Report nothing."""


class Training:
    """One run in one process of its group."""

    def __init__(
        self,
        spec: RunSpec,
        space: Space,
        subset: Subset,
        accelerator: Accelerator,
        micro_batches: int = 1,
        keeper: Keeper | None = None,
    ) -> None:
        """Build everything, before the first update.

        Args:
            spec: the run.
            space: of its dataset.
            subset: what it trains on and is measured on.
            accelerator: of this process.
            micro_batches: parts in which this process computes its share of a batch; changes memory, not
                what is computed.
            keeper: asked whether to save the state.

        """
        self.spec, self.space, self.accelerator = spec, space, accelerator
        self.keeper = keeper or Nobody()
        self.windows = subset.training
        self.normalise = subset.training.normaliser()
        device, whole = accelerator.device, resident_on(subset.training.store, accelerator.device)
        unseen = resident_on(subset.held_out.store, device) if spec.data.degrades else whole
        self.batches = batches(subset.training, self.normalise, device, whole)
        self.held_out = HeldOut(batches(subset.held_out, self.normalise, device, unseen), 4 * spec.train.batch)
        model = plug.load("models", spec.model.kind).Model(spec.model, space)
        optimiser = torch.optim.AdamW(
            parameter_groups(model, spec.train.weight_decay),
            lr=peak_rate(spec.train, spec.model.width),
            betas=(0.9, spec.train.beta2),
            fused=True,
        )
        self.bare = model
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        self.shares = self._shares(micro_batches)
        self.done = self.supervised = self.resumes = 0
        self.total = torch.zeros((), device=device, dtype=torch.float64)
        """Training losses since the last point of the curve, added up; finite only if each was."""
        self.points: list[dict[str, Any]] = []
        self.seconds = {"train": 0.0, "evaluate": 0.0}
        self._timed: tuple[str, float] | None = None

    def _shares(self, micro_batches: int) -> list[Share]:
        """The parts of each batch that are this process's to compute."""
        batch, processes = self.spec.train.batch, self.accelerator.num_processes
        own = np.array_split(np.arange(batch), processes)[self.accelerator.process_index]
        parts = np.array_split(own, min(micro_batches, len(own)))
        return [Share(int(part[0]), int(part[-1]) + 1, batch) for part in parts]

    def curve(self, updates: int, report: Report = silent) -> list[dict[str, Any]]:
        """Held-out losses along the updates: all of them, or as many as it takes to converge.

        Raises:
            Diverged: a loss stopped being finite.

        """
        marks = np.unique(np.linspace(0, updates, self.spec.train.evaluations + 1).round().astype(int))[1:]
        for mark in marks[len(self.points) :].tolist():
            if self._has_converged():
                break
            with self._clock("train"):
                self._advance(mark, updates)
            with self._clock("evaluate"):
                worst, loss = self._losses()
            if not (math.isfinite(worst) and math.isfinite(loss)):
                raise Diverged(f"diverged: training or held-out loss is not finite after {mark} of {updates} updates")
            self.points.append({"update": mark, "loss": loss})
            self.total.zero_()
            report(mark, loss)
        if self.keeper.keeps_last:
            self.keeper.keep(self.state())
        return self.points

    def _has_converged(self) -> bool:
        return self.spec.train.budget == "convergence" and converged(self.points, self.spec.train.patience)

    def _advance(self, mark: int, updates: int) -> None:
        """All updates up to number ``mark``."""
        while self.done < mark:
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.spec.train, self.spec.model.width, self.done, updates)
            self.total += self.update(self.done)
            self.done += 1
            self._pause()
        self.total.cpu()  # waits for the device, so that the clock is right

    def _pause(self) -> None:
        """Between two updates: save the state if that is wanted."""
        if self.keeper.wants():
            self.keeper.keep(self.state())

    def update(self, update: int) -> Tensor:
        """One optimiser step on this process's share of the windows drawn for it; the share's part of the loss.

        The draw depends on the seed and the number of the update alone, so any number of processes sees the same
        windows. Their gradients are averaged, hence the factor: the sum over shares is divided by all timesteps.
        """
        spec, processes = self.spec.train, self.accelerator.num_processes
        starts = self.windows.draw(spec.batch, np.random.default_rng([self.spec.seed, update]))
        steps = self.windows.steps(starts)
        factor = processes / steps
        alone = len(self.shares) == 1
        generators = None if alone else _generators()
        total = torch.zeros((), device=self.accelerator.device)
        for share in self.shares:
            if generators is not None:  # every part draws the masks of the whole batch
                _set_generators(generators)
            if share is self.shares[-1]:
                total += self._part(starts, share, factor)
            else:
                with self.accelerator.no_sync(self.model):
                    total += self._part(starts, share, factor)
        self.accelerator.clip_grad_norm_(self.model.parameters(), spec.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.supervised += steps
        return total

    def _part(self, starts: np.ndarray, share: Share, factor: float) -> Tensor:
        """Gradients of some windows of the batch, added to those there are; their part of the loss."""
        (rtg, state, action, timestep), mask = self.batches(starts[share.begin : share.stop])
        split = share.stop - share.begin < share.total or self.accelerator.device.type == "cuda"
        take_share(self.bare, share if split else None)
        loss = summed_loss(self.model(rtg, state, action, timestep), action, mask) * factor
        self.accelerator.backward(loss)
        return loss.detach()

    def _losses(self) -> tuple[float, float]:
        """Summed training loss since the last point, and held-out loss; every process works out a part of it."""
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        summed = self.held_out.summed(self.bare, index, processes)
        worst, total = self.accelerator.reduce(torch.stack([self.total, summed])).tolist()
        return worst, total / self.held_out.transitions

    def rollouts(self) -> list[dict[str, Any]]:
        """A row per episode; for the process alone that writes the run's row."""
        if self.spec.evaluate.env is None:
            return []
        with self._clock("evaluate"), self.accelerator.autocast():
            played = play(self.bare, self.spec, self.space, self.normalise, self.accelerator.device, self._pause)
        return episode_rows(self.spec, played)

    def measured(self, cost: Cost) -> dict[str, Any]:
        """The columns of the row that come out of training, once the curve is complete."""
        taken = cost.after(self.done)
        names = ("D", "episodes", "updates", "tokens_seen", "C")
        on_gpu = self.accelerator.device.type == "cuda"
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
            "processes": self.accelerator.num_processes,
            "micro_batches": len(self.shares),
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
    def _clock(self, what: str) -> Iterator[None]:
        self._timed = (what, time.perf_counter())
        try:
            yield
        finally:
            self.seconds, self._timed = self._seconds(), None

    def _seconds(self) -> dict[str, float]:
        """Seconds spent until now."""
        if self._timed is None:
            return dict(self.seconds)
        what, begin = self._timed
        return {**self.seconds, what: self.seconds[what] + time.perf_counter() - begin}

    def state(self) -> State:
        """All that decides how the run goes on; any process may go on from that of the first."""
        return {
            "model": self.bare.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generators": _generators(),
            "done": self.done,
            "supervised": self.supervised,
            "resumes": self.resumes,
            "total": self.total.cpu(),
            "points": self.points,
            "seconds": self._seconds(),
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.bare.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        _set_generators(state["generators"])
        self.done, self.supervised, self.resumes = state["done"], state["supervised"], state["resumes"] + 1
        self.total.copy_(state["total"])
        self.points = list(state["points"])
        self.seconds = dict(state["seconds"])


def converged(curve: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last ``patience`` points bring no loss lower than any before."""
    losses = [point["loss"] for point in curve]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _generators() -> dict[str, Tensor]:
    """States of PyTorch's global generators, from which dropout draws."""
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
