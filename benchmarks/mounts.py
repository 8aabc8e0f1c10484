"""File systems that run full or turn read-only for a while; they need the right to mount."""

import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

MEGABYTES = 16
"""Of a small file system: many times what a sweep of small runs leaves."""
CHUNKS = (1 << 20, 1 << 12)
"""A disk is filled with large chunks first."""


def _mount(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True, text=True)


def refusal() -> str | None:
    """Why nothing can be mounted here; nothing where it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
            _mount("umount", folder)
        except FileNotFoundError:
            return "there is no mount here"
        except subprocess.CalledProcessError as error:
            return str(error.stderr).strip()
    return None


def mount_small(folder: Path) -> None:
    """A file system in memory, as small as it may be."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder))


def unmount(folder: Path) -> None:
    """Take away what is mounted there."""
    _mount("umount", "-l", str(folder))


class Spell(Protocol):
    """Trouble that lasts until it is ended."""

    def hold(self) -> None:
        """Called again and again while it lasts."""

    def end(self) -> None:
        """Make good."""


class FullDisk:
    """No room, from now on: a ballast takes it all, and what others set free."""

    def __init__(self, root: Path) -> None:
        self.ballast = root / ".ballast"
        self.hold()

    def hold(self) -> None:
        """Fill up."""
        for chunk in CHUNKS:
            try:
                with self.ballast.open("ab", buffering=0) as file:
                    while file.write(bytes(chunk)):
                        pass
            except OSError:
                continue

    def end(self) -> None:
        """Give the room back."""
        self.ballast.unlink()


class ReadOnly:
    """Nothing can be written, from now on: a read-only mount of the folder lies over it.

    Unlike a remount it is not refused while some file is open for writing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        _mount("mount", "--bind", str(root), str(root))
        _mount("mount", "-o", "remount,bind,ro", str(root))

    def hold(self) -> None:
        """Nothing to do."""

    def end(self) -> None:
        """Show the folder below again."""
        unmount(self.root)
