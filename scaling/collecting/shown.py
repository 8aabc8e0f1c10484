"""How far a collection is: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from scaling.progress import duration

SECONDS_BETWEEN_LINES = 60.0


class Shown:
    """Told of steps, shows them."""

    def __init__(self, console: Console) -> None:
        self._console, self._task, self._what = console, TaskID(0), ""
        self._done = self._before = self._total = 0
        self._said = self._begin = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Shown":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def stage(self, what: str, total: int, done: int = 0) -> None:
        """Begin something that takes ``total`` steps, of which some are done."""
        self._what, self._total, self._done, self._before = what, total, done, done
        self._begin = time.monotonic()
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._task = self._progress.add_task(what, total=total, completed=done, note="")

    def advance(self, steps: int, note: str = "") -> None:
        """More steps are done."""
        self._done += steps
        speed = (self._done - self._before) / max(1e-9, time.monotonic() - self._begin)
        left = duration(max(0, self._total - self._done) / max(1e-9, speed))
        told = " · ".join(part for part in (f"{speed:,.0f} steps/s", note, f"{left} left") if part)
        self._progress.update(self._task, completed=self._done, note=f"· {told}")
        if not self._console.is_terminal and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self.say(f"{self._what}: {self._done:,} of {self._total:,} steps · {told}")
            self._said = time.monotonic()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, highlight=False, soft_wrap=True)
