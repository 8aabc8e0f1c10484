"""Who works on which run: a small file beside its row, renewed while the work lasts.

A run is taken in three steps: write a claim of one's own, list the claims, withdraw if there is another's. Everybody
lists after writing, so of two that come at once at least one sees the other: both may withdraw, and try again later;
never do both stay. It needs a root whose listings show what was written before, as folders and S3 do, and no other
means of locking. Ages are differences of times that the root itself puts on files, so clocks of machines may differ.
"""

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any

from scaling.root import Root, now

BEAT = 10.0
"""Seconds between two renewals."""
STALE = 60.0
"""Seconds without renewal after which a claim is void."""

BASE = ("started",)
"""What a claim says even where it is nothing."""

Said = dict[str, Any]
"""What a claim tells about the work: who, where, since when, how far."""


def is_claim(path: str) -> bool:
    """Whether a file of the root is a claim."""
    return path.rpartition("/")[2].startswith("claim-")


def run_of(path: str) -> str:
    """The run that a file of the root belongs to."""
    return path.partition("/")[0]


def read(root: Root, path: str) -> Said | None:
    """What a claim says, or nothing if it is gone."""
    content = root.read(path)
    try:
        said = json.loads(content) if content else None
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def is_dead(said: Said) -> bool:
    """Whether the process that made the claim is known to be gone: it was of this machine, and is no more."""
    here = bool(_machine()) and said.get("machine") == _machine()
    return here and _started(said.get("pid", 0)) != said.get("started")


def tidy(root: Root, ended: Collection[str]) -> None:
    """Remove void claims on runs that have ended: of processes killed when the row was there, and the claim still."""
    left = {path: changed for path, changed in root.files().items() if is_claim(path) and run_of(path) in ended}
    present = now(root) if left else 0.0
    for path, changed in left.items():
        said = read(root, path)
        if said is None or is_dead(said) or present - changed > STALE:
            root.remove(path)


class Claim:
    """A run that is this process's to work on, until the context ends."""

    def __init__(self, root: Root, run_id: str, every_second: Callable[[], None] = lambda: None) -> None:
        """Take nothing yet.

        Args:
            root: where the run's files are.
            run_id: the run.
            every_second: called from a thread about once a second while the claim is held.

        """
        self.root, self.run_id = root, run_id
        self.path = f"{run_id}/claim-{uuid.uuid4().hex[:12]}.json"
        self.said: Said = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": time.time(),
        }
        self.lost = False
        """Somebody else has taken the run, since the claim was not renewed for too long."""
        self._every_second = every_second
        self._end = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def take(self) -> bool:
        """Try to take the run; false where another has it."""
        if any(self._is_live(path) for path in self._others()):  # nothing written where others are at work
            return False
        self._write()
        for path in self._others():
            if self._is_live(path):
                self.root.remove(self.path)
                time.sleep(random.SystemRandom().uniform(0.05, 0.2))  # so that two do not withdraw for ever
                return False
            self.root.remove(path)
        if self._renewing.ident is None:
            self._renewing.start()
        return True

    def _others(self) -> list[str]:
        return [path for path in self.root.files(self.run_id) if is_claim(path) and path != self.path]

    def _is_live(self, path: str) -> bool:
        said = read(self.root, path)
        times = self.root.files(self.run_id)
        if said is None or is_dead(said) or path not in times:
            return False
        present = times.get(self.path) or now(self.root, self.run_id)
        return present - times[path] < STALE

    def tell(self, **more: Any) -> None:
        """Say more with the next renewal; what is nothing is no longer said."""
        self.said = {name: value for name, value in {**self.said, **more}.items() if value is not None or name in BASE}

    def _write(self) -> None:
        self.root.write(self.path, json.dumps({**self.said, "time": time.time()}).encode())

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._end.wait(1.0):
            self._every_second()
            if time.monotonic() - renewed > BEAT and not self.lost:
                renewed = self._beat(renewed)

    def _beat(self, renewed: float) -> float:
        try:
            if self.path in self.root.files(self.run_id):
                self._write()
                return time.monotonic()
            self.lost = True
        except OSError:  # a full disk or a store that does not answer; the work goes on
            pass
        return renewed

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        if self._renewing.ident is not None:
            self._renewing.join()
        try:
            self.root.remove(self.path)
        except OSError:  # it goes stale
            return


def _machine() -> str:
    """Names this boot of this machine, as far as its processes see each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's own count; nothing if it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else rest[18]
