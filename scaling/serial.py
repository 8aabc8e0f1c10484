"""One run, or pack of runs, after another in this process; where no daemons are allowed, in many such processes."""

import time

from scaling.attempt import Alone
from scaling.driver import Watcher
from scaling.interrupts import Interrupts
from scaling.order import Order
from scaling.pack import attempt_together
from scaling.work import LOOK, Work


def run(work: Work, orders: dict[str, Order], watcher: Watcher, interrupts: Interrupts) -> None:
    """Do the runs of ``work`` that nobody else does; returns when it is over or the user interrupts."""
    while not interrupts.asked and not work.is_over():
        names = work.next_pack()
        if not names:
            time.sleep(LOOK)
            continue
        attempt_together([orders[name] for name in names], Alone(), watcher.progress, lambda: interrupts.asked)
        for name in names:
            row = work.came_back(name)
            if row:
                watcher.ended(name, row["loss_best"])
