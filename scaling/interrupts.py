"""Signals that ask a driver to stop once its runs have saved their state; a second Ctrl-C stops at once.

Slurm sends SIGTERM when it preempts or cancels, and SIGUSR1 ahead of a time limit if asked to, often one after another.
"""

import signal
from types import FrameType, TracebackType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupts:
    """Counts the signals while the context lasts."""

    def __init__(self) -> None:
        self.asked = False
        """Whether the driver should stop."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        for number in STOPPING:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def keep_listening(self) -> None:
        """Take the signals back from a library that has put its own handlers in place, be it behind Python's back."""
        for number in STOPPING:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
