"""The verbs that fit and compare laws on a table."""

import sys
from pathlib import Path

import click
import pandas as pd
from rich.console import Console
from rich.table import Table as Listing

from scaling import fit as fits, intervals, selection, study
from scaling.arguments import PATH, options
from scaling.errors import UserError
from scaling.flags import explain
from scaling.objective import Objective
from scaling.table import Table, read
from scaling.verb_options import FIT_OPTIONS, JSON, TABLE_OPTIONS, write_json


@click.command("fit")
@click.argument("table", type=PATH)
@click.option("--law", default="additive", show_default=True, help="A law; an unknown name lists them all.")
@options(*TABLE_OPTIONS, *FIT_OPTIONS, JSON)
def fit_verb(
    table: Path,
    law: str,
    column: dict[str, str],
    where: str | None,
    loss: str | None,
    cluster: str | None,
    objective: str,
    delta: float,
    draws: int | None,
    json_path: Path | None,
) -> None:
    """Fit one law to TABLE and say how far its numbers can be trusted."""
    form = fits.load_law(law)
    rows = read(table, column, where)
    done = _done(rows)
    extra = [
        name
        for name in selection.inputs_of(done)
        if name in ("N", "D") and (pd.to_numeric(done[name], errors="coerce") > 0).all()
    ]
    inputs = tuple(dict.fromkeys((*form.inputs, *extra)))
    data = fits.prepare(rows, study.loss_column(rows.frame, loss), inputs, cluster)
    fitted = fits.fit(form, data, Objective(objective, delta))
    shown = Console(stderr=json_path == Path("-"), width=None)
    resampled, why = _resample(fitted, draws)
    _show_fit(shown, fitted, resampled, why)
    values = fits.to_json(fitted) | (
        intervals.to_json(resampled) if resampled else {"intervals": None, "bootstrap": None}
    )
    write_json(json_path, values)


def _done(rows: Table) -> pd.DataFrame:
    return rows.frame[rows.frame["status"] != "failed"] if "status" in rows.frame else rows.frame


def _resample(fitted: fits.Fit, draws: int | None) -> tuple[intervals.Bootstrap | None, str]:
    if draws == 0:
        return None, "no bootstrap was asked for"
    try:
        return intervals.bootstrap(fitted, draws), ""
    except UserError as error:
        return None, str(error)


def _show_fit(shown: Console, fitted: fits.Fit, resampled: intervals.Bootstrap | None, why: str) -> None:
    data = fitted.data
    left_out = ", ".join(f"{count} {reason}" for reason, count in data.refused.items())
    shown.print(
        f"{fitted.law.equation}, fitted to {data.loss} of {data.rows} rows"
        + (f" (left out: {left_out})" if left_out else ""),
        highlight=False,
        markup=False,
    )
    ends = resampled.intervals() if resampled else None
    listing = Listing("parameter", "estimate", *([f"{intervals.LEVEL:.0%} interval", "BCa"] if ends else []))
    for name, value in fitted.parameters.items():
        spans = (
            [f"\\[{ends[kind][name][0]:.4g}, {ends[kind][name][1]:.4g}]" for kind in ("percentile", "bca")]
            if ends
            else []
        )
        listing.add_row(name, f"{value:.4g}", *spans)
    shown.print(listing)
    state = "certified" if fitted.certified else "NOT certified"
    shown.print(
        f"{state}: {fitted.agree} of {fitted.starts} starts agree; objective {fitted.objective:.6g}, gradient "
        f"{fitted.gradient_norm:.1e}, condition {fitted.hessian_condition:.1e}",
        highlight=False,
    )
    shown.print(
        f"bootstrap: {resampled.draws} refits, {resampled.method}, {resampled.failures} failed"
        if resampled
        else f"no intervals: {why}",
        highlight=False,
        markup=False,
    )
    for flag in fitted.flags:
        shown.print(f"flag {flag}: {explain(flag)}", highlight=False, markup=False)


@click.command("select")
@click.argument("table", type=PATH)
@options(*TABLE_OPTIONS, *FIT_OPTIONS[:2], JSON)
def select_verb(
    table: Path,
    column: dict[str, str],
    where: str | None,
    loss: str | None,
    cluster: str | None,
    objective: str,
    delta: float,
    json_path: Path | None,
) -> None:
    """Compare all laws on TABLE by how well they predict what they were not fitted to."""
    rows = read(table, column, where)
    data = selection.prepare_all(rows, study.loss_column(rows.frame, loss), cluster)
    found = selection.select(data, Objective(objective, delta))
    shown = Console(stderr=json_path == Path("-"), width=None if sys.stdout.isatty() else 160)
    listing = Listing("law", "survives", "weight", *(f"log RMSE, {hold}" for hold in found.holds), "AICc")
    for c in found.candidates:
        errors = [f"{c.rmse(hold):.4f}" for hold in found.holds]
        listing.add_row(c.fit.law.name, "yes" if c.survives else "", f"{c.weight:.2f}", *errors, f"{c.aicc:.1f}")
    shown.print(listing)
    shown.print(selection.in_words(found), highlight=False, markup=False)
    write_json(json_path, selection.to_json(found))
