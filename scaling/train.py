"""One run, from its spec to its row."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from scaling import provenance, results, spec as specs
from scaling.allocator import memory_kept
from scaling.checkpoint import Keeper, State
from scaling.cost import Cost, Subset, cost_of, subset_of
from scaling.diversity import diversity
from scaling.errors import UserError
from scaling.identity import canonical, check_model, run_id
from scaling.ops.selective_scan import kernel_name
from scaling.rollouts import check_env, returns_of
from scaling.spec import DataSpec, RunSpec
from scaling.store import Store
from scaling.training import Report, Training, silent
from scaling.windows import Normaliser

PRECISIONS = {"fp32": "no", "bf16": "bf16"}
"""Our words for precision, and Accelerate's."""


LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables from which Accelerate concludes that it is one of several processes."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a run ended."""

    row: dict[str, Any]
    episodes: list[dict[str, Any]]
    """A row per rolled-out episode; see :mod:`scaling.episodes`."""


def train(
    spec: RunSpec,
    store: Store,
    report: Report = silent,
    *,
    micro_batches: int = 1,
    keeper: Keeper | None = None,
    state: State | None = None,
) -> Outcome:
    """Train, evaluate and return the run's rows; every process of a data-parallel group calls this, the first has rows.

    Args:
        spec: the run.
        store: its dataset.
        report: told of every point of the curve.
        micro_batches: parts in which each process computes its share of a batch.
        keeper: asked whether to save the state.
        state: to go on from, as the keeper got it.

    Raises:
        Diverged: the loss stopped being finite.
        Interrupted: the keeper ended the run.
        UserError: the run does not fit the dataset, the environment or the number of processes.

    """
    spec = canonical(spec)
    space, subset = store.space, subset_of(spec, store)
    check_model(spec, space)
    check_env(spec, space)
    cost = cost_of(spec, store, subset)
    provenance.reset_peak_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with accelerator_for(spec) as accelerator, seeded(spec.seed):
        check_processes(spec, accelerator.num_processes)
        training = Training(spec, space, subset, cost.updates, accelerator, micro_batches, keeper)
        if state is not None:
            training.restore(state)
        training.curve(report)
        if not accelerator.is_main_process:
            return Outcome({}, [])
        played = training.rollouts()
        measured = {**training.measured(cost), "packed": 1, "kernel": kernel_name(accelerator.device.type)}
        return row_of(spec, store, subset, cost, measured, played, accelerator)


def row_of(
    spec: RunSpec,
    store: Store,
    subset: Subset,
    cost: Cost,
    measured: dict[str, Any],
    played: list[dict[str, Any]],
    accelerator: Accelerator,
) -> Outcome:
    """The rows of a run that is done, from what was measured in training and the episodes that were rolled out."""
    row = {
        **identity(spec, store.digest),
        "fraction": cost.share,
        **_diversity_of(spec, store, subset),
        **measured,
        **returns_of(spec, played),
        "device": _device_name(accelerator),
        "status": results.DONE,
    }
    return Outcome(row, [{"run_id": row["run_id"], **episode} for episode in played])


_diversities: dict[tuple[str, DataSpec], dict[str, Any]] = {}
"""Of the subsets that this process has trained on; the runs of a sweep share them."""


def _diversity_of(spec: RunSpec, store: Store, subset: Subset) -> dict[str, Any]:
    key = store.digest, spec.data
    if key not in _diversities:
        _diversities[key] = diversity(subset.training, store)
    return _diversities[key]


def forget_company() -> None:
    """Drop what a launcher may have left in the environment, for a process that trains alone."""
    for name in LAUNCHERS:
        os.environ.pop(name, None)


def check_processes(spec: RunSpec, processes: int) -> None:
    """Refuse more processes than windows in a batch."""
    if processes > spec.train.batch:
        raise UserError(f"{processes} processes cannot share a train.batch of {spec.train.batch}; use fewer --workers")


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and what it takes to show it data."""

    model: nn.Module
    subset: Subset
    normalise: Normaliser


def trained(spec: RunSpec, store: Store, report: Report = silent) -> Trained:
    """The network of the run's last update, for a look inside; its row is not made, and nothing is rolled out.

    Raises:
        Diverged: the loss stopped being finite.
        UserError: the run does not fit the dataset.

    """
    spec = canonical(spec)
    subset = subset_of(spec, store)
    check_model(spec, store.space)
    with accelerator_for(spec) as accelerator, seeded(spec.seed):
        training = Training(spec, store.space, subset, cost_of(spec, store, subset).updates, accelerator)
        training.curve(report)
    return Trained(training.bare.eval(), subset, training.course.normalise)


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


@contextmanager
def accelerator_for(spec: RunSpec) -> Iterator[Accelerator]:
    """An Accelerator that leaves neither state nor memory behind in a process that serves many runs."""
    AcceleratorState._reset_state(reset_partial_state=False)
    with memory_kept():
        accelerator = Accelerator(mixed_precision=PRECISIONS[spec.train.precision], cpu=not torch.cuda.is_available())
        try:
            yield accelerator
        finally:
            accelerator.free_memory()
            AcceleratorState._reset_state(reset_partial_state=False)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialisation and dropout draw from PyTorch's global generators, which alone they can use; restored after.

    They are the same in every process: all begin with the same weights and draw the masks of the whole batch.
    """
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]))
        yield


def _device_name(accelerator: Accelerator) -> str:
    on_gpu = accelerator.device.type == "cuda"
    return torch.cuda.get_device_name(accelerator.device) if on_gpu else provenance.processor()


@contextmanager
def rehearsal(spec: RunSpec, store: Store, micro_batches: int = 1) -> Iterator[Training]:
    """The run before its first update, in this process alone, to be tried and timed; nothing of it is kept."""
    forget_company()
    with accelerator_for(spec) as accelerator, seeded(spec.seed):
        yield Training(spec, store.space, subset_of(spec, store), 1, accelerator, micro_batches)
