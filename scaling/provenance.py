"""Where a row came from: code, packages, hardware."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("scaling", "torch", "numpy", "numba", "accelerate", "ray", "gymnasium", "mujoco", "mamba-ssm")


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout this package is imported from, ``-dirty`` with changes; nothing outside a checkout."""
    folder = Path(__file__).parent
    try:
        options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 10}
        tracked = subprocess.run(["git", "ls-files", "--error-unmatch", __file__], **options)  # type: ignore[call-overload]
        if tracked.returncode != 0:
            return None
        described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], **options)  # type: ignore[call-overload]
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


@functools.cache
def code() -> str:
    """Names the content of the package's sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def versions() -> str:
    """JSON object from package to version, of those installed, with Python's."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return json.dumps(found)


@functools.cache
def processor() -> str:
    """The processor's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def reset_peak_memory() -> None:
    """Start the process's peak anew, where Linux allows it; a process serves many runs. GPUs keep their own."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float | None:
    """Largest resident memory since the last reset, in bytes; nothing where /proc is missing."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
