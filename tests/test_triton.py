"""The Triton kernels in value and gradient, without a GPU; ``test_cuda.py`` has them on one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("triton_scan.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which few but CUDA builds bring")
def test_kernels_hold_their_checks_under_the_interpreter():
    """In a process of its own: Triton decides when it is imported whether to interpret."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = CHECKS.parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
