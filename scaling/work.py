"""What a driver still has to see ended: which run comes next, while others may be at work on the same root."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from scaling import claims, results
from scaling.packs import Packs
from scaling.root import Root, now

LOOK = 3.0
"""Seconds between two looks at the root: one listing, whatever the number of runs, and a read per new claim."""

ALIKE = 3
"""Equal failures, with no run done before, after which a sweep is given up."""

OF_ITS_OWN = ("diverged", "OutOfMemory", "allocate memory")
"""In the words of failures that are those of one run, whatever the sweep."""


class Work:
    """Runs in the order in which they should be started."""

    def __init__(
        self,
        root: Root,
        ordered: Sequence[str],
        replaces: dict[str, str | None],
        wait: bool,
        is_sound: bool = False,
        packs: Packs | None = None,
    ) -> None:
        """Begin.

        Args:
            root: where rows and claims are.
            ordered: the runs to be done, the most urgent first.
            replaces: for each run the time on the failed row that is to be replaced, or nothing.
            wait: whether there is work left while others hold the last runs.
            is_sound: whether a run of the sweep has been done before, so that it is the runs that fail, not the sweep.
            packs: which runs are to be trained together; nothing for each alone.

        """
        self.root, self.wait = root, wait
        self.replaces = replaces
        self.packs = packs or Packs()
        self._left = dict.fromkeys(ordered)
        self._out: set[str] = set()
        self._solitary: set[str] = set()
        """Runs whose company has come to nothing."""
        self._claims: dict[str, _Seen] = {}
        self._held: set[str] = set()
        """Runs that others are at work on."""
        self._looked = -LOOK
        self._failures: Counter[str] = Counter()
        self._succeeded = is_sound
        self.given_up: str | None = None
        """Why nothing more is started."""

    def next(self) -> str | None:
        """A run to start now, which counts as started then; nothing if there is none at the moment."""
        self._look()
        name = next((name for name in self._left if self._is_free(name)), None)
        if name is not None:
            self._out.add(name)
        return name

    def next_pack(self) -> list[str]:
        """A run to start now and those to be trained with it, which count as started then; none at the moment."""
        first = self.next()
        if first is None or first in self._solitary:
            return [first] if first else []
        shape, size = self.packs.shapes.get(first), self.packs.size(first)
        alike = (name for name in self._left if self._is_free(name) and name not in self._solitary)
        company = list(islice((name for name in alike if self.packs.shapes.get(name) == shape), size - 1))
        self._out |= set(company)
        return [first, *company]

    def separate(self, names: Sequence[str]) -> None:
        """Let runs be alone from now on, as the process that trained them together died."""
        self._solitary |= set(names)

    def _is_free(self, name: str) -> bool:
        return name not in self._out and name not in self._held

    def is_over(self) -> bool:
        """Whether no further run will have to be started."""
        if self.given_up or not self._left:
            return True
        if self.wait or not self._is_with_others():
            return False
        self._look_at_once()  # somebody may have died since, and nobody else need come after this
        return self._is_with_others()

    def _is_with_others(self) -> bool:
        """Whether others are at work on all that is left."""
        return all(name in self._held for name in self._left)

    def came_back(self, name: str) -> dict[str, Any] | None:
        """A run that was started is no longer under way here; its row if it has one."""
        self._out.discard(name)
        try:
            row = results.brief(self.root, [name], ("status", "error", "loss_best", "finished")).get(name)
        except OSError:  # it comes back again
            return None
        if row is None or row["finished"] == self.replaces[name]:
            self._look_at_once()  # somebody else may have it
            return None
        self._left.pop(name, None)
        self._judge(row)
        return row

    def _judge(self, row: dict[str, Any]) -> None:
        """Give up where runs fail alike and none succeeds: it is not the runs that are wrong."""
        self._succeeded = self._succeeded or row["status"] == results.DONE
        if self._succeeded or any(word in str(row["error"]) for word in OF_ITS_OWN):
            return
        reason = "".join(letter for letter in str(row["error"]) if not letter.isdigit())
        self._failures[reason] += 1
        if self._failures[reason] >= ALIKE:
            self.given_up = f"{ALIKE} runs failed alike before any was done: {row['error']}"

    def _look(self) -> None:
        """See what others have done and hold, if that was not seen just before."""
        if time.monotonic() - self._looked >= LOOK:
            self._look_at_once()

    def _look_at_once(self) -> None:
        try:
            files = self.root.files()
        except OSError:  # trouble with the root; what was seen last stands
            return
        finally:
            self._looked = time.monotonic()
        for name in [name for name in self._left if results.row_path(name) in files and not self.replaces[name]]:
            if name not in self._out:
                del self._left[name]
        self._claims = self._seen(files)
        self._held = {claims.run_of(path) for path, claim in self._claims.items() if claim.is_live()}

    def _seen(self, files: dict[str, float]) -> dict[str, "_Seen"]:
        """The claims of others on what is left, with what was known of them before."""
        found: dict[str, _Seen] = {}
        present: float | None = None
        for path, changed in files.items():
            name = claims.run_of(path)
            if not claims.is_claim(path) or name not in self._left or name in self._out:
                continue
            before = self._claims.get(path)
            if before is not None and before.changed == changed:
                found[path] = before
            elif before is not None:
                found[path] = _Seen(changed, time.monotonic(), before.said)
            else:
                try:
                    said = claims.read(self.root, path)
                    present = now(self.root) if present is None else present
                except OSError:  # looked at again next time
                    continue
                if said is not None:
                    found[path] = _Seen(changed, time.monotonic() - max(0.0, present - changed), said)
        return found


@dataclass(frozen=True)
class _Seen:
    """A claim of another process."""

    changed: float
    """By the root's clock, which is compared with itself alone."""
    since: float
    """When it changed, by this process's own clock."""
    said: claims.Said

    def is_live(self) -> bool:
        """Whether it has changed of late, and its process is not known to be gone."""
        return time.monotonic() - self.since <= claims.STALE and not claims.is_dead(self.said)
