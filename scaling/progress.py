"""The live display of a sweep: runs done, best loss, time left. Nothing in a pipe but a line at the end."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class SweepProgress:
    """Told of runs by the sweep, shows them as one line."""

    def __init__(self, console: Console, seconds: dict[str, float], updates: dict[str, int], already: int) -> None:
        """Start at zero.

        Args:
            console: where to show it.
            seconds: what each run that is still to do will take in proportion, by run_id; only ratios matter.
            updates: optimiser steps of each of them.
            already: runs of the sweep that had ended before.

        """
        self._seconds, self._updates = seconds, updates
        self._share = dict.fromkeys(seconds, 0.0)
        self._best = float("inf")
        self._begin = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("running", total=already + len(seconds), completed=already, note="")

    def __enter__(self) -> "SweepProgress":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def progress(self, run_id: str, update: int, loss: float) -> None:
        """A run has reached a point of its curve."""
        self._best = min(self._best, loss)
        self._share[run_id] = update / self._updates[run_id]
        self._show()

    def ended(self, run_id: str, loss: float | None) -> None:
        """A run has its row; the loss is missing where it failed."""
        self._best = min(self._best, float("inf") if loss is None else loss)
        self._share[run_id] = 1.0
        self._progress.advance(self._task)
        self._show()

    def _show(self) -> None:
        done = sum(self._share[name] * seconds for name, seconds in self._seconds.items())
        left = (time.monotonic() - self._begin) * (sum(self._seconds.values()) - done) / done if done else 0.0
        best = f"best loss {self._best:.4f} · " if self._best < float("inf") else ""
        self._progress.update(self._task, note=f"· {best}{duration(left)} left")


def duration(seconds: float) -> str:
    """A length of time in words short enough for a table: 42 s, 5:07 min, 3.2 h, 2.1 d."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
