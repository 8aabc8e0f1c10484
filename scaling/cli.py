"""The command line: one verb per step, each reading what the verb before it left on disk."""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from scaling import __version__, episodes, grid, results, tuning
from scaling.data_verbs import data_group
from scaling.decision_verbs import DECISION_VERBS
from scaling.errors import UserError
from scaling.fit_verbs import FIT_VERBS
from scaling.identity import read_fields
from scaling.progress import SweepProgress, duration
from scaling.return_verbs import RETURN_VERBS
from scaling.runs import Runs, identify, value_of
from scaling.verb_options import PATH

INTERRUPTED, FAILED_RUNS, USER_ERROR = 75, 1, 2
"""Exit codes beside 0, all done: work is left (EX_TEMPFAIL), some runs failed, the input cannot be used."""

ALWAYS_SHOWN = {"model.kind", "model.width", "model.depth", "data.fraction", "data.draw", "seed"}
"""Fields that have a column in the plan whether they vary or not."""

ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder that holds one folder per run.",
)
CPUS = click.option("--cpus", type=click.IntRange(1), help="CPU cores to use.  [default: all that are available]")
THREADS = click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads per run.")


class Verbs(click.Group):
    """Turns a user's mistake into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
        except OSError as error:
            click.echo(f"error: cannot read or write {error.filename or 'a file'}: {error.strerror or error}", err=True)
        except ModuleNotFoundError as error:
            click.echo(
                f"error: {error.name} is not installed; this verb needs the extra: pip install '.[train]'", err=True
            )
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on", err=True)
            ctx.exit(INTERRUPTED)
        return ctx.exit(USER_ERROR)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="scaling")
def main() -> None:
    """More data or a bigger model? Scaling-law studies for offline reinforcement learning.

    \b
    A sweep is a YAML file that says which runs answer a question. The way of the data:
      sweep --plan--> runs and their cost --run--> a row per run --collect--> one table
      table --select--> laws that survive --answer--> a verdict --report--> one HTML page
    A table may also be any CSV or Parquet file of your own: --column N=params --column D=tokens.
    """  # noqa: D301 - click wants the character itself


@main.command("plan")
@click.argument("sweep", type=PATH)
@ROOT
@CPUS
@THREADS
def plan_verb(sweep: Path, root: Path, cpus: int | None, threads: int) -> None:
    """Show the runs of SWEEP with their size, data, compute and time; start nothing.

    N counts trainable parameters outside the input embeddings, D distinct transitions, C training FLOPs; exposures
    are passes over each transition. A few updates of two models are timed here to estimate the time.
    """
    import torch  # optional extra: train

    from scaling import plan  # optional extra: train

    runs = identify(grid.read(sweep))
    costs = plan.plan(runs)
    torch.set_num_threads(threads)
    seconds = plan.estimate_seconds(runs, costs)
    waiting = set(runs.unfinished(root))
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
        table.add_row(*map(str, fixed), *sizes, duration(seconds[name]), "" if name in waiting else "done")
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


@main.command("run")
@click.argument("sweep", type=PATH)
@ROOT
@CPUS
@THREADS
@click.option(
    "--gpus-per-run",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="GPUs per run; fractions share one.",
)
@click.option("--retry-failed", is_flag=True, help="Run failed runs again too.")
def run_verb(sweep: Path, root: Path, cpus: int | None, threads: int, gpus_per_run: float, retry_failed: bool) -> None:
    """Run what SWEEP still lacks. A run that has a row is never run again.

    Ctrl-C stops; finished runs stay, and the same command goes on. Exit code 0: all done; 1: some runs failed;
    75: interrupted with work left; 2: the input cannot be used.
    """
    runs = identify(grid.read(sweep))
    todo = runs.unfinished(root, retry_failed)
    if todo:
        _run(runs, todo, root, cpus or available_cpus(), threads, gpus_per_run)
    code = _summary(runs, root)
    if code:
        raise click.exceptions.Exit(code)


def _run(runs: Runs, todo: list[str], root: Path, cpus: int, threads: int, gpus: float) -> None:
    from scaling import plan, sweep  # optional extra: train

    if threads > cpus:
        raise UserError(f"--threads {threads} exceeds the {cpus} core(s) to use")
    costs = plan.plan(runs)
    sweep.check_writable(root)
    seconds = plan.estimate_seconds(runs, costs, budget=0.2)
    updates = {name: costs[name].updates for name in todo}
    console = Console(stderr=True)
    with SweepProgress(console, {name: seconds[name] for name in todo}, updates, len(runs.specs) - len(todo)) as shown:
        sweep.run(runs, costs, todo, root, sweep.Resources(cpus, threads, gpus), shown)


def _summary(runs: Runs, root: Path) -> int:
    """Say how the sweep stands; the exit code that fits."""
    rows = runs.rows(root)
    failed = {name: row["error"] for name, row in rows.items() if row["status"] == results.FAILED}
    left = len(runs.specs) - len(rows)
    done = [row["loss_best"] for row in rows.values() if row["status"] == results.DONE]
    best = f", best loss {min(done):.4f}" if done else ""
    click.echo(f"{runs.sweep.name}: {len(done)} of {len(runs.specs)} runs done{best}")
    for name, error in failed.items():
        click.echo(f"failed {name}: {error}")
    if left:
        click.echo(f"{left} runs left; the same command goes on")
        return INTERRUPTED
    return FAILED_RUNS if failed else 0


@main.command("status")
@click.argument("sweep", type=PATH)
@ROOT
def status_verb(sweep: Path, root: Path) -> None:
    """Say which runs of SWEEP are done, running, failed and why, and how long the rest will take."""
    runs = identify(grid.read(sweep))
    rows, running = runs.rows(root), runs.running(root)
    states = Counter(row["status"] for row in rows.values())
    waiting = [name for name in runs.specs if name not in rows and name not in running]
    click.echo(
        f"{runs.sweep.name}: {states[results.DONE]} done, {len(running)} running, {states[results.FAILED]} failed, "
        f"{len(waiting)} waiting, of {len(runs.specs)}"
    )
    for name, said in running.items():
        loss = f", held-out loss {said['loss']:.4f}" if "loss" in said else ""
        click.echo(f"running {name} on {said['host']}: update {said['update']}{loss}")
    for name, row in rows.items():
        if row["status"] == results.FAILED:
            click.echo(f"failed {name}: {row['error']}")
    left = _seconds_left(runs, rows, [*waiting, *running])
    if left is not None:
        click.echo(f"about {duration(left / max(1, len(running)))} left, {max(1, len(running))} at a time")


def _seconds_left(runs: Runs, rows: dict[str, dict[str, Any]], left: list[str]) -> float | None:
    """Process seconds for the runs left, each as long as the finished runs of its model, or as all of them."""
    took: dict[Any, list[float]] = {}
    for name, row in rows.items():
        if row["status"] == results.DONE:
            took.setdefault(runs.specs[name].model, []).append(row["train_seconds"] + row["evaluate_seconds"])
    if not took or not left:
        return None
    overall = float(np.mean([np.mean(values) for values in took.values()]))
    return sum(float(np.mean(took.get(runs.specs[name].model, [overall]))) for name in left)


@main.command("collect")
@click.argument("sweep", type=PATH)
@ROOT
@click.option("--out", type=PATH, help="Where the table goes.  [default: results/NAME.parquet]")
@click.option("--mixed-code", is_flag=True, help="Allow rows from different commits in one table.")
def collect_verb(sweep: Path, root: Path, out: Path | None, mixed_code: bool) -> None:
    """Put the rows of SWEEP into one Parquet table, failed runs included, and their rolled-out episodes beside it."""
    runs = identify(grid.read(sweep))
    table = results.collect(root, list(runs.specs))
    if not table.num_rows:
        raise UserError(f"no run of {runs.sweep.name} has ended under {root}; start them with 'scaling run {sweep}'")
    commits = sorted({str(commit) for commit in table["git_commit"].to_pylist()})
    if len(commits) > 1 and not mixed_code:
        raise UserError(
            f"the rows were made by different code ({', '.join(commit[:12] for commit in commits)}); "
            "remove the older runs, or accept the mixture with --mixed-code"
        )
    if runs.sweep.tuned:
        table = tuning.mark(table, runs.sweep.tuned)
    out = out or Path("results") / f"{runs.sweep.name}.parquet"
    done = [row["run_id"] for row in table.select(["run_id", "status"]).to_pylist() if row["status"] == results.DONE]
    played = episodes.collect(root, done)
    if played.num_rows:
        results.write_table(played, episodes.beside(out))
    else:
        episodes.beside(out).unlink(missing_ok=True)  # of an earlier sweep
    results.write_table(table, out)
    click.echo(f"{table.num_rows} of {len(runs.specs)} runs -> {out}")
    if played.num_rows:
        click.echo(f"{played.num_rows:,} episodes -> {episodes.beside(out)}")


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


for verb in (*FIT_VERBS, *DECISION_VERBS, *RETURN_VERBS, data_group):
    main.add_command(verb)


if __name__ == "__main__":
    main()
