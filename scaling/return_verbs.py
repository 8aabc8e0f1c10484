"""The verb that says what runs returned, how sure that is, and whether their loss foretold it."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table as Listing

from scaling import agreement as agreements, comparison as comparisons, episodes, link as links, outcomes as returned
from scaling.agreement import Agreement
from scaling.arguments import PATH, options
from scaling.comparison import Comparison
from scaling.errors import UserError
from scaling.link import Link
from scaling.outcomes import Outcomes
from scaling.robust import DRAWS, LEVEL, Estimate
from scaling.table import read
from scaling.verb_options import JSON, TABLE_OPTIONS, write_json

WIDTH = 150
"""Characters a line may have where no terminal says otherwise."""


@click.command("returns")
@click.argument("table", type=PATH)
@click.option("--episodes", "beside", type=PATH, help="Table of episodes.  [default: the one beside TABLE, if any]")
@click.option("--by", help="Columns that make a configuration, such as width,fraction.  [default: all that vary]")
@click.option("--target", type=float, help="Return that was asked for.  [default: the first in the table]")
@click.option(
    "--metric", type=click.Choice([returned.SCORE, returned.RETURN]), help="[default: score, where there is one]"
)
@click.option("--baseline", help="Configuration to compare with, as it is named.  [default: the lowest]")
@click.option("--loss", default="loss", show_default=True, help="Column to hold against returns.")
@click.option(
    "--bootstrap", "draws", type=click.IntRange(2), default=DRAWS, show_default=True, help="Resamples of each interval."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resamples.")
@click.option("--figure", type=PATH, help="Draw profiles, means, and loss against return there.")
@options(TABLE_OPTIONS[1], JSON)
def returns_verb(
    table: Path,
    beside: Path | None,
    by: str | None,
    target: float | None,
    metric: str | None,
    baseline: str | None,
    loss: str,
    draws: int,
    seed: int,
    figure: Path | None,
    where: str | None,
    json_path: Path | None,
) -> None:
    """What the runs of TABLE returned, with robust statistics, and whether the loss predicts it."""
    path = beside or episodes.beside(table)
    played = episodes.read_frame(path) if beside is not None or path.exists() else None
    columns = [name.strip() for name in by.split(",")] if by else []
    given = returned.outcomes(read(table, None, where), played, columns, target, metric)
    generator = np.random.default_rng(seed)
    compared = comparisons.compare(given, generator, draws, baseline)
    told, found, why = _relation(given, loss, generator, draws)
    shown = Console(stderr=json_path == Path("-"), width=None if sys.stdout.isatty() else WIDTH)
    _show_comparison(shown, given, compared)
    _show_relation(shown, told, found, why, loss)
    for warning in (*given.notes, *compared.notes, *(told.warnings if told else ())):
        shown.print(f"note: {warning}", highlight=False, markup=False)
    write_json(json_path, _values(given, compared, told, found, why))
    if figure is not None:
        from scaling import return_figures  # drawing takes seconds to import, which no other use needs

        figure.parent.mkdir(parents=True, exist_ok=True)
        return_figures.page(given, compared, loss, found, generator).savefig(figure)
        shown.print(f"figure -> {figure}", highlight=False, markup=False)


def _relation(
    given: Outcomes, loss: str, generator: np.random.Generator, draws: int
) -> tuple[Agreement | None, Link | None, str]:
    """Loss against return as far as the runs allow, and why no further."""
    if loss not in given.runs:
        raise UserError(f"--loss {loss}: no such column; the table has {', '.join(map(str, given.runs.columns))}")
    told = None
    try:
        told = agreements.agreement(given.runs, loss, generator, draws)
        found = links.fit(links.points(given.runs, given.played, loss), generator)
    except UserError as error:
        return told, None, str(error)
    return told, links.bootstrap(found, generator, min(draws, links.REFITS)), ""


def _show_comparison(shown: Console, given: Outcomes, compared: Comparison) -> None:
    asked = f"asked for {given.target:g}; " if given.target is not None else ""
    left_out = ", ".join(f"{count} {reason}" for reason, count in given.refused.items())
    shown.print(
        f"{given.label} of {len(given.runs)} runs, {len(given.played)} episodes; {asked}{LEVEL:.0%} intervals resample "
        f"{compared.unit}s" + (f" (left out: {left_out})" if left_out else ""),
        highlight=False,
        markup=False,
    )
    listing = Listing("configuration", "runs", "episodes", "mean", "IQM", "P(above baseline)", "less the baseline")
    for row in compared.rows:
        marks = {compared.baseline: " (baseline)", compared.best: " (best)"} if len(compared.rows) > 1 else {}
        listing.add_row(
            row.name + marks.get(row.name, ""),
            str(row.runs),
            str(row.episodes),
            *map(_shown, (row.mean, row.iqm, row.above, row.gain)),
        )
    shown.print(listing)


def _shown(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3g} \\[{found.low:.3g}, {found.high:.3g}]"


def _show_relation(shown: Console, told: Agreement | None, found: Link | None, why: str, loss: str) -> None:
    if told is not None:
        listing = Listing(f"{loss} against return", "runs", "configurations", "Spearman", "Kendall", "the loss")
        for name, one in (("all runs", told.every), ("better half by loss", told.better)):
            if one is not None:
                span = f"{one.spearman:.2f} \\[{one.low:.2f}, {one.high:.2f}]"
                listing.add_row(name, str(one.runs), str(one.configurations), span, f"{one.kendall:.2f}", one.verdict)
        shown.print(listing)
    if found is None:
        shown.print(f"no link: {why}", highlight=False, markup=False)
        return
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in found.parameters.items())
    errors = found.points.x_error, found.points.y_error.mean()
    said = (
        f"link: return = low + (high - low) / (1 + exp((log {loss} - mid) / scale)): {numbers}",
        f"AIC {abs(found.over_flat):.1f} {'better' if found.over_flat > 0 else 'worse'} than a level line; "
        f"{found.agree} of {found.starts} starts agree",
        f"errors: {errors[0]:.2g} of log {loss} between runs of one configuration, {errors[1]:.3g} of a run's mean "
        "return over its episodes",
    )
    for line in said:
        shown.print(line, highlight=False, markup=False)
    for flag in found.flags:
        shown.print(f"flag: {flag}", highlight=False, markup=False)


def _values(
    given: Outcomes, compared: Comparison, told: Agreement | None, found: Link | None, why: str
) -> dict[str, Any]:
    """All that was said, as plain values."""
    return {
        "metric": given.metric,
        "target": given.target,
        "unit": compared.unit,
        "baseline": compared.baseline,
        "best": compared.best,
        "left_out": dict(given.refused),
        "configurations": [
            {"name": row.name, "runs": row.runs, "episodes": row.episodes, "shared_starts": row.starts}
            | {part: _plain(getattr(row, part)) for part in ("mean", "iqm", "above", "gain")}
            for row in compared.rows
        ],
        "agreement": None if told is None else dataclasses.asdict(told),
        "link": None if found is None else _link(found),
        "no_link": why or None,
        "notes": [*given.notes, *compared.notes],
    }


def _plain(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else {name: float(getattr(found, name)) for name in ("value", "low", "high")}


def _link(found: Link) -> dict[str, Any]:
    return {
        "parameters": found.parameters,
        "over_flat": found.over_flat,
        "agree": found.agree,
        "starts": found.starts,
        "flags": list(found.flags),
        "loss_error": found.points.x_error,
        "refits": len(found.refits),
    }
