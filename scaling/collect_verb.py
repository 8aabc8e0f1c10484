"""``scaling data collect``: make a dataset by playing an environment."""

import shutil
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from scaling.collecting import place
from scaling.collecting.place import Request
from scaling.collecting.shown import Shown
from scaling.errors import UserError

SHARE = 5
"""Transitions of the training per transition of a set of rollouts, unless told otherwise."""
READERS = {
    "rollout_steps": "with --policy sac",
    "checkpoint_every": "with --policy sac",
    "rows_per_file": "for Atari games",
}
"""Options that not every collection reads."""
LEAST = 2_000
"""Fewer steps cannot train: the first ones are random."""


@click.command("collect")
@click.option("--env", required=True, help="Gymnasium id: Hopper-v5, ALE/Breakout-v5.")
@click.option(
    "--policy",
    type=click.Choice(["sac", "random", "track"]),
    required=True,
    help="sac: trained here, actions in [-1, 1]. random: uniform, Atari too. track: follows Breakout's ball.",
)
@click.option(
    "--steps", type=click.IntRange(1), required=True, help="Steps to train or to play; 1_000_000 is a number."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that play rollouts.")
@click.option("--rollout-steps", type=click.IntRange(1), help="Steps of each set of rollouts.  [default: steps / 5]")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1_000),
    default=10_000,
    show_default=True,
    help="Training steps between saved policies.",
)
@click.option(
    "--rows-per-file", type=click.IntRange(1_000), default=1_000_000, show_default=True, help="Atari: rows of a file."
)
def collect_verb(
    env: str,
    policy: str,
    steps: int,
    out: Path,
    seed: int,
    workers: int,
    rollout_steps: int | None,
    checkpoint_every: int,
    rows_per_file: int,
) -> None:
    """Make a dataset in a folder by playing an environment.

    Continuous actions give D4RL files. sac trains a policy and leaves random, medium, medium-replay, full-replay and
    expert.hdf5; random leaves random.hdf5. Atari games give the files of a DQN Replay log. Interrupted, the same
    command goes on where it was; with more --steps the training is prolonged.
    """
    atari = env.startswith("ALE/")
    if atari:
        request = Request(env=env, policy=policy, seed=seed, rows_per_file=rows_per_file)
    else:
        request = Request(
            env=env, policy=policy, seed=seed, checkpoint_every=checkpoint_every if policy == "sac" else None
        )
    wanted = {"steps": steps} | ({"rollout_steps": rollout_steps or -(-steps // SHARE)} if policy == "sac" else {})
    _refuse_unread("atari" if atari else policy)
    _check(request, atari, steps)
    with place.claim(out, request) as manifest:
        if manifest.get("finished") == wanted:
            shutil.rmtree(out / place.PARTS, ignore_errors=True)
            click.echo(f"{out} is finished; nothing to do")
            return
        _refuse_less(out, manifest, wanted, atari)
        place.write(out, {"request": manifest["request"], "begun": wanted})
        ended = _collect(out, request, wanted, workers)
        place.write(out, {"request": manifest["request"], "finished": wanted, **ended})
        shutil.rmtree(out / place.PARTS, ignore_errors=True)
    for name, content in ended["files"].items():
        mean = "" if content["mean_return"] is None else f", mean return {content['mean_return']:,.1f}"
        click.echo(f"{out / name}: {content['rows']:,} rows, {content['episodes']:,} episodes{mean}")


def _refuse_unread(kind: str) -> None:
    """Refuse an option that would change nothing."""
    read = {"atari": {"rows_per_file"}, "sac": {"rollout_steps", "checkpoint_every"}}.get(kind, set())
    context = click.get_current_context()
    for name, reader in READERS.items():
        if name not in read and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UserError(f"--{name.replace('_', '-')} is read {reader} only; leave it out")


def _check(request: Request, atari: bool, steps: int) -> None:
    """Refuse what cannot work before anything is written."""
    if atari:
        from scaling.collecting import atari as games  # optional extra: atari

        games.check(request)
        return
    from scaling.collecting import continuous  # optional extra: train

    if request.policy == "track":
        raise UserError(f"--policy track plays Breakout only, not {request.env}; use sac or random")
    continuous.check(request)
    if request.policy == "sac" and steps < LEAST:
        raise UserError(f"--steps {steps} is too few to train; at least {LEAST:,} are needed")


def _refuse_less(out: Path, manifest: dict[str, Any], wanted: dict[str, int], atari: bool) -> None:
    begun = manifest.get("begun", manifest.get("finished", {})).get("steps")
    if begun is not None and (wanted["steps"] < begun or (atari and wanted["steps"] != begun)):
        raise UserError(f"--out {out} was begun with --steps {begun}, not {wanted['steps']}; choose another folder")


def _collect(out: Path, request: Request, wanted: dict[str, int], workers: int) -> dict[str, Any]:
    from scaling.collecting import continuous  # optional extra: train

    with Shown(Console(stderr=True)) as shown:
        if request.env.startswith("ALE/"):
            from scaling.collecting import atari  # optional extra: atari

            return atari.collect(out, request, wanted["steps"], workers, shown)
        if request.policy == "random":
            return continuous.collect_random(out, request, wanted["steps"], workers, shown)
        return continuous.collect_sac(out, request, wanted["steps"], wanted["rollout_steps"], workers, shown)
