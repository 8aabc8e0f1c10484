"""Options that the verbs over tables share, and how they write JSON."""

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np

from scaling import intervals
from scaling.errors import UserError
from scaling.objective import DELTA, KINDS, LOG_HUBER


class Positive(click.FloatRange):
    """A finite positive number."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE options as a mapping, in order."""
    wrong = [value for value in values if "=" not in value or not value.partition("=")[0].strip()]
    if wrong:
        raise UserError(f"--{option.name} must be NAME=VALUE: {wrong[0]!r}; for example --column N=params")
    split = [value.partition("=") for value in values]
    return {name.strip(): value.strip() for name, _, value in split}


TABLE_OPTIONS = (
    click.option(
        "--column",
        multiple=True,
        callback=pairs,
        metavar="NAME=EXPR",
        help="Name a column as laws do: N, D, loss, width, depth, exposures, C. EXPR is a column or an expression of "
        "columns, such as 'compute / (6 * N)'. May be repeated; later ones may use earlier ones.",
    ),
    click.option(
        "--where", metavar="EXPR", help="Rows to keep, such as 'step > 1000' or \"data.selection == 'random'\"."
    ),
    click.option("--loss", help="Column to fit.  [default: loss_best, else loss]"),
    click.option("--cluster", help="Column that names the training run, where rows are checkpoints of one."),
)
FIT_OPTIONS = (
    click.option(
        "--objective", type=click.Choice(KINDS), default=LOG_HUBER, show_default=True, help="What is minimised."
    ),
    click.option(
        "--delta",
        type=Positive(),
        default=DELTA,
        show_default=True,
        help="Residual of log loss beyond which log-huber is linear.",
    ),
    click.option(
        "--bootstrap",
        "draws",
        type=click.IntRange(0),
        help=f"Bootstrap refits; 0 for none.  [default: {intervals.DRAWS}, fewer on very large tables]",
    ),
)
JSON = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Also write JSON; - for stdout.",
)
COSTS = (
    click.option("--cost-per-transition", type=Positive(), help="Price of one transition."),
    click.option("--cost-per-gpu-hour", type=Positive(), help="Price of one hour of training."),
    click.option("--budget", type=Positive(), help="To spend, in the same currency."),
    click.option(
        "--hours",
        type=Positive(),
        help="Training of the largest model on all data.  [default: from train_seconds]",
    ),
)
LAW = click.option("--law", help="Use this law alone.  [default: all that survive extrapolation, weighted]")
MARGIN = click.option(
    "--margin",
    type=Positive(),
    help="Change of log loss that counts as nothing.  [default: one standard deviation of a run]",
)


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write values to a file, or to stdout for -; nothing without a path."""
    if path is None:
        return
    text = json.dumps(_finite(values), indent=2, allow_nan=False, default=str)
    if path == Path("-"):
        click.echo(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def _finite(value: Any) -> Any:
    """Plain values, with null for what is no number."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
