"""Processes as /proc shows them: who descends from whom, and what each calls itself."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans(wanted: bool = True) -> None:
    """Become the parent of descendants whose parent dies, so that none gets out of sight."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def descendants(ancestor: int | None = None) -> dict[int, str]:
    """Title of every live process below one, this one by default, by process id."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, left = {}, list(children.get(ancestor or os.getpid(), []))
    while left:
        pid = left.pop()
        found[pid] = _title(pid)
        left += children.get(pid, [])
    return found


def _parent(entry: Path) -> int | None:
    """Of a process that has not ended."""
    try:
        state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(parent)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def kill(pid: int) -> bool:
    """End a process of ours at once; false where it is gone, or none of ours."""
    if pid not in descendants():
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def left_over(chosen: Callable[[int, str], bool], patience: float) -> dict[int, str]:
    """Descendants of a kind that are still there after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while found := {pid: title for pid, title in descendants().items() if chosen(pid, title)}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return found
