"""From a sweep to what its processes are told, whichever way they are started."""

from typing import Protocol

from scaling.building import cache_folder
from scaling.manifest import Known, Manifest
from scaling.order import Order
from scaling.plan import Costs, longest_first
from scaling.resources import Habits
from scaling.root import Root
from scaling.runs import Runs
from scaling.spec import to_dict

Replaces = dict[str, str | None]
"""The runs to be done, with the time on the failed row that is to be replaced, or nothing where there is none."""


class Watcher(Protocol):
    """Told of what happens to runs; the command line's display is one."""

    def progress(self, run_id: str, update: int, loss: float) -> None:
        """A run has reached a point of its curve."""

    def ended(self, run_id: str, loss: float | None) -> None:
        """A run has its row; the loss is missing where it failed."""


def orders_of(runs: Runs, costs: Costs, root: Root, replaces: Replaces, habits: Habits) -> dict[str, Order]:
    """What is to be done of a sweep, longest first.

    Args:
        runs: the sweep.
        costs: of its runs.
        root: where rows go.
        replaces: the runs to be done.
        habits: of the runs.

    """
    return {
        name: Order(
            run_id=name,
            spec=to_dict(runs.specs[name]),
            digest=runs.store(runs.specs[name]).digest,
            folder=str(runs.sweep.folder),
            root=root.uri,
            cache=str(cache_folder().resolve()),
            threads=habits.threads,
            checkpoint_seconds=habits.checkpoint_seconds,
            keep_checkpoint=habits.keep_checkpoints,
            replaces=replaces[name],
        )
        for name in longest_first(costs, replaces)
    }


def manifest_of(runs: Runs, costs: Costs, digest: str) -> Manifest:
    """What the root is to know about a sweep."""
    known = {name: Known(runs.label(name), costs[name].updates, costs[name].C) for name in runs.specs}
    return Manifest(runs.sweep.name, digest, known)
