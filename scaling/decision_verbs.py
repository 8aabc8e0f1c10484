"""The verbs that answer, and that say what to run: from a table, or before there is one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table as Listing

from scaling import answer as answers, design, fit as fits, nulls, power as powers, study
from scaling.arguments import PATH, options
from scaling.costs import Costs
from scaling.errors import UserError
from scaling.law import Law
from scaling.objective import Objective
from scaling.table import Table, read
from scaling.verb_options import (
    COSTS,
    FIT_OPTIONS,
    JSON,
    LAW,
    MARGIN,
    TABLE_OPTIONS,
    Positive,
    pairs,
    write_json,
)


@click.command("answer")
@click.argument("table", type=PATH)
@LAW
@options(*COSTS, MARGIN)
@click.option("--by", help="Column, such as the environment; one answer per value, tests of size adjusted after Holm.")
@options(*TABLE_OPTIONS, *FIT_OPTIONS, JSON)
def answer_verb(
    table: Path,
    law: str | None,
    cost_per_transition: float | None,
    cost_per_gpu_hour: float | None,
    budget: float | None,
    hours: float | None,
    margin: float | None,
    by: str | None,
    column: dict[str, str],
    where: str | None,
    loss: str | None,
    cluster: str | None,
    objective: str,
    delta: float,
    draws: int | None,
    json_path: Path | None,
) -> None:
    """More data or a bigger model? Answer from TABLE, with a probability, or say that it cannot be told."""
    costs = _costs(cost_per_transition, cost_per_gpu_hour, budget, hours)
    how = Objective(objective, delta)

    def run(rows: Table) -> study.Study:
        return study.study(rows, law, loss, how, _asked(draws), costs=costs, margin=margin, cluster=cluster)

    rows = read(table, column, where)
    to_stderr = json_path == Path("-")
    if by is None:
        given = run(rows).answer
        click.echo(answers.in_words(given), err=to_stderr)
        write_json(json_path, answers.to_json(given))
        return
    found, adjusted = study.studies(rows, by, run)
    for value, one in found.items():
        click.echo(f"{by} = {value}\n{answers.in_words(one.answer)}\n", err=to_stderr)
    for value, p in adjusted.items():
        click.echo(f"{by} = {value}: no effect of model size, p = {p:.3f} after Holm", err=to_stderr)
    answered = {value: answers.to_json(one.answer) for value, one in found.items()}
    write_json(json_path, {"by": by, "answers": answered, "holm": adjusted})


def _asked(draws: int | None) -> int | None:
    if draws == 0:
        raise UserError("a verdict needs a bootstrap: --bootstrap must be at least 2")
    return draws


def _costs(transition: float | None, gpu_hour: float | None, budget: float | None, hours: float | None) -> Costs | None:
    if transition is None and gpu_hour is None:
        if budget is not None:
            raise UserError("--budget needs --cost-per-transition and --cost-per-gpu-hour")
        return None
    if transition is None or gpu_hour is None:
        raise UserError("costs are compared: give both --cost-per-transition and --cost-per-gpu-hour")
    return Costs(transition, gpu_hour, budget, hours)


@click.command("next")
@click.argument("table", type=PATH)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="How many runs.")
@click.option(
    "--narrow",
    default=design.VERDICT,
    show_default=True,
    help=f"What to narrow: {', '.join(design.QUANTITIES)}, or a parameter of the law.",
)
@click.option("--law", default="additive", show_default=True, help="The law behind the quantity.")
@click.option("--out", type=PATH, help="Write a ready sweep there.  [default: print it]")
@options(*TABLE_OPTIONS, *FIT_OPTIONS[:2], JSON)
def next_verb(
    table: Path,
    runs: int,
    narrow: str,
    law: str,
    out: Path | None,
    column: dict[str, str],
    where: str | None,
    loss: str | None,
    cluster: str | None,
    objective: str,
    delta: float,
    json_path: Path | None,
) -> None:
    """Name the runs that would narrow the verdict of TABLE most, as a sweep to run."""
    rows = read(table, column, where)
    form = fits.load_law(law)
    data = fits.prepare(
        rows, study.loss_column(rows.frame, loss), tuple(dict.fromkeys((*form.inputs, "N", "D"))), cluster
    )
    fitted = fits.fit(form, data, Objective(objective, delta))
    if fitted.refusal:
        raise UserError(f"law {law} cannot say what to run next: {fitted.refusal}")
    n, d = float(data.frame["N"].max()), float(data.frame["D"].max())
    cells = design.next_cells(fitted, n, d, runs, narrow)
    known = "spec" in data.frame
    if out is not None and not known:
        raise UserError("the table holds no specs, so no sweep can be written; without --out the cells are printed")
    for cell in cells:
        click.echo(f"run {cell.in_words()} (leaves {cell.variance_left:.1%} of the variance)", err=known)
    write_json(json_path, {"narrow": narrow, "law": law, "cells": [dataclasses.asdict(cell) for cell in cells]})
    if not known:
        return
    text = design.sweep_yaml(fitted, cells, out.stem if out else f"{table.stem}_next")
    if out is None:
        click.echo(text, nl=False, err=json_path == Path("-"))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
        click.echo(f"sweep -> {out}", err=True)


@click.command("power")
@click.argument("sweep", type=PATH)
@click.option("--law", default="additive", show_default=True, help="The law that is true, and fitted.")
@click.option(
    "--set",
    "numbers",
    multiple=True,
    callback=pairs,
    metavar="NAME=NUMBER",
    help="A number of the law, such as E=0.2.",
)
@click.option("--like", type=PATH, help="Take the law's numbers and the noise from this table instead.")
@click.option("--seed-sd", type=Positive(), help="Standard deviation of log loss between seeds.")
@click.option(
    "--subset-sd", type=click.FloatRange(0), help="The same between random subsets of the data.  [default: 0]"
)
@click.option("--repeats", default="1,2,3,5", show_default=True, help="Seeds per configuration to try.")
@click.option(
    "--worlds", type=click.IntRange(10), default=powers.WORLDS, show_default=True, help="Simulated tables for each."
)
@JSON
def power_verb(
    sweep: Path,
    law: str,
    numbers: dict[str, str],
    like: Path | None,
    seed_sd: float | None,
    subset_sd: float | None,
    repeats: str,
    worlds: int,
    json_path: Path | None,
) -> None:
    """Say before SWEEP is run how often its verdict would separate, and how many seeds that takes."""
    form = fits.load_law(law)
    loss, sd = _assumed(form, numbers, like, seed_sd, subset_sd)
    counts = _whole_numbers(repeats)
    shown = Console(stderr=json_path == Path("-"))
    listing = Listing("seeds", "runs", answers.DATA, answers.MODEL, answers.CANNOT_TELL, "right verdict")
    found = []
    with shown.status("simulating"):
        for one in powers.power(_grid_of(sweep), form, loss, sd, counts, worlds):
            found.append(one)
            shares = (one.more_data, one.bigger_model, one.cannot_tell, one.right)
            listing.add_row(str(one.repeats), str(one.runs), *(f"{share:.0%}" for share in shares))
    shown.print(listing)
    enough = [one.repeats for one in found if one.right >= powers.ENOUGH]
    said = f"{enough[0]} seed(s) give" if enough else "none of these numbers of seeds gives"
    shown.print(f"{said} the right verdict in {powers.ENOUGH:.0%} of worlds ({worlds} worlds each)", highlight=False)
    write_json(json_path, {"law": law, "seed_sd": sd[0], "subset_sd": sd[1], "power": [vars(one) for one in found]})


def _assumed(
    form: Law, numbers: dict[str, str], like: Path | None, seed_sd: float | None, subset_sd: float | None
) -> tuple[Callable[[pd.DataFrame], np.ndarray], tuple[float, float]]:
    """The true loss by row, and its noise."""
    if like is not None and numbers:
        raise UserError("--set and --like exclude each other: the numbers come from one of them")
    if like is None:
        if seed_sd is None:
            raise UserError("--seed-sd is needed: the standard deviation of log loss between seeds, such as 0.02")
        try:
            values = {name: float(value) for name, value in numbers.items()}
        except ValueError as error:
            raise UserError(f"--set takes numbers ({error}); for example --set E=0.2") from error
        return powers.truth(form, values), (seed_sd, subset_sd or 0.0)
    rows = read(like)
    fitted = fits.fit(form, fits.prepare(rows, study.loss_column(rows.frame), form.inputs))
    measured = nulls.noise(fitted.data, fitted.residuals, len(fitted.theta))
    sd = (seed_sd or measured[0], measured[1] if subset_sd is None else subset_sd)

    def loss(frame: pd.DataFrame) -> np.ndarray:
        return fitted.predict({name: frame[name].to_numpy(float) for name in form.inputs})

    return loss, sd


def _grid_of(sweep: Path) -> pd.DataFrame:
    """N, D and fraction of every configuration of a sweep."""
    from scaling import grid, plan  # optional extra: train
    from scaling.runs import identify

    runs = identify(grid.read(sweep))
    costs = plan.plan(runs)
    rows = [
        {"N": costs[name].parameters["N"], "D": costs[name].D, "fraction": spec.data.fraction}
        for name, spec in runs.specs.items()
    ]
    return pd.DataFrame(rows).groupby(["N", "fraction"], as_index=False)[["D"]].mean()


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--repeats must be whole numbers with commas, such as 1,2,5: {text!r}") from error
    if min(counts) < 1:
        raise UserError(f"--repeats must be at least 1: {text!r}")
    return counts


@click.command("report")
@click.argument("table", type=PATH)
@LAW
@click.option("--out", type=PATH, help="Where the page goes.  [default: beside the table, .html]")
@click.option(
    "--figures", type=click.Path(path_type=Path, file_okay=False), help="Folder for the figures as PNG files too."
)
@options(*COSTS, MARGIN, *TABLE_OPTIONS, *FIT_OPTIONS)
def report_verb(
    table: Path,
    law: str | None,
    out: Path | None,
    figures: Path | None,
    cost_per_transition: float | None,
    cost_per_gpu_hour: float | None,
    budget: float | None,
    hours: float | None,
    margin: float | None,
    column: dict[str, str],
    where: str | None,
    loss: str | None,
    cluster: str | None,
    objective: str,
    delta: float,
    draws: int | None,
) -> None:
    """Write one HTML page about TABLE, figures inside, and print the verdict."""
    from scaling import report as reports  # drawing takes seconds to import, which no other verb needs

    costs = _costs(cost_per_transition, cost_per_gpu_hour, budget, hours)
    rows = read(table, column, where)
    how = Objective(objective, delta)
    looked_at = study.study(rows, law, loss, how, _asked(draws), costs=costs, margin=margin, cluster=cluster)
    out = out or table.with_suffix(".html")
    reports.write(looked_at, out, title=table.stem, figures_folder=figures)
    click.echo(answers.in_words(looked_at.answer))
    click.echo(f"report -> {out}")
