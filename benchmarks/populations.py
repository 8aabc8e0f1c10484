"""Runs trained together against runs one after another, and a grid of small networks by the command line, both ways."""

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from benchmarks.document import Cell, Settings, Table
from benchmarks.timing import in_turns
from scaling import population, results, train
from scaling.checkpoint import Nobody
from scaling.population import Entry, Population
from scaling.root import open_root
from scaling.runs import open_store
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec
from scaling.training import Training, silent

MEMBERS = 8
SIZES = ((16, 4), (16, 16), (16, 64), (32, 4), (32, 16), (32, 64), (64, 16))
"""Width and batch."""
QUICK_SIZES = ((8, 2),)
DATA = DataSpec(path="embedded:hopper-mini-v5")

GRID = """
name: grid
base:
  model: {{depth: 2, context: 20}}
  data: {{path: "embedded:hopper-mini-v5"}}
  train: {{amount: {updates}, batch: {batch}, evaluations: 2}}
axes: {{model.width: {widths}, data.fraction: [0.25, 0.5, 1.0], seed: {seeds}}}
"""


def section(settings: Settings) -> list[Table]:
    """Updates, and whole grids."""
    return [updates(settings), grids(settings)]


def runs(width: int, batch: int, count: int) -> list[RunSpec]:
    """Runs of one shape."""
    spec = RunSpec(
        model=ModelSpec(width=width, depth=2, context=20), data=DATA, train=TrainSpec(batch=batch, amount=1e6)
    )
    return [dataclasses.replace(spec, seed=seed) for seed in range(count)]


def updates(settings: Settings) -> Table:
    """An update of each of a few runs, on one thread."""
    members = 2 if settings.quick else MEMBERS
    rows: list[dict[str, Cell]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for width, batch in QUICK_SIZES if settings.quick else SIZES:
        each = runs(width, batch, members)
        with updating(each, together=False) as alone, updating(each, together=True) as together:
            took = in_turns({"alone": alone, "together": together}, 9)
        gain = took["alone"] / took["together"]
        ms = {f"{name}, ms": 1e3 * seconds for name, seconds in took.items()}
        rows.append({"width": width, "batch": batch, **ms, "gain": gain})
    torch.set_num_threads(threads)
    title = f"One update of each of {members} runs, on one thread: one after another, and together"
    return Table(title=title, rows=rows, note="Depth 2, context 20, dropout on; windows, clipping and AdamW included.")


@contextmanager
def updating(specs: list[RunSpec], together: bool, record: bool = True) -> Iterator[Callable[[], None]]:
    """One update of every run; on a GPU played from a CUDA graph, unless it is not to ``record``."""
    store = open_store(specs[0], Path())
    entries = [Entry(spec=spec, store=store, report=silent, keeper=Nobody(), state=None) for spec in specs]
    with ExitStack() as opened:
        if together:
            programs: list[Training | Population] = [opened.enter_context(population.rehearsal(entries))]
        else:
            programs = [opened.enter_context(train.rehearsal(spec, store)) for spec in specs]
        for program in programs:
            program.step.records &= record

        def update() -> None:
            for program in programs:
                program.update()

        yield update


def grids(settings: Settings) -> Table:
    """A grid of 24 runs through the command line: one run per process at a time, and as the command chooses."""
    rows: list[dict[str, Cell]] = []
    for batch in (2,) if settings.quick else (4, 64):
        amount = 2 if settings.quick else 3200 // batch // (2 if batch > 4 else 1)
        found = {how: grid(settings, batch, amount, options) for how, options in WAYS.items()}  # not in turns: minutes
        for how, (seconds, packed) in found.items():
            gain = found["one run per process"][0] / seconds
            rows.append({"batch": batch, "updates": amount, "how": how, "packs": packed, "s": seconds, "gain": gain})
    return Table(
        title="24 runs of width 16 and 32, from the command to the last row, two processes of one thread",
        rows=rows,
        note="Start of the command and of Ray included, as is the trial by which packs are chosen.",
    )


WAYS = {"one run per process": ("--pack", "1"), "as chosen": ()}


def grid(settings: Settings, batch: int, amount: int, options: tuple[str, ...]) -> tuple[float, str]:
    """Seconds, and the sizes of packs that the rows tell."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "grid.yaml"
        widths, seeds = ([8], [0, 1]) if settings.quick else ([16, 32], [0, 1, 2, 3])
        sweep.write_text(GRID.format(batch=batch, updates=amount, widths=widths, seeds=seeds))
        begin = time.perf_counter()
        command = [str(Path(sys.executable).parent / "scaling"), "run", str(sweep), "--root", folder, "--cpus", "2"]
        where = ["--address", "none"] if settings.quick else []  # without Ray, whose start takes longer than the rest
        subprocess.run([*command, *options, *where, "--log", "none"], check=True, capture_output=True)
        seconds = time.perf_counter() - begin
        names = [path.parent.name for path in Path(folder).glob("*/row.parquet")]
        sizes = {results.read_row(open_root(folder), name)["packed"] for name in names}  # type: ignore[index]
    return seconds, ", ".join(map(str, sorted(sizes)))
