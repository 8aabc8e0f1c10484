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

from scaling import plug, provenance, results, scores, spec as specs
from scaling.errors import Diverged
from scaling.evaluate import HeldOut, Rollouts, check_env, play, summed_loss
from scaling.identity import canonical, check_model, run_id
from scaling.ops.selective_scan import kernel_name
from scaling.players import tensors
from scaling.spec import RunSpec, Space, TrainSpec
from scaling.store import Store
from scaling.windows import Normaliser, Windows, check_fits, held_out_episodes, training_episodes

PRECISIONS = {"fp32": "no", "bf16": "bf16"}
"""Our words for precision, and Accelerate's."""

Report = Callable[[int, float], None]
"""Called with the number of updates done and the held-out loss, at every point of the curve."""


@dataclass(frozen=True, eq=False)
class Subset:
    """The parts of a dataset that a run trains on and is measured on."""

    training: Windows
    held_out: Windows
    episodes: int


@dataclass(frozen=True)
class Cost:
    """What a run will take, known before it starts."""

    parameters: dict[str, int]
    D: int
    episodes: int
    updates: int
    tokens_seen: int
    exposures: float
    """Expected passes over each transition of the subset."""
    C: float


def subset_of(spec: RunSpec, store: Store) -> Subset:
    """Training and held-out windows of the run.

    Raises:
        UserError: the run does not fit the dataset.

    """
    check_fits(store, spec)
    episodes = training_episodes(store, spec.data)
    held_out = Windows(store, held_out_episodes(store, spec.data), spec)
    return Subset(Windows(store, episodes, spec), held_out, len(episodes))


def updates_of(spec: TrainSpec, starts: int) -> int:
    """Optimiser steps that the budget amounts to, with so many places where a window may start."""
    return int(spec.amount) if spec.budget == "updates" else math.ceil(spec.amount * starts / spec.batch)


def cost_of(spec: RunSpec, store: Store) -> Cost:
    """Parameters, data and compute of the run, without building it.

    Raises:
        UserError: the run does not fit the dataset, or there is no such model.

    """
    subset, space = subset_of(spec, store), store.space
    architecture = plug.load("models", spec.model.kind)
    updates = updates_of(spec.train, subset.training.possible)
    windows = updates * spec.train.batch
    tokens = 3 * spec.model.context * windows
    forward = architecture.flops(spec.model, space, spec.model.context)
    return Cost(
        parameters=architecture.count(spec.model, space),
        D=len(subset.training),
        episodes=subset.episodes,
        updates=updates,
        tokens_seen=tokens,
        exposures=windows * subset.training.mean_steps() / len(subset.training),
        C=3.0 * forward * windows,
    )


def train(spec: RunSpec, store: Store, report: Report = lambda update, loss: None) -> dict[str, Any]:
    """Train, evaluate and return the run's row; in every process of a data-parallel group, the same row.

    Raises:
        Diverged: the loss stopped being finite.
        UserError: the run does not fit the dataset or the environment.

    """
    spec = canonical(spec)
    space, subset = store.space, subset_of(spec, store)
    check_model(spec, space)
    check_env(spec, space)
    cost = cost_of(spec, store)
    provenance.reset_peak_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with _accelerator(spec) as accelerator:
        with _seeded(spec.seed, accelerator.process_index):
            measured = _Training(spec, space, subset, accelerator).run(cost.updates, report)
        kernel = kernel_name(accelerator.device.type)
        row = {"device": _device_name(accelerator), "processes": accelerator.num_processes, "kernel": kernel}
    return {**identity(spec, store.digest), **_planned(cost), **measured, **row, "status": results.DONE}


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


def _planned(cost: Cost) -> dict[str, Any]:
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
        self.held_out = HeldOut(subset.held_out, self.normalise, batch=4 * spec.train.batch)
        model = plug.load("models", spec.model.kind).Model(spec.model, space)
        optimiser = torch.optim.AdamW(
            parameter_groups(model, spec.train.weight_decay),
            lr=spec.train.learning_rate,
            betas=(0.9, spec.train.beta2),
            fused=True,
        )
        self.bare = model
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        self.supervised = 0
        self.seconds = {"train": 0.0, "evaluate": 0.0}

    def run(self, updates: int, report: Report) -> dict[str, Any]:
        """All updates, the curve along them, the rollouts at the end."""
        curve = self.curve(updates, report)
        with self._clock("evaluate"):
            rollouts = self._rollouts()
        return {**self._measured(curve, updates), **self._scored(rollouts)}

    def curve(self, updates: int, report: Report) -> list[dict[str, Any]]:
        """All updates; held-out losses along them."""
        points = np.unique(np.linspace(0, updates, self.spec.train.evaluations + 1).round().astype(int))[1:]
        curve: list[dict[str, Any]] = []
        done = 0
        for point in points.tolist():
            with self._clock("train"):
                worst = self._updates(done, point, updates)
            with self._clock("evaluate"):
                loss = self.held_out.loss(self.bare, self.accelerator.device)
            if not (math.isfinite(worst) and math.isfinite(loss)):
                raise Diverged(f"diverged: training or held-out loss is not finite after {point} of {updates} updates")
            curve.append({"update": point, "loss": loss})
            report(point, loss)
            done = point
        return curve

    def _updates(self, start: int, stop: int, updates: int) -> float:
        """Updates number start + 1 to stop; their summed training loss, which is finite only if each was."""
        total = torch.zeros((), device=self.accelerator.device)
        for update in range(start, stop):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.spec.train, update, updates)
            total += self._update(update)
        return float(total)

    def _update(self, update: int) -> Tensor:
        """One optimiser step on this process's share of the windows drawn for it; the share's part of the loss.

        The draw depends on the seed and the number of the update alone, so any number of processes sees the same
        windows. Their gradients are averaged, hence the factor: the sum over shares is divided by all timesteps.
        """
        spec, processes = self.spec.train, self.accelerator.num_processes
        starts = self.windows.draw(spec.batch, np.random.default_rng([self.spec.seed, update]))
        batch = self.windows.gather(starts, self.normalise)
        steps = int(batch.mask.sum())
        share = np.array_split(np.arange(spec.batch), processes)[self.accelerator.process_index]
        batch = batch.rows(share)
        rtg, state, action, timestep = tensors(batch, self.accelerator.device)
        mask = torch.from_numpy(batch.mask).to(self.accelerator.device)
        loss = summed_loss(self.model(rtg, state, action, timestep), action, mask) * (processes / steps)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), spec.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.supervised += steps
        return loss.detach()

    def _rollouts(self) -> Rollouts | None:
        if self.spec.evaluate.env is None:
            return None
        with self.accelerator.autocast():
            return play(self.bare, self.spec, self.space, self.normalise, self.accelerator.device)

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

    def _scored(self, rollouts: Rollouts | None) -> dict[str, Any]:
        if rollouts is None:
            return {}
        mean = float(rollouts.returns.mean())
        score = scores.normalised(self.spec.evaluate.env or "", mean)
        return {"return_mean": mean, "returns": rollouts.returns.tolist(), "score": score}

    def _constant_loss(self) -> float:
        """Held-out loss of predicting the subset's mean action, or its frequencies of choices, everywhere."""
        seen, unseen = self.windows.actions(), self.held_out.windows.actions()
        if self.space.discrete:
            frequency = np.bincount(seen, minlength=self.space.action) + 1.0
            return float(-np.log(frequency / frequency.sum())[unseen].mean())
        return float(np.square(unseen.astype(np.float64) - seen.mean(axis=0, dtype=np.float64)).mean())

    @contextmanager
    def _clock(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start


def learning_rate(spec: TrainSpec, update: int, updates: int) -> float:
    """Linear rise over the first ``warmup`` share of the updates, then constant, or a cosine down to a tenth."""
    rise = max(1.0, spec.warmup * updates)
    if update + 1 <= rise or spec.schedule == "constant":
        return spec.learning_rate * min(1.0, (update + 1) / rise)
    progress = (update + 1 - rise) / max(1.0, updates - rise)
    return spec.learning_rate * max(0.1, 0.5 * (1.0 + math.cos(math.pi * progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of projections decay; A_log, D, norms, biases and embedding tables do not.

    Mamba's authors exempt A_log and D (``_no_weight_decay``); norms, biases and tables follow minGPT.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decays: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        free = parameter.ndim < 2 or name.rsplit(".", 1)[-1] == "A_log" or id(parameter) in tables
        (exempt if free else decays).append(parameter)
    return [{"params": decays, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


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
