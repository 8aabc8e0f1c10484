"""A run that this process holds: its claim, its checkpoints, and in the end its row."""

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from scaling import checkpoint, ending, episodes, results
from scaling.checkpoint import State
from scaling.claims import Claim
from scaling.errors import Interrupted
from scaling.order import Order
from scaling.root import Root
from scaling.train import Outcome
from scaling.training import Report

PATIENCE = 900.0
"""Seconds for which a row waits for a full disk or a store that does not answer, before the attempt is given up."""

Result = TypeVar("Result")


class Stop:
    """Whether to stop: the driver asked for it, which is looked up about once a second, or the process is ending."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping, self._told = stopping, False

    @property
    def asked(self) -> bool:
        """As far as is known; cheap enough for every update."""
        return self._told or ending.has_begun()

    def ask(self) -> None:
        """Look it up, unless it is known: Ray ends a worker at once that asks while its process is ending."""
        self._told = self.asked or self._stopping()


class Held:
    """A run to be held until the context ends; saves its state every so many seconds, and when it is to stop."""

    def __init__(self, root: Root, order: Order, stop: Stop, report: Report) -> None:
        self.root, self.order, self.stop, self._report = root, order, stop, report
        self.claim = Claim(root, order.run_id, stop.ask)
        self.keeps_last = order.keep_checkpoint
        self._kept = time.monotonic()

    def __enter__(self) -> "Held":
        self.claim.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.claim.__exit__(kind, error, trace)

    def take(self) -> bool:
        """Whether it is this process's to do: nobody else does it, and it has not ended.

        Raises:
            Interrupted: the run is to stop.

        """
        return self._persist(lambda: not self.has_ended() and self.claim.take() and not self.has_ended())

    def has_ended(self) -> bool:
        """Whether the run has a row that is not to be replaced."""
        row = results.read_row(self.root, self.order.run_id)
        return row is not None and not (row["status"] == results.FAILED and row["finished"] == self.order.replaces)

    def saved(self) -> State | None:
        """The state from which the run goes on, if there is one.

        Raises:
            Interrupted: the run is to stop.

        """
        content = self._persist(lambda: self.root.read(checkpoint.path_of(self.order.run_id)))
        return checkpoint.unpack(self.order.run_id, content) if content else None

    def report(self, update: int, loss: float) -> None:
        """Tell whoever watches of a point of the curve."""
        self.claim.tell(update=update, loss=loss)
        self._report(update, loss)

    def wants(self) -> bool:
        """Whether the interval is over or the run is to end."""
        due = time.monotonic() - self._kept > self.order.checkpoint_seconds
        return due or self.stop.asked or self.claim.lost

    def keep(self, state: State) -> None:
        """Save; a root in trouble costs the checkpoint, not the run.

        Raises:
            Interrupted: the run is to stop, or somebody else has it now.

        """
        if self.claim.lost:
            raise Interrupted
        self._kept = time.monotonic()
        self.claim.tell(update=state["done"])
        try:
            self.root.write(checkpoint.path_of(self.order.run_id), checkpoint.pack(self.order.run_id, state))
        except OSError as error:
            self.claim.tell(trouble=f"cannot save a checkpoint: {error.strerror or error}")
        if self.stop.asked:
            raise Interrupted

    def finish(self, outcome: Outcome) -> None:
        """Leave the rows, the run's own last, since it says that all is there; then drop the checkpoint.

        Raises:
            Interrupted: the root has trouble, and the run is to stop; or it failed, in a process that is ending.

        """
        root, order = self.root, self.order
        if outcome.row["status"] == results.FAILED and ending.has_begun():  # which may be why
            raise Interrupted
        if outcome.episodes:
            self._persist(lambda: episodes.write(root, order.run_id, outcome.episodes))
        self._persist(lambda: None if self.has_ended() else results.write_row(root, outcome.row))
        if not order.keep_checkpoint:
            with suppress(OSError):  # the row is there, and nobody looks at a checkpoint beside a row
                root.remove(checkpoint.path_of(order.run_id))

    def _persist(self, action: Callable[[], Result]) -> Result:
        """Act on the root, again and again while it has trouble, as the numbers cost more than the wait.

        Raises:
            Interrupted: the run is to stop.
            OSError: the trouble lasted for too long.

        """
        begin, pause = time.monotonic(), 0.5
        while True:
            try:
                result = action()
                self.claim.tell(trouble=None)
                return result
            except OSError as error:
                self.claim.tell(trouble=f"the root cannot be read or written: {error.strerror or error}")
                self.stop.ask()
                if self.stop.asked:
                    raise Interrupted from error
                if time.monotonic() - begin > PATIENCE:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 10.0)
