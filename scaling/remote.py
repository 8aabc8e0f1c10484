"""A sweep driven on a cluster that this machine reaches through Ray's client alone.

The driver is a task there; it opens the root and the datasets by the same names as this machine.
"""

from typing import Any

import ray

from scaling import results, sweep
from scaling.desk import open_desk
from scaling.driver import Watcher
from scaling.local_ray import running_ray, told_when_lost
from scaling.order import Order
from scaling.resources import Resources
from scaling.root import Root
from scaling.trackers import Wanted
from scaling.work import LOOK, Work


def run(
    work: Work,
    orders: dict[str, Order],
    resources: Resources,
    watcher: Watcher,
    watching: Wanted,
    interrupts: sweep.Asking,
) -> None:
    """Have the runs of ``work`` done; returns when the driver there has ended.

    Raises:
        UserError: nothing answers at the address, or the cluster is too small for one run.

    """
    with running_ray(resources.address):
        desk = open_desk()
        driver = ray.remote(num_cpus=0, max_retries=0)(_drive).remote(work, orders, resources, watching, desk)
        rows = _Rows(work.root, list(orders))
        while not ray.wait([driver], timeout=LOOK)[0]:
            interrupts.keep_listening()
            if interrupts.asked:
                desk.stop.remote()
            rows.tell(watcher)
        with told_when_lost():
            work.given_up = ray.get(driver)
        rows.tell(watcher)


class _Rows:
    """The rows that have come since the beginning."""

    def __init__(self, root: Root, names: list[str]) -> None:
        self.root, self.paths = root, {results.row_path(name): name for name in names}
        self.before = root.files()

    def tell(self, watcher: Watcher) -> None:
        try:
            now = self.root.files()
        except OSError:  # looked at again
            return
        for path, name in self.paths.items():
            if now.get(path) != self.before.get(path):
                row = results.brief(self.root, [name], ("loss_best",)).get(name)
                watcher.ended(name, row["loss_best"] if row else None)
        self.before = now


class _Asked:
    """The user's wish, as the desk has it."""

    def __init__(self, desk: Any) -> None:
        self.desk = desk

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return bool(ray.get(self.desk.is_stopped.remote()))

    def keep_listening(self) -> None:
        """Nobody sends signals there."""


class _Silent:
    """Watches without a word; who started the sweep looks at its rows."""

    def progress(self, run_id: str, update: int, loss: float) -> None:
        """Nothing."""

    def ended(self, run_id: str, loss: float | None) -> None:
        """Nothing."""


def _drive(work: Work, orders: dict[str, Order], resources: Resources, watching: Wanted, desk: Any) -> str | None:
    """The driver; why it gave up, if it did."""
    sweep.drive(work, orders, resources, _Silent(), watching.callbacks(), _Asked(desk), desk)
    return work.given_up
