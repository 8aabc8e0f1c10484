"""One run, from its spec to its row."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from scaling import plug, provenance, results, spec as specs
from scaling.batches import batches, resident_on
from scaling.cost import Cost, Subset, cost_of, subset_of
from scaling.diversity import diversity
from scaling.errors import Diverged
from scaling.evaluate import HeldOut, check_env, episode_rows, play, returns_of, summed_loss
from scaling.identity import canonical, check_model, run_id
from scaling.ops.selective_scan import kernel_name
from scaling.optimisation import learning_rate, parameter_groups, peak_rate
from scaling.spec import RunSpec, Space
from scaling.store import Store
from scaling.windows import Normaliser

PRECISIONS = {"fp32": "no", "bf16": "bf16"}
"""Our words for precision, and Accelerate's."""

Report = Callable[[int, float], None]
"""Called with the number of updates done and the held-out loss, at every point of the curve."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a run ended."""

    row: dict[str, Any]
    episodes: list[dict[str, Any]]
    """A row per rolled-out episode; see :mod:`scaling.episodes`."""


def train(spec: RunSpec, store: Store, report: Report = lambda update, loss: None) -> Outcome:
    """Train, evaluate and return the run's rows; in every process of a data-parallel group, the same.

    Raises:
        Diverged: the loss stopped being finite.
        UserError: the run does not fit the dataset or the environment.

    """
    spec = canonical(spec)
    space, subset = store.space, subset_of(spec, store)
    check_model(spec, space)
    check_env(spec, space)
    cost = cost_of(spec, store, subset)
    provenance.reset_peak_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with _accelerator(spec) as accelerator:
        with _seeded(spec.seed, accelerator.process_index):
            training = _Training(spec, space, subset, accelerator)
            measured = training.run(cost, report)
        kernel = kernel_name(accelerator.device.type)
        row = {"device": _device_name(accelerator), "processes": accelerator.num_processes, "kernel": kernel}
    known = identity(spec, store.digest)
    played = [{"run_id": known["run_id"], **episode} for episode in training.episodes]
    known["fraction"] = cost.share
    return Outcome({**known, **diversity(subset.training, store), **measured, **row, "status": results.DONE}, played)


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and what it takes to show it data."""

    model: nn.Module
    subset: Subset
    normalise: Normaliser


def trained(spec: RunSpec, store: Store, report: Report = lambda update, loss: None) -> Trained:
    """The network of the run's last update, for a look inside; its row is not made, and nothing is rolled out.

    Raises:
        Diverged: the loss stopped being finite.
        UserError: the run does not fit the dataset.

    """
    spec = canonical(spec)
    subset = subset_of(spec, store)
    check_model(spec, store.space)
    with _accelerator(spec) as accelerator, _seeded(spec.seed, accelerator.process_index):
        training = _Training(spec, store.space, subset, accelerator)
        training.curve(cost_of(spec, store).updates, report)
    return Trained(training.bare.eval(), subset, training.normalise)


def converged(curve: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last ``patience`` points bring no loss lower than any before."""
    losses = [point["loss"] for point in curve]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def identity(spec: RunSpec, digest: str) -> dict[str, Any]:
    """The columns that are known before a run starts: who it is, and with what it is run."""
    spec = canonical(spec)
    return {
        "run_id": run_id(spec, digest),
        "kind": spec.model.kind,
        "width": spec.model.width,
        "depth": spec.model.depth,
        "context": spec.model.context,
        "fraction": spec.data.fraction,
        "draw": spec.data.draw,
        "seed": spec.seed,
        "dataset": digest,
        "threads": torch.get_num_threads(),
        "git_commit": provenance.git_commit(),
        "versions": provenance.versions(),
        "spec": json.dumps(specs.to_dict(spec)),
    }


def _taken(cost: Cost) -> dict[str, Any]:
    names = ("D", "episodes", "updates", "tokens_seen", "C")
    return {**cost.parameters, **{name: getattr(cost, name) for name in names}}


@contextmanager
def _accelerator(spec: RunSpec) -> Iterator[Accelerator]:
    """An Accelerator that leaves no state behind in a process that serves many runs."""
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(mixed_precision=PRECISIONS[spec.train.precision], cpu=not torch.cuda.is_available())
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=False)


@contextmanager
def _seeded(seed: int, process: int) -> Iterator[None]:
    """Initialisation and dropout draw from PyTorch's global generators, which alone they can use; restored after."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence([seed, process]).generate_state(1)[0]))
        yield


def _device_name(accelerator: Accelerator) -> str:
    on_gpu = accelerator.device.type == "cuda"
    return torch.cuda.get_device_name(accelerator.device) if on_gpu else provenance.processor()


class _Training:
    """The state of one run while it lasts."""

    def __init__(self, spec: RunSpec, space: Space, subset: Subset, accelerator: Accelerator) -> None:
        self.spec, self.space, self.accelerator = spec, space, accelerator
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
        self.supervised = 0
        self.episodes: list[dict[str, Any]] = []
        self.seconds = {"train": 0.0, "evaluate": 0.0}

    def run(self, cost: Cost, report: Report) -> dict[str, Any]:
        """All updates, the curve along them, the rollouts at the end."""
        curve = self.curve(cost.updates, report)
        with self._clock("evaluate"):
            self.episodes = self._rollouts()
        taken = cost.after(curve[-1]["update"])
        return {**_taken(taken), **self._measured(curve, taken.updates), **returns_of(self.spec, self.episodes)}

    def curve(self, updates: int, report: Report) -> list[dict[str, Any]]:
        """Held-out losses along the updates: all of them, or as many as it takes to converge."""
        points = np.unique(np.linspace(0, updates, self.spec.train.evaluations + 1).round().astype(int))[1:]
        curve: list[dict[str, Any]] = []
        done = 0
        for point in points.tolist():
            with self._clock("train"):
                worst = self._updates(done, point, updates)
            with self._clock("evaluate"):
                loss = self.held_out.loss(self.bare)
            if not (math.isfinite(worst) and math.isfinite(loss)):
                raise Diverged(f"diverged: training or held-out loss is not finite after {point} of {updates} updates")
            curve.append({"update": point, "loss": loss})
            report(point, loss)
            done = point
            if self.spec.train.budget == "convergence" and converged(curve, self.spec.train.patience):
                break
        return curve

    def _updates(self, start: int, stop: int, updates: int) -> float:
        """Updates number start + 1 to stop; their summed training loss, which is finite only if each was."""
        total = torch.zeros((), device=self.accelerator.device)
        for update in range(start, stop):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.spec.train, self.spec.model.width, update, updates)
            total += self._update(update)
        return float(total)

    def _update(self, update: int) -> Tensor:
        """One optimiser step on this process's share of the windows drawn for it; the share's part of the loss.

        The draw depends on the seed and the number of the update alone, so any number of processes sees the same
        windows. Their gradients are averaged, hence the factor: the sum over shares is divided by all timesteps.
        """
        spec, processes = self.spec.train, self.accelerator.num_processes
        starts = self.windows.draw(spec.batch, np.random.default_rng([self.spec.seed, update]))
        steps = self.windows.steps(starts)
        share = np.array_split(starts, processes)[self.accelerator.process_index]
        (rtg, state, action, timestep), mask = self.batches(share)
        loss = summed_loss(self.model(rtg, state, action, timestep), action, mask) * (processes / steps)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), spec.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.supervised += steps
        return loss.detach()

    def _rollouts(self) -> list[dict[str, Any]]:
        if self.spec.evaluate.env is None:
            return []
        with self.accelerator.autocast():
            played = play(self.bare, self.spec, self.space, self.normalise, self.accelerator.device)
        return episode_rows(self.spec, played)

    def _measured(self, curve: list[dict[str, Any]], updates: int) -> dict[str, Any]:
        on_gpu = self.accelerator.device.type == "cuda"
        return {
            "exposures": self.supervised / len(self.windows),
            "loss": curve[-1]["loss"],
            "loss_best": min(point["loss"] for point in curve),
            "loss_constant": self._constant_loss(),
            "curve": curve,
            "held_out": self.held_out.transitions,
            "train_seconds": self.seconds["train"],
            "evaluate_seconds": self.seconds["evaluate"],
            "samples_per_second": updates * self.spec.train.batch / self.seconds["train"],
            "peak_memory": float(torch.cuda.max_memory_allocated()) if on_gpu else provenance.peak_memory(),
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
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start


def seconds_per_update(spec: RunSpec, store: Store, budget: float) -> float:
    """Median wall time of one update of this run, here and now, from about ``budget`` seconds of trying."""
    with _accelerator(spec) as accelerator, _seeded(spec.seed, 0):
        training = _Training(spec, store.space, subset_of(spec, store), accelerator)
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < 3 or (len(times) < 12 and time.perf_counter() - begin < budget):
            start = time.perf_counter()
            float(training._update(len(times)))
            times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
