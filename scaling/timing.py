"""How long the parts of one run take here, from a short trial of it."""

import dataclasses
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch

from scaling import plug
from scaling.attempt import is_out_of_memory
from scaling.diversity import diversity
from scaling.rollouts import check_env, play
from scaling.spec import RunSpec
from scaling.stopwatch import median_seconds, seconds_of
from scaling.store import Store
from scaling.train import rehearsal
from scaling.training import Training

PER_PARAMETER = 16
"""Bytes: a weight, its gradient and AdamW's two moments, in single precision."""

PLAYED = 40
"""Steps of a rollout that are timed at most; a longer context is not filled by then, and its steps take longer."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that the parts of a run take, and in how many parts it computes its batches for want of memory."""

    prepare: float
    """Once per run: subset, network, checks, measures of the subset."""
    update: float
    window: float
    """Of held-out loss."""
    step: float
    """Of all rollouts together, which advance in lockstep."""
    micro_batches: int = 1


def timing_of(spec: RunSpec, store: Store, budget: float) -> Timing | None:
    """What a run takes here, from about so many seconds; nothing if memory does not suffice.

    As a run does, this halves the parts of a batch until they fit.
    """
    parts = 1
    while True:
        try:
            check_room(spec, store)
            return _timed(spec, store, budget, parts)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if parts >= spec.train.batch:
            return None
        parts = min(2 * parts, spec.train.batch)


def _timed(spec: RunSpec, store: Store, budget: float, parts: int) -> Timing:
    begin = time.perf_counter()
    check_env(spec, store.space)
    with rehearsal(spec, store, parts) as training:
        diversity(training.course.windows, store)
        prepare, device = time.perf_counter() - begin, training.accelerator.device
        for _ in range(training.step.first):
            seconds_of(training.update, device)
        return Timing(
            prepare=prepare,
            update=median_seconds(training.update, device, 0.6 * budget, least=3),
            window=seconds_per_window(training, 0.2 * budget),
            step=_seconds_per_step(training),
            micro_batches=parts,
        )


def seconds_per_window(training: Training, budget: float) -> float:
    """Of held-out loss, from pieces of it until the budget is spent."""
    held_out, turns = training.course.held_out, count()
    pieces = len(held_out.pieces)

    def piece() -> float:
        return float(held_out.summed(training.bare, next(turns) % pieces, pieces))

    return median_seconds(piece, training.accelerator.device, budget) / float(np.mean(list(map(len, held_out.pieces))))


def _seconds_per_step(training: Training) -> float:
    """Of rollouts, once the window is full."""
    spec = training.spec
    if spec.evaluate.env is None:
        return 0.0
    steps = min(spec.model.context + 5, PLAYED, spec.evaluate.max_steps)
    short = dataclasses.replace(spec, evaluate=dataclasses.replace(spec.evaluate, max_steps=steps))
    moments: list[float] = []

    def tick() -> None:
        moments.append(time.perf_counter())

    with training.accelerator.autocast():
        play(training.bare, short, training.space, training.course.normalise, training.accelerator.device, tick)
    tick()  # the last step ends, and the environments with it
    return float(np.median(np.diff(moments)[-6:]))


def check_room(spec: RunSpec, store: Store) -> None:
    """Refuse a network whose weights alone take more memory than is free, never mind activations.

    Raises:
        MemoryError: they do; an operating system may kill a process for trying instead of refusing it.

    """
    free, parameters = free_memory(), plug.load("models", spec.model.kind).count(spec.model, store.space)
    needed = float(PER_PARAMETER * parameters["N_total"])
    if free is not None and needed > free:
        raise MemoryError(f"weights, gradients and moments take {needed:.3g} bytes, and {free:.3g} are free")


def free_memory() -> float | None:
    """Bytes that a run may still take on the GPU or, without one, of the machine's memory, where that is known."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
