"""The command that does a sweep, started again as often as it was stopped."""

import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

AGAIN = 75
"""Exit code of a driver that was interrupted with work left."""


class Driver:
    """One command after another until all is done."""

    def __init__(self, command: list[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            command: the same every time.
            folder: to start it in.
            log: takes what all of them print.
            environment: of the command.

        """
        self.command, self.folder, self.log, self.environment = command, folder, log, environment
        self.exits: list[int] = []
        """Codes so far; a negative one is the signal that ended it."""
        self._start()

    def _start(self) -> None:
        self.since = time.time()
        """When the one of now began."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=self.environment
            )

    @property
    def pid(self) -> int:
        """Of the one of now."""
        return self._process.pid

    def goes_on(self) -> bool:
        """Whether it is under way, which it is again if it was stopped."""
        code = self._process.poll()
        if code is None:
            return True
        self.exits.append(code)
        if code != AGAIN and code >= 0:
            return False
        self._start()
        return True

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; false where it has ended."""
        if self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        return True

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
