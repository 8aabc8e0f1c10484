"""Where the time of a training step goes on this machine, and how far the step is from its floor.

    floor = FLOPs of the step's matrix products / rate of a large matrix product, measured beside it

The step's products are three times those of its forward pass, as in C: the gradient of the first layer's input, which
nobody needs, is counted with the rest. Phases are timed in updates of their own, each waited for on a GPU, which may
hide what overlaps; the update as a whole is timed without looking inside. What each phase does is told by PyTorch's
profiler in further updates, which it slows down; only shares are taken from these. On a GPU the update as a whole is
played from a CUDA graph, and phases are those of updates that are called, which take longer.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # it is public, and not in __all__
from torch.profiler import ProfilerActivity, record_function

from scaling import plug, provenance
from scaling.attempt import is_out_of_memory
from scaling.cost import cost_of
from scaling.errors import UserError
from scaling.ops.selective_scan import kernel_name
from scaling.spec import RunSpec
from scaling.stopwatch import median_seconds, seconds_of, settle
from scaling.store import Store
from scaling.timing import check_room, seconds_per_window
from scaling.train import rehearsal
from scaling.training import Training

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler announces its start and its end on stderr

PHASES = ("windows", "forward", "backward", "optimiser")
"""Of an update: windows drawn, gathered and moved; network and loss; gradients; what gathers, clips, steps."""

PRODUCTS, KERNEL, SCAN = "matrix products", "layer kernel", "scan kernel"
ATTENTION, CONVOLUTION = "attention", "convolution"
OTHER, IDLE = "other operations", "outside operations"
PARTS = (PRODUCTS, KERNEL, SCAN, ATTENTION, CONVOLUTION, OTHER, IDLE)
"""Of a phase. Layer kernel: Mamba blocks and networks on a CPU, their products included. Outside operations: Python,
NumPy and dispatch on a CPU; on a GPU, whatever leaves it idle."""

OWN = {"scaling::layers": KERNEL, "scaling::dropout": OTHER}
"""Kernels of our own that are no scan's, by how their names begin."""

WATCHED = 8
"""Updates that the profiler looks at, at most; it keeps every event of theirs in memory."""

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows of the square matrices whose product is the yardstick."""


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """What an update of one run takes here; times in seconds."""

    update: float
    phases: dict[str, float]
    shares: dict[str, dict[str, float]]
    """Of each phase, by part."""
    slowdown: float
    """How many times longer an update takes while the profiler watches."""
    held_out: float
    """A point of the curve."""
    product_flops: float
    """Of an update."""
    product_rate: float
    """FLOPs per second of a large product in the run's precision."""
    samples_per_second: float
    tokens_per_second: float
    peak_memory: float | None
    """Bytes of the process, or on the GPU."""
    kernel: str
    threads: int
    device: str
    precision: str

    @property
    def floor(self) -> float:
        """Seconds that the matrix products of an update would take at the yardstick's rate."""
        return self.product_flops / self.product_rate

    @property
    def times_floor(self) -> float:
        """How far an update is from its floor."""
        return self.update / self.floor

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "floor": self.floor, "times_floor": self.times_floor}


def profile(spec: RunSpec, store: Store, seconds: float) -> StepProfile:
    """The profile of a run from about so many seconds of its training; nothing is kept.

    Raises:
        UserError: the run does not fit its dataset, or its step the memory.

    """
    try:
        return _profile(spec, store, seconds)
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                "memory does not suffice for a whole batch of this run; choose another with --run"
            ) from None
        raise


def _profile(spec: RunSpec, store: Store, seconds: float) -> StepProfile:
    check_room(spec, store)
    cost = cost_of(spec, store)
    provenance.reset_peak_memory()
    with rehearsal(spec, store) as training:
        device = training.accelerator.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        for _ in range(training.step.first):  # what is compiled, allocated and recorded once
            training.update()
        rates = [_product_seconds(training, 0.05 * seconds)]
        whole = median_seconds(training.update, device, 0.4 * seconds)
        phases = _phases(training, 0.2 * seconds)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else provenance.peak_memory()
        shares, watched = _shares(training, 0.2 * seconds)
        held_out = seconds_per_window(training, 0.1 * seconds) * sum(map(len, training.course.held_out.pieces))
        rates.append(_product_seconds(training, 0.05 * seconds))
    windows = spec.train.batch / whole
    return StepProfile(
        update=whole,
        phases=phases,
        shares=shares,
        slowdown=watched / sum(phases.values()),
        held_out=held_out,
        product_flops=3.0 * _products(spec, store) * spec.train.batch,
        product_rate=2.0 * SIDE[device.type] ** 3 / statistics.mean(rates),
        samples_per_second=windows,
        tokens_per_second=windows * cost.tokens_seen / (cost.updates * spec.train.batch),
        peak_memory=peak,
        kernel=kernel_name(device.type),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.processor(),
        precision=spec.train.precision,
    )


def _products(spec: RunSpec, store: Store) -> int:
    """FLOPs of the matrix products that take one window forward."""
    counted: int = plug.load("models", spec.model.kind).products(spec.model, store.space, spec.model.context)
    return counted


def _product_seconds(training: Training, budget: float) -> float:
    """Median seconds of one large product, in the precision of the run."""
    device, bf16 = training.accelerator.device, training.spec.train.precision == "bf16"
    side, dtype = SIDE[device.type], torch.bfloat16 if bf16 else torch.float32
    one, other = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    out = one @ other
    return median_seconds(lambda: torch.mm(one, other, out=out), device, budget, least=3)


def _phases(training: Training, budget: float) -> dict[str, float]:
    """Median seconds of each phase."""
    took: dict[str, list[float]] = {phase: [] for phase in PHASES}
    device, begin = training.accelerator.device, time.perf_counter()
    while len(took["windows"]) < 3 or time.perf_counter() - begin < budget:
        moments: list[float] = []

        def mark(phase: str, moments: list[float] = moments) -> None:
            settle(device)
            moments.append(time.perf_counter())

        with _marked(training, mark):
            mark("windows")
            training.update()
            mark("")
        for phase, seconds in zip(PHASES, np.diff(moments), strict=True):
            took[phase].append(float(seconds))
    return {phase: statistics.median(seconds) for phase, seconds in took.items()}


@contextmanager
def _marked(training: Training, mark: Callable[[str], None]) -> Iterator[None]:
    """Calls ``mark`` where the later phases of an update begin; none is played from a graph meanwhile."""
    accelerator, records = training.accelerator, training.step.records
    backward = accelerator.backward

    def marked(loss: torch.Tensor) -> None:
        mark("backward")
        backward(loss)
        mark("optimiser")

    hook = training.bare.register_forward_pre_hook(lambda *_: mark("forward"))
    accelerator.backward, training.step.records = marked, False
    try:
        yield
    finally:
        training.step.records = records
        hook.remove()
        accelerator.backward = backward


def _shares(training: Training, budget: float) -> tuple[dict[str, dict[str, float]], float]:
    """What each phase spends on each part, as shares of it, and the seconds of an update that is watched."""
    device = training.accelerator.device
    spans = _Spans(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    took: list[float] = []

    def watched() -> None:
        spans.mark("windows")
        training.update()
        spans.mark("")

    with torch.profiler.profile(activities=activities, acc_events=True) as watch, _marked(training, spans.mark):
        while not took or (len(took) < WATCHED and sum(took) < budget):
            took.append(seconds_of(watched, device))
    return shares_of(watch.events(), device.type == "cuda"), statistics.median(took)


class _Spans:
    """Writes phases into the profiler's record."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.open: record_function | None = None

    def mark(self, phase: str) -> None:
        """End the phase under way and begin another, or none."""
        settle(self.device)
        if self.open is not None:
            self.open.__exit__(None, None, None)
        self.open = record_function(SPAN + phase) if phase else None
        if self.open is not None:
            self.open.__enter__()


SPAN = "phase: "
"""How the names of phases begin in the profiler's record."""


def shares_of(events: Any, on_gpu: bool) -> dict[str, dict[str, float]]:
    """The share of each part in each phase, from the record of a profiler.

    An operation belongs to the phase in which it began, and counts without those that it calls.
    """
    called = [event for event in events if event.device_type == DeviceType.CPU]
    spans = sorted((event for event in called if event.name.startswith(SPAN)), key=lambda event: event.time_range.start)
    begins = np.array([event.time_range.start for event in spans])
    lengths = dict.fromkeys(PHASES, 0.0)
    for span in spans:
        lengths[span.name.removeprefix(SPAN)] += span.time_range.end - span.time_range.start
    busy = {phase: dict.fromkeys(PARTS, 0.0) for phase in PHASES}
    for event in called:
        place = int(np.searchsorted(begins, event.time_range.start, side="right")) - 1
        if event.name.startswith(SPAN) or place < 0 or event.time_range.start > spans[place].time_range.end:
            continue
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        busy[spans[place].name.removeprefix(SPAN)][_part(event)] += taken
    for phase, parts in busy.items():
        parts[IDLE] = max(0.0, lengths[phase] - sum(parts.values()))
    return {phase: _normalised(parts) for phase, parts in busy.items()}


def _normalised(parts: dict[str, float]) -> dict[str, float]:
    total = sum(parts.values()) or 1.0
    return {part: value / total for part, value in parts.items()}


def _part(event: Any) -> str:
    """The part that an operation belongs to: its own, else that of whatever called it, such as a kernel's copies."""
    caller = event
    while caller is not None:
        part = part_of(caller.name)
        if part != OTHER:
            return part
        caller = caller.cpu_parent
    return OTHER


def part_of(name: str) -> str:
    """The part that an operation belongs to by its name alone."""
    for begin, part in OWN.items():
        if name.startswith(begin):
            return part
    if any(
        word in name for word in ("scaling::", "For_scaling_", "SelectiveScan")
    ):  # an operation, or autograd's of it
        return SCAN
    if "attention" in name:
        return ATTENTION
    if "conv" in name.lower():
        return CONVOLUTION
    plain = name.removeprefix("aten::")
    return PRODUCTS if plain in ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "_addmm_activation") else OTHER
