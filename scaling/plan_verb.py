"""``scaling plan``: what a sweep will take, before anything is started."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from scaling import grid, results
from scaling.identity import read_fields
from scaling.progress import duration
from scaling.root import open_root
from scaling.run_verbs import CPUS, ROOT, THREADS
from scaling.runs import identify, value_of
from scaling.verb_options import PATH

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
    table = Table(
        "run",
        "kind",
        "width",
        "depth",
        "fraction",
        "draw",
        "seed",
        *varying,
        "N",
        "D",
        "updates",
        "exposures",
        "C",
        "time",
        "row",
    )
    for name, spec in runs.specs.items():
        cost = costs[name]
        model, data = spec.model, spec.data
        fixed = [name[:8], model.kind, model.width, model.depth, f"{cost.share:.4g}", data.draw, spec.seed]
        read = read_fields(spec)
        fixed += [value_of(spec, field) if field in read else "" for field in varying]
        sizes = [
            f"{cost.parameters['N']:,}",
            f"{cost.D:,}",
            f"{'≤ ' if spec.train.budget == 'convergence' else ''}{cost.updates:,}",
            f"{cost.exposures:.3g}",
            f"{cost.C:.2e}",
        ]
        table.add_row(*map(str, fixed), *sizes, duration(seconds[name]), rows[name]["status"] if name in rows else "")
    console = Console(width=None if sys.stdout.isatty() else 160 + 16 * len(varying))
    if runs.sweep.question:
        console.print(f"Question: {runs.sweep.question}", highlight=False)
    console.print(table)
    _show_confounding(console, costs)
    left = sum(seconds[name] for name in waiting)
    slots = max(1, (cpus or available_cpus()) // threads)
    total = sum(cost.C for cost in costs.values())
    console.print(
        f"{len(runs.specs)} runs, C = {total:.2e} FLOPs in all; {len(waiting)} to do: about "
        f"{duration(left / min(slots, max(1, len(waiting))))} on this machine, {slots} at a time, without rollouts"
    )


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
