"""One run after another in this process, without Ray; where no daemons are allowed, many such processes at a time."""

import time

from scaling.attempt import Alone, Order, attempt
from scaling.driver import Watcher
from scaling.interrupts import Interrupts
from scaling.work import LOOK, Work


def run(work: Work, orders: dict[str, Order], watcher: Watcher, interrupts: Interrupts) -> None:
    """Do the runs of ``work`` that nobody else does; returns when it is over or the user interrupts."""
    while not interrupts.asked and not work.is_over():
        name = work.next()
        if name is None:
            time.sleep(LOOK)
            continue

        def report(update: int, loss: float, name: str = name) -> None:
            watcher.progress(name, update, loss)

        attempt(orders[name], Alone(), report, lambda: interrupts.asked)
        row = work.came_back(name)
        if row:
            watcher.ended(name, row["loss_best"])
