"""What a GPU gains: scan kernels side by side, and populations and CUDA graphs against one run at a time without.

    python -m benchmarks.device [--rounds 9] [--quick]

Runs on whatever device PyTorch finds. ``--quick`` takes tiny sizes, to see that it runs; its numbers mean nothing.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, get_args

import torch
from torch import Tensor

from benchmarks import document
from benchmarks.document import Cell, Settings, Table
from benchmarks.populations import runs, updating
from benchmarks.timing import in_turns
from scaling.ops import selective_scan as scans
from scaling.replay import WARM_UP
from scaling.spec import RunSpec
from scaling.stopwatch import settle

Scan = Callable[..., Tensor]


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args(arguments)
    settings = Settings(threads=torch.get_num_threads(), rounds=given.rounds, quick=given.quick)
    print(document.markdown(settings, [scan_table(settings), *(population_table(settings, p) for p in PRECISIONS)]))


Precision = Literal["fp32", "bf16"]

CALLED = "1, without a CUDA graph"

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def device() -> torch.device:
    """The one that a run would take."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def kernels() -> dict[str, Scan]:
    """The scans that this device can run."""
    found: dict[str, Scan] = {"reference": scans.selective_scan_ref}
    if scans._triton_serves(device().type, torch.float32):
        found["triton"] = scans.selective_scan_triton
    if device().type == "cuda" and scans._mamba_ssm() is not None:
        found["mamba_ssm"] = scans._on_cuda
    return found


def scan_table(settings: Settings) -> Table:
    """Forward and backward through the scan of one block of width 128."""
    batch, time, channels, states = (2, 4, 8, 4) if settings.quick else (64, 60, 256, 16)
    generator, there = torch.Generator().manual_seed(0), device()
    token, wide = (batch, time, channels), (batch, time, states)
    shapes = (token, token, (channels, states), wide, wide, (channels,), token, (channels,))
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs[2] = -inputs[2].exp()
    inputs = [x.to(there).requires_grad_() for x in inputs]

    def both_ways(scan: Scan) -> Callable[[], None]:
        def run() -> None:
            torch.autograd.grad(scan(*inputs).sum(), inputs)
            settle(there)

        return run

    took = in_turns({name: both_ways(scan) for name, scan in kernels().items()}, settings.rounds)
    rows: list[dict[str, Cell]] = [{"scan": name, "ms": 1e3 * seconds} for name, seconds in took.items()]
    return Table(title=f"The scan, there and back: batch {batch}, {time} tokens, {channels} channels", rows=rows)


def population_table(settings: Settings, precision: Precision) -> Table:
    """Updates per second of all members of populations of several sizes, and of one run without a CUDA graph."""
    width, batch, counts = (8, 2, (1, 2)) if settings.quick else (128, 64, (1, 8, 32))
    ways = {CALLED: (1, False), **{str(count): (count, True) for count in counts}}
    with ExitStack() as opened:
        programs = {}
        for name, (count, record) in ways.items():
            specs = [_in(precision, spec) for spec in runs(width, batch, count)]
            programs[name] = _settled(opened.enter_context(updating(specs, together=count > 1, record=record)))
            for _ in range(WARM_UP + 1):  # the last records
                programs[name]()
        took = in_turns(programs, settings.rounds)
    rows: list[dict[str, Cell]] = []
    for name, (count, _) in ways.items():
        gain = count * took["1"] / took[name]
        rows.append({"members": name, "ms": 1e3 * took[name], "updates per second": count / took[name], "gain": gain})
    return Table(title=f"Width {width}, batch {batch}, {precision}: populations against one run at a time", rows=rows)


def _in(precision: Precision, spec: RunSpec) -> RunSpec:
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, precision=precision))


def _settled(update: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        update()
        settle(device())

    return run


if __name__ == "__main__":
    main(sys.argv[1:])
