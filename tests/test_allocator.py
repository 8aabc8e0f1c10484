"""Memory that stays with the process."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from scaling.allocator import memory_kept

LARGE = 2**21
"""Numbers of a tensor that glibc would otherwise map and unmap each time."""


def faults() -> int:
    """Pages touched for the first time by allocating, filling and freeing large tensors."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(LARGE).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_within_freed_memory_is_used_again_and_afterwards_goes_back():
    pages = 4 * LARGE // resource.getpagesize()
    with memory_kept():
        faults()
        assert faults() < pages / 2
        held = torch.empty(64 * LARGE).fill_(1.0)
        del held
        within = resident()
    assert within - resident() > 32 * 4 * LARGE
    faults()
    assert faults() < pages / 2  # smaller tensors need not be mapped anew later either


def resident() -> int:
    """Bytes of the process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
