"""``scaling plan``: what a sweep will take, before anything is started."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from scaling import garbage, grid, results
from scaling.arguments import PATH
from scaling.identity import read_fields
from scaling.progress import duration
from scaling.resources import available_cpus
from scaling.root import open_root
from scaling.run_verbs import CPUS, PACK, ROOT, THREADS
from scaling.runs import Runs, identify, value_of
from scaling.spec import RunSpec

if TYPE_CHECKING:  # optional extra: train
    from scaling.cost import Cost
    from scaling.plan import Estimate

COLUMNS = (
    *("run", "kind", "width", "depth", "fraction", "draw", "seed"),
    *("N", "D", "updates", "exposures", "C", "time", "row"),
)

MANY = 200
"""Runs beyond which a drawn table takes longer than the plan."""

ALWAYS_SHOWN = {"model.kind", "model.width", "model.depth", "data.fraction", "data.draw", "seed"}
"""Fields that have a column in the plan whether they vary or not."""


@click.command("plan")
@click.argument("sweep", type=PATH)
@ROOT
@CPUS
@THREADS
@PACK
def plan_verb(sweep: Path, root: str, cpus: int | None, threads: int, pack: int | None) -> None:
    """Show the runs of SWEEP with their size, data, compute and time; start nothing.

    N counts trainable parameters outside the input embeddings, D distinct transitions, C training FLOPs; exposures
    are passes over each transition. The time is from short trials of some of the networks here, on as many busy cores
    as the runs will have, and includes start-up, held-out losses and rollouts as long as recorded episodes.
    """
    begin = time.perf_counter()
    with garbage.paused():
        import torch  # optional extra: train

        from scaling import plan  # optional extra: train
        from scaling.packing import packs_of  # optional extra: train

    imports = time.perf_counter() - begin
    runs = identify(grid.read(sweep))
    costs = plan.plan(runs)
    torch.set_num_threads(threads)
    rows = results.brief(open_root(root), list(runs.specs), ("status",))
    waiting = set(runs.specs) - set(rows)
    slots = max(1, min((cpus or available_cpus()) // threads, len(waiting)))
    expected = plan.estimate(runs, costs, company=0 if torch.cuda.is_available() else slots - 1, threads=threads)
    packs = packs_of(runs, costs, sorted(waiting), slots, pack)
    expected = expected.packed(packs)
    varying = [name for name in runs.varying() if name not in ALWAYS_SHOWN]
    heads = (*COLUMNS[:7], *varying, *COLUMNS[7:])
    lines = [
        _line(name, spec, costs[name], varying, _time(expected, name), rows[name]["status"] if name in rows else "")
        for name, spec in runs.specs.items()
    ]
    console = Console(width=None if sys.stdout.isatty() else 160 + 16 * len(varying))
    if runs.sweep.question:
        console.print(f"Question: {runs.sweep.question}", highlight=False)
    _show(console, heads, lines)
    _show_confounding(console, costs)
    total = sum(cost.C for cost in costs.values())
    click.echo(
        f"{len(runs.specs)} runs, C = {total:.2e} FLOPs in all; {len(waiting)} to do: about "
        f"{duration(expected.wall(costs, waiting, slots, imports))} on this machine, {slots} at a time"
    )
    for line in _notes(runs, expected):
        click.echo(line)
    if pack is not None and pack > 1:
        click.echo("times are those of runs alone; what packs of a given size take is not tried")
    if largest := max(packs.sizes.values(), default=1) - 1:
        click.echo(f"runs of one shape are trained together, up to {largest + 1} at a time; see --pack of 'run'")


def _notes(runs: Runs, expected: "Estimate") -> list[str]:
    """Where the times are from, and what memory does not suffice for."""
    said = [
        f"{expected.tried} of {expected.shapes} shapes of network and batch were tried here in {expected.took:.0f} s"
    ]
    if expected.tried < expected.shapes:
        said = [f"{said[0]}, the others read off between them in log-log over FLOPs"]
    tight = {runs.label(name).partition(",")[0]: parts for name, parts in expected.parts.items()}
    return said + [
        f"{label} does not fit into memory here"
        + (f" whole: its batches are computed in {parts} parts" if parts else "; its runs would fail")
        for label, parts in tight.items()
    ]


def _time(expected: "Estimate", name: str) -> str:
    """A run's time, as the table shows it."""
    return duration(expected.seconds[name]) if expected.parts.get(name, 1) else "does not fit"


def _line(name: str, spec: RunSpec, cost: "Cost", varying: list[str], taken: str, status: str) -> list[str]:
    """One run, as the table shows it."""
    model, data, read = spec.model, spec.data, read_fields(spec)
    fixed = [name[:8], model.kind, model.width, model.depth, f"{cost.share:.4g}", data.draw, spec.seed]
    fixed += [value_of(spec, field) if field in read else "" for field in varying]
    return [
        *map(str, fixed),
        f"{cost.parameters['N']:,}",
        f"{cost.D:,}",
        f"{'≤ ' if spec.train.budget == 'convergence' else ''}{cost.updates:,}",
        f"{cost.exposures:.3g}",
        f"{cost.C:.2e}",
        taken,
        status,
    ]


def _show(console: Console, heads: tuple[str, ...], lines: list[list[str]]) -> None:
    """A table, drawn where that is quick, in plain columns where it is long."""
    if len(lines) <= MANY:
        table = Table(*heads)
        for line in lines:
            table.add_row(*line)
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (list(heads), *lines):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _show_confounding(console: Console, costs: dict[str, Any]) -> None:
    """What moves together in this sweep, so that no fit can tell it apart."""
    from scaling import confounding  # optional extra: train

    names, found = confounding.correlations(costs)
    if len(names) < 2:
        return
    table = Table("log", *names, title="correlations over the runs")
    for name, row in zip(names, found, strict=True):
        table.add_row(name, *(f"{round(value, 2) + 0.0:.2f}" for value in row))
    console.print(table)
    for line in confounding.warnings(names, found):
        console.print(f"warning: {line}", highlight=False)
