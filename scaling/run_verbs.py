"""The verbs that have a sweep done and watch over it: ``run``, ``status``, ``retry`` and ``collect``."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from scaling import claims, episodes, garbage, grid, manifest, plug, results, standing
from scaling.arguments import PATH, options
from scaling.errors import UserError
from scaling.exit_codes import FAILED_RUNS, INTERRUPTED
from scaling.interrupts import Interrupts
from scaling.manifest import Known
from scaling.progress import duration
from scaling.resources import LOCAL, Habits, Resources, Settings, available_cpus, check
from scaling.root import Root, open_root
from scaling.runs import Runs, identify
from scaling.standing import Standing, Working

ROOT = click.option(
    "--root",
    default="runs",
    show_default=True,
    help="Where rows go: a folder, or s3://bucket/prefix and whatever else pyarrow.fs knows.",
)
CPUS = click.option("--cpus", type=click.IntRange(1), help="CPU cores to use in all.  [default: all there are]")
THREADS = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads per process."
)
PACK = click.option(
    "--pack",
    type=click.IntRange(1),
    envvar="SCALING_PACK",
    show_envvar=True,
    help="Runs of one shape that are trained together.  [default: found by trying on this machine; 1 where a shape has "
    "few updates to do, on a cluster, with several --workers, with --no-wait, and for W&B and MLflow]",
)
RESOURCES = (
    click.option(
        "--address",
        default="local",
        show_default=True,
        envvar="SCALING_ADDRESS",
        show_envvar=True,
        help="Of Ray. local: started here, for this machine alone. auto, HOST:PORT: a running cluster. none: no Ray, "
        "one run after another.",
    ),
    CPUS,
    click.option(
        "--workers",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Data-parallel processes per run or pack.",
    ),
    THREADS,
    click.option(
        "--gpus",
        type=click.FloatRange(0),
        default=0.0,
        show_default=True,
        help="GPUs per process; fractions share one.",
    ),
    click.option("--max-concurrent", type=click.IntRange(1), help="Runs at a time.  [default: as many as fit]"),
    PACK,
    click.option(
        "--retries",
        type=click.IntRange(0),
        default=3,
        show_default=True,
        help="Further tries of a run whose process died. Errors inside a run are not tried again.",
    ),
)
HABITS = (
    click.option(
        "--checkpoint-every",
        "checkpoint_seconds",
        type=click.FloatRange(0, min_open=True),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="How often a run saves its state, from which it goes on after whatever happened.",
    ),
    click.option("--keep-checkpoints", is_flag=True, help="Leave the last state, with the network, beside the row."),
    click.option(
        "--log",
        "trackers",
        multiple=True,
        type=click.Choice(["tensorboard", "wandb", "mlflow", "none"]),
        help="Who may watch; may be repeated.  [default: tensorboard, if the root is a folder]",
    ),
)


@click.command("run")
@click.argument("sweep", type=PATH)
@ROOT
@options(*RESOURCES, *HABITS)
@click.option("--only", type=click.Choice(["missing", "failed"]), default="missing", show_default=True)
@click.option(
    "--no-wait",
    is_flag=True,
    envvar="SCALING_NO_WAIT",
    show_envvar=True,
    help="Leave when all that is left is in the hands of others. Else this waits, to take over what they drop.",
)
def run_verb(
    sweep: Path,
    root: str,
    address: str,
    cpus: int | None,
    workers: int,
    threads: int,
    gpus: float,
    max_concurrent: int | None,
    pack: int | None,
    retries: int,
    checkpoint_seconds: float,
    keep_checkpoints: bool,
    trackers: tuple[str, ...],
    only: str,
    no_wait: bool,
) -> None:
    """Run what SWEEP still lacks, or what failed. A run that was done is never run again.

    Any number of these may work on one root. Ctrl-C saves the state of every run and stops, twice stops at once;
    SIGTERM and SIGUSR1 are a first Ctrl-C. The same command goes on. Exit code 0: all done; 1: some runs failed;
    75: interrupted with work left; 2: the input cannot be used.
    """
    wanted = Resources(
        address=address,
        cpus=cpus,
        workers=workers,
        threads=threads,
        gpus=gpus,
        max_concurrent=max_concurrent,
        pack=pack,
        retries=retries,
    )
    habits = Habits(threads=threads, checkpoint_seconds=checkpoint_seconds, keep_checkpoints=keep_checkpoints)
    to_the_end = click.get_current_context().find_root().with_resource
    interrupts = to_the_end(Interrupts())  # before Ray, which thus ends before it
    digest = manifest.digest_of(sweep)
    read, place = grid.read(sweep), open_root(root)
    check(wanted, trackers, read.runs)
    may_lack_runs = only == "failed" or _may_lack_runs(place, read.name, digest)
    await_ray = to_the_end(_ray(wanted)) if may_lack_runs and wanted.address == LOCAL else _nothing
    with garbage.paused():
        for kind in {spec.model.kind for spec in read.runs}:
            plug.load("models", kind)  # imports PyTorch
    runs = identify(read)
    before = standing.look(place, list(runs.specs))
    todo = _todo(before, only)
    given_up = None
    if todo:
        with garbage.paused():
            from scaling.launch import launch  # optional extra: train

        settings = Settings(
            resources=wanted, habits=habits, trackers=trackers, wait=not no_wait, is_sound=bool(before.done)
        )
        with _trouble_passes(place):
            given_up = launch(runs, place, todo, digest, settings, interrupts, await_ray)
    with _trouble_passes(place):
        code = _summary(runs, place, given_up, no_wait, only)
    if manifest.digest_of(sweep) != digest:
        click.echo(f"{sweep} has changed meanwhile; what is new in it was not run, the same command goes on")
        code = code or INTERRUPTED
    if code:
        raise click.exceptions.Exit(code)


def _nothing() -> None:
    """No Ray to wait for."""


@contextmanager
def _ray(wanted: Resources) -> Iterator[Callable[[], None]]:
    """A Ray of this machine starts while PyTorch is imported, which takes as long; the function given waits for it."""
    from scaling.local_ray import starting_ray  # optional extra: train

    with starting_ray(wanted.cpus or available_cpus()) as wait:

        def await_ray() -> None:
            importlib.import_module("scaling.sweep")  # imports Tune, for which there is time yet
            wait()

        yield await_ray


def _may_lack_runs(root: Root, name: str, digest: str) -> bool:
    """Whether runs without a row may be left of a sweep, as far as the root alone knows."""
    left = manifest.read(root, name, digest)
    return left is None or not {results.row_path(run_id) for run_id in left.runs} <= set(root.files())


@contextmanager
def _trouble_passes(root: Root) -> Iterator[None]:
    """Ends with the exit code for work that is left where the root, or Ray, fails a sweep that was begun."""
    try:
        yield
    except OSError as error:
        click.echo(f"interrupted by trouble with {error.filename or root.uri}: {error.strerror or error}")
        raise click.exceptions.Exit(INTERRUPTED) from error


def _todo(before: Standing, only: str) -> dict[str, str | None]:
    """The runs to be done, with the time on their failed row where that is to be replaced."""
    if only == "failed":
        return {name: row["finished"] for name, row in before.failed.items()}
    return dict.fromkeys(before.left)


def _summary(runs: Runs, root: Root, given_up: str | None, no_wait: bool, only: str) -> int:
    """Say how the sweep stands; the exit code that fits."""
    found = standing.look(root, list(runs.specs))
    with suppress(OSError):  # they do no harm
        claims.tidy(root, {*found.done, *found.failed})
    best = "" if found.best is None else f", best loss {found.best:.4f}"
    click.echo(f"{runs.sweep.name}: {len(found.done)} of {len(runs.specs)} runs done{best}")
    _say_failed(found)
    if given_up:
        click.echo(f"stopped early: {given_up}; mend it, then 'scaling retry' and the same command")
        return FAILED_RUNS
    if no_wait and found.left and len(found.running) == len(found.left):
        click.echo(f"{len(found.running)} runs are under way elsewhere")
        return 0
    if found.left and only != "failed":
        click.echo(f"{len(found.left)} runs left; the same command goes on")
        return INTERRUPTED
    return FAILED_RUNS if found.failed else 0


@click.command("status")
@click.argument("sweep", type=PATH)
@ROOT
def status_verb(sweep: Path, root: str) -> None:
    """Say which runs of SWEEP are done, running, stale, failed and why, and how long the rest will take.

    Works on any machine that sees the root, with the dataset or without it once the sweep was started.
    """
    place = open_root(root)
    name, known = _known(sweep, place)
    found = standing.look(place, list(known))
    click.echo(
        f"{name}: {len(found.done)} done, {len(found.running)} running, {len(found.stale)} stale, "
        f"{len(found.failed)} failed, {len(found.waiting)} waiting, of {len(known)}"
    )
    for run_id, working in found.running.items():
        click.echo(f"running {run_id} {_work_of(working, known[run_id])}")
    for run_id, working in found.stale.items():
        silent = "its process is gone" if working.silent < claims.STALE else duration(working.silent)
        click.echo(f"stale {run_id} on {working.said['host']}, silent: {silent}; the next driver takes it over")
    _say_failed(found)
    _say_clocks(found)
    left = found.seconds_left(known)
    if left is not None:
        slots = max(1, len(found.running))
        click.echo(f"about {duration(left / slots)} left, {slots} at a time")


def _known(sweep: Path, root: Root) -> tuple[str, dict[str, Known]]:
    """The sweep's name and runs: from the root if it was started as it is now, else from the sweep and its datasets."""
    read = grid.read(sweep)
    left = manifest.read(root, read.name, manifest.digest_of(sweep))
    if left is not None:
        return left.name, left.runs
    runs = identify(read)
    return read.name, {name: Known(runs.label(name), 0, 0.0) for name in runs.specs}


def _work_of(working: Working, known: Known) -> str:
    said = working.said
    text = f"on {said['host']} for {duration(working.seconds)}: {known.label}"
    if "update" in said:
        text += f", update {said['update']:,}" + (f" of {known.updates:,}" if known.updates else "")
    if "loss" in said:
        text += f", held-out loss {said['loss']:.4f}"
    return text + (f"; {said['trouble']}" if "trouble" in said else "")


def _say_failed(found: Standing) -> None:
    for name, row in found.failed.items():
        click.echo(f"failed {name}: {row['error']}")


def _say_clocks(found: Standing) -> None:
    skews = {working.said["host"]: working.skew for working in found.running.values()}
    for host, skew in skews.items():
        if abs(skew) > standing.SKEW:
            way = "ahead of" if skew > 0 else "behind"
            click.echo(f"the clock of {host} is {duration(abs(skew))} {way} the root's; ages here are by the root's")


@click.command("retry")
@click.argument("sweep", type=PATH)
@click.argument("run_ids", metavar="[RUN_ID]...", nargs=-1)
@ROOT
def retry_verb(sweep: Path, run_ids: tuple[str, ...], root: str) -> None:
    """Forget failures of SWEEP, all or those whose run_id begins as named, so that 'run' does them again."""
    place = open_root(root)
    _, known = _known(sweep, place)
    failed = standing.look(place, list(known)).failed
    for wanted in run_ids:
        if not any(name.startswith(wanted) for name in failed):
            raise UserError(f"no failed run begins with {wanted!r}; failed are: {', '.join(failed) or 'none'}")
    chosen = [name for name in failed if not run_ids or name.startswith(run_ids)]
    now_failed = standing.look(place, chosen).failed  # another driver may have done one meanwhile
    for name in now_failed:
        place.remove(results.row_path(name))
    click.echo(f"{len(now_failed)} failed runs forgotten; 'scaling run {sweep}' does them again")


@click.command("collect")
@click.argument("sweep", type=PATH)
@ROOT
@click.option("--out", type=PATH, help="Where the table goes.  [default: results/NAME.parquet]")
@click.option("--mixed-code", is_flag=True, help="Allow rows from different commits in one table.")
def collect_verb(sweep: Path, root: str, out: Path | None, mixed_code: bool) -> None:
    """Put the rows of SWEEP into one Parquet table, failed runs included, and their rolled-out episodes beside it."""
    runs, place = identify(grid.read(sweep)), open_root(root)
    table = results.collect(place, list(runs.specs))
    if not table.num_rows:
        raise UserError(f"no run of {runs.sweep.name} has ended under {root}; start them with 'scaling run {sweep}'")
    commits = sorted({str(commit) for commit in table["git_commit"].to_pylist()})
    if len(commits) > 1 and not mixed_code:
        raise UserError(
            f"the rows were made by different code ({', '.join(commit[:12] for commit in commits)}); "
            "remove the older runs, or accept the mixture with --mixed-code"
        )
    if runs.sweep.tuned:
        from scaling import tuning  # loads pandas, for which `status` need not wait

        table = tuning.mark(table, runs.sweep.tuned)
    out = out or Path("results") / f"{runs.sweep.name}.parquet"
    done = [row["run_id"] for row in table.select(["run_id", "status"]).to_pylist() if row["status"] == results.DONE]
    played = episodes.collect(place, done)
    if played.num_rows:
        results.write_table(played, episodes.beside(out))
    else:
        episodes.beside(out).unlink(missing_ok=True)  # of an earlier sweep
    results.write_table(table, out)
    click.echo(f"{table.num_rows} of {len(runs.specs)} runs -> {out}")
    if played.num_rows:
        click.echo(f"{played.num_rows:,} episodes -> {episodes.beside(out)}")
