"""``scaling profile``: where a training step's time goes, and how far it is from its floor."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from scaling import garbage, grid
from scaling.arguments import PATH
from scaling.errors import UserError
from scaling.run_verbs import THREADS
from scaling.runs import Runs, identify

if TYPE_CHECKING:  # optional extra: train
    from scaling.step_profile import StepProfile

UNSEEN = (
    "not seen: imports and compilation of kernels, building the network, rollouts, checkpoints, the driver, "
    "and what other runs on the same cores take away"
)


@click.command("profile")
@click.argument("sweep", type=PATH)
@click.option("--run", "wanted", metavar="RUN_ID", help="How its run_id begins.  [default: the run with the largest C]")
@THREADS
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="About how long to train.",
)
@click.option("--json", "out", type=PATH, help="Also write the numbers to a file; - for the terminal instead.")
def profile_verb(sweep: Path, wanted: str | None, threads: int, seconds: float, out: Path | None) -> None:
    """Say where the time of an update of one run of SWEEP goes on this machine, and how far it is from its floor.

    The run is trained for some seconds and forgotten: no row is written. The floor is the time that the update's
    matrix products would take at the rate of a large one, measured in the same process.
    """
    with garbage.paused():
        import torch  # optional extra: train

        from scaling import plan, step_profile  # optional extra: train

    runs = identify(grid.read(sweep))
    costs = plan.plan(runs)
    name = _chosen(runs, wanted) if wanted else max(costs, key=lambda name: costs[name].C)
    torch.set_num_threads(threads)
    spec = runs.specs[name]
    found = step_profile.profile(spec, runs.store(spec), seconds)
    told = json.dumps({"run_id": name, "label": runs.label(name), **found.to_dict()}, indent=2) + "\n"
    if out == Path("-"):
        click.echo(told, nl=False)
        return
    _show(name, runs.label(name), found)
    if out:
        out.write_text(told)


def _chosen(runs: Runs, wanted: str) -> str:
    """The run whose run_id begins so.

    Raises:
        UserError: there is none, or more than one.

    """
    found = [name for name in runs.specs if name.startswith(wanted)]
    if len(found) != 1:
        several = f"{len(found)} runs begin" if found else "no run begins"
        known = "; ".join(f"{name[:12]} {runs.label(name)}" for name in found or runs.specs)
        raise UserError(f"{several} with {wanted!r}; there are: {known}")
    return found[0]


def _show(name: str, label: str, found: "StepProfile") -> None:
    parts = [part for part in next(iter(found.shares.values())) if any(s[part] >= 0.005 for s in found.shares.values())]
    table = Table("phase", "ms", "share", *parts)
    whole = sum(found.phases.values())
    for phase, seconds in found.phases.items():
        shares = (f"{found.shares[phase][part]:.0%}" for part in parts)
        table.add_row(phase, f"{1e3 * seconds:.2f}", f"{seconds / whole:.0%}", *shares)
    over_all = (sum(found.shares[p][part] * s for p, s in found.phases.items()) / whole for part in parts)
    table.add_row("update", f"{1e3 * found.update:.2f}", "", *(f"{share:.0%}" for share in over_all))
    table.add_row("held-out loss, per point", f"{1e3 * found.held_out:.2f}", "", *("" for _ in parts))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(f"{name}: {label}")
    console.print(table)
    for line in _lines(found):
        click.echo(line)


def _lines(found: "StepProfile") -> list[str]:
    """What the table does not say."""
    memory = "unknown" if found.peak_memory is None else f"{found.peak_memory / 2**20:,.0f} MiB"
    return [
        f"floor {1e3 * found.floor:.2f} ms: {found.product_flops:.3g} FLOPs of matrix products at "
        f"{found.product_rate / 1e9:,.1f} GFLOP/s, a large {found.precision} product here; "
        f"the update takes {found.times_floor:.1f} times its floor",
        f"{found.samples_per_second:,.0f} samples/s, {found.tokens_per_second:,.0f} tokens/s; peak memory {memory}; "
        f"kernel {found.kernel}; {found.threads} threads; {found.device}",
        f"shares are from updates under the profiler, which take {found.slowdown:.2f} times as long; phases are "
        "medians, and need not add up to the update",
        UNSEEN,
    ]
