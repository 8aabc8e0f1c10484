"""The verbs of datasets: look at one, check it, write it in another format, make one."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from scaling.arguments import PATH
from scaling.collect_verb import collect_verb
from scaling.errors import UserError


@click.group("data")
def data_verb() -> None:
    """Look at a dataset, check it, convert it, or make one.

    PATH is a D4RL HDF5 file, a folder or name of a Minari dataset, a folder of DQN Replay logs, a pickle of the
    Decision Transformer's code, a Parquet or Arrow file of one's own, a store, d4rl:NAME or embedded:NAME.
    """


STEP_LIMIT = click.option(
    "--step-limit", type=click.IntRange(1), help="D4RL files without timeouts: steps after which an episode was cut."
)


@data_verb.command("inspect")
@click.argument("path")
@STEP_LIMIT
@click.option("--figure", type=PATH, help="Where the figure goes.  [default: results/NAME.inspect.png]")
def inspect_verb(path: str, step_limit: int | None, figure: Path | None) -> None:
    """Say what PATH is: episodes, returns, lengths, how episodes ended, how varied they are; with a figure."""
    from scaling import inspection, recognise  # optional extra: train

    kind = recognise.kind_of(path, Path())
    store = recognise.open_path(path, Path(), step_limit)
    table = Table(show_header=False, box=None)
    table.add_row("recognised as", kind)
    for name, value in inspection.facts(store).items():
        table.add_row(name, str(value))
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
    place = figure or Path("results") / f"{_name(path)}.inspect.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    inspection.picture(store, _name(path)).savefig(place, dpi=110)
    click.echo(f"figure -> {place}")


@data_verb.command("convert")
@click.argument("source")
@click.argument("target")
@STEP_LIMIT
def convert_verb(source: str, target: str, step_limit: int | None) -> None:
    """Write SOURCE as TARGET: a .hdf5 (D4RL layout) or .parquet file, minari:NAME-v0, or the folder of a store."""
    from scaling import exports, recognise  # optional extra: train

    store = recognise.open_path(source, Path(), step_limit)
    place = exports.export(store, target)
    click.echo(f"{len(store.rewards):,} transitions, {len(store.lengths):,} episodes -> {place}")


@data_verb.command("verify")
@click.argument("path")
@STEP_LIMIT
def verify_verb(path: str, step_limit: int | None) -> None:
    """Read all of PATH again, with every check, and compare it with the store that trials use."""
    from scaling import recognise, verification  # optional extra: train

    kind = recognise.kind_of(path, Path())
    wrong = verification.faults(path, kind, step_limit)
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}")
    store = recognise.open_path(path, Path(), step_limit)
    click.echo(
        f"{path}: {kind}, {len(store.rewards):,} transitions, {len(store.lengths):,} episodes, all finite, "
        f"digest {store.digest[:16]}: nothing wrong"
    )


data_verb.add_command(collect_verb)


def _name(path: str) -> str:
    """A file name for what is at ``path``."""
    return Path(path.rpartition(":")[2]).name or "dataset"
