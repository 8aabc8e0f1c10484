"""Where Numba keeps the machine code of the kernels: apart for every state of their sources.

Numba compiles a function anew when its own file has changed, but these have functions of other files inside.
"""

import hashlib
from pathlib import Path

import numba


def keep_apart() -> None:
    """Choose the folder, within the user's own if ``NUMBA_CACHE_DIR`` names one; before any kernel is defined."""
    here = Path(__file__).parent
    sources = b"".join(file.read_bytes() for file in sorted(here.glob("*.py")))
    folder = Path(numba.config.CACHE_DIR or here / "__pycache__")
    numba.config.CACHE_DIR = str(folder / f"kernels_{hashlib.sha256(sources).hexdigest()[:16]}")
