"""What a driver still has to see ended: which run comes next, while others may be at work on the same root."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from scaling import claims, results
from scaling.root import Root

LOOK = 3.0
"""Seconds between two looks at the root, so that 2,000 runs cost no more requests than ten."""

ALIKE = 3
"""Equal failures, with no run done before, after which a sweep is given up."""


class Work:
    """Runs in the order in which they should be started."""

    def __init__(self, root: Root, ordered: Sequence[str], replaces: dict[str, str | None], wait: bool) -> None:
        """Begin.

        Args:
            root: where rows and claims are.
            ordered: the runs to be done, the most urgent first.
            replaces: for each run the time on the failed row that is to be replaced, or nothing.
            wait: whether there is work left while others hold the last runs.

        """
        self.root, self.wait = root, wait
        self.replaces = replaces
        self._left = dict.fromkeys(ordered)
        self._out: set[str] = set()
        self._held: dict[str, dict[str, tuple[float, float]]] = {}
        """Of runs that others have claimed: each claim's time of change, and when it was first seen with it."""
        self._looked = -LOOK
        self._failures: Counter[str] = Counter()
        self._succeeded = False
        self.given_up: str | None = None
        """Why nothing more is started."""

    def next(self) -> str | None:
        """A run to start now, which counts as started then; nothing if there is none at the moment."""
        self._look()
        for name in self._left:
            if name not in self._out and name not in self._held:
                self._out.add(name)
                return name
        return None

    def is_over(self) -> bool:
        """Whether no further run will have to be started."""
        if self.given_up or not self._left:
            return True
        return not self.wait and all(name in self._held for name in self._left)

    def came_back(self, name: str) -> dict[str, Any] | None:
        """A run that was started is no longer under way here; its row if it has one."""
        self._out.discard(name)
        try:
            row = results.brief(self.root, [name], ("status", "error", "loss_best", "finished")).get(name)
        except OSError:  # it comes back again
            return None
        if row is None or row["finished"] == self.replaces[name]:
            self._looked = -LOOK  # somebody else may have it
            self._look()
            return None
        self._left.pop(name, None)
        self._judge(row)
        return row

    def _judge(self, row: dict[str, Any]) -> None:
        """Give up where runs fail alike and none succeeds: it is not the runs that are wrong."""
        self._succeeded = self._succeeded or row["status"] == results.DONE
        if self._succeeded or str(row["error"]).startswith("diverged"):
            return
        reason = "".join(letter for letter in str(row["error"]) if not letter.isdigit())
        self._failures[reason] += 1
        if self._failures[reason] >= ALIKE:
            self.given_up = f"the first {ALIKE} runs failed alike: {row['error']}"

    def _look(self) -> None:
        """See what others have done and hold."""
        if time.monotonic() - self._looked < LOOK:
            return
        try:
            files = self.root.files()
        except OSError:  # trouble with the root; what was seen last stands
            return
        finally:
            self._looked = time.monotonic()
        for name in [name for name in self._left if results.row_path(name) in files and not self.replaces[name]]:
            if name not in self._out:
                del self._left[name]
        held: dict[str, dict[str, tuple[float, float]]] = {}
        for path, changed in files.items():
            name = claims.run_of(path)
            if claims.is_claim(path) and name in self._left and name not in self._out and self._is_live(path, changed):
                held.setdefault(name, {})[path] = self._seen(name, path, changed)
        self._held = held

    def _seen(self, name: str, path: str, changed: float) -> tuple[float, float]:
        before = self._held.get(name, {}).get(path)
        return before if before and before[0] == changed else (changed, time.monotonic())

    def _is_live(self, path: str, changed: float) -> bool:
        """Whether a claim has changed of late, as this process saw it, and its process is not known to be gone."""
        _, since = self._seen(claims.run_of(path), path, changed)
        if time.monotonic() - since > claims.STALE:
            return False
        try:
            said = claims.read(self.root, path)
        except OSError:
            return True
        return said is not None and not claims.is_dead(said)
