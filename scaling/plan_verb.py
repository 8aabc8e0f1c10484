"""``scaling plan``: what a sweep will take, before anything is started."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from scaling import grid, results
from scaling.arguments import PATH
from scaling.identity import read_fields
from scaling.progress import duration
from scaling.root import open_root
from scaling.run_verbs import CPUS, ROOT, THREADS
from scaling.runs import identify, value_of
from scaling.spec import RunSpec

if TYPE_CHECKING:  # optional extra: train
    from scaling.cost import Cost

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
def plan_verb(sweep: Path, root: str, cpus: int | None, threads: int) -> None:
    """Show the runs of SWEEP with their size, data, compute and time; start nothing.

    N counts trainable parameters outside the input embeddings, D distinct transitions, C training FLOPs; exposures
    are passes over each transition. A few updates of two models are timed here to estimate the time.
    """
    import torch  # optional extra: train

    from scaling import plan  # optional extra: train
    from scaling.driver import available_cpus  # optional extra: train

    runs = identify(grid.read(sweep))
    costs = plan.plan(runs)
    torch.set_num_threads(threads)
    seconds = plan.estimate_seconds(runs, costs)
    rows = results.brief(open_root(root), list(runs.specs), ("status",))
    waiting = set(runs.specs) - set(rows)
    varying = [name for name in runs.varying() if name not in ALWAYS_SHOWN]
    heads = (*COLUMNS[:7], *varying, *COLUMNS[7:])
    lines = [
        _line(name, spec, costs[name], varying, seconds[name], rows[name]["status"] if name in rows else "")
        for name, spec in runs.specs.items()
    ]
    console = Console(width=None if sys.stdout.isatty() else 160 + 16 * len(varying))
    if runs.sweep.question:
        console.print(f"Question: {runs.sweep.question}", highlight=False)
    _show(console, heads, lines)
    _show_confounding(console, costs)
    left = sum(seconds[name] for name in waiting)
    slots = max(1, (cpus or available_cpus()) // threads)
    total = sum(cost.C for cost in costs.values())
    console.print(
        f"{len(runs.specs)} runs, C = {total:.2e} FLOPs in all; {len(waiting)} to do: about "
        f"{duration(left / min(slots, max(1, len(waiting))))} on this machine, {slots} at a time, without rollouts"
    )


def _line(name: str, spec: RunSpec, cost: "Cost", varying: list[str], seconds: float, status: str) -> list[str]:
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
        duration(seconds),
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
