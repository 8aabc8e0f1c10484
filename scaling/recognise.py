"""Which reader a path is for."""

import re
from pathlib import Path

from scaling import plug
from scaling.errors import UserError
from scaling.source import place_of
from scaling.spec import DataSpec
from scaling.store import Store

PREFIXES = {"embedded:": "d4rl", "d4rl:": "d4rl", "minari:": "minari"}
"""Paths that are no places."""
NAMED = r"([\w.-]+/)*[\w.-]+-v\d+"
"""How a Minari dataset is called."""


def kind_of(path: str, folder: Path) -> str:
    """The ``data.kind`` of what lies at ``path``, seen from ``folder``.

    Raises:
        UserError: nothing is there, or no reader recognises it.

    """
    for prefix, kind in PREFIXES.items():
        if path.startswith(prefix):
            return kind
    place = place_of(path, folder)
    if not place.exists():
        if re.fullmatch(NAMED, path):
            return "minari"
        raise UserError(f"no such file or folder: {place}")
    kinds = [name for name in plug.names("datasets") if hasattr(plug.load("datasets", name), "recognises")]
    found = [name for name in kinds if plug.load("datasets", name).recognises(place)]
    if not found:
        raise UserError(f"{place}: not recognised as any of {', '.join(kinds)}; is the file whole?")
    return found[0]


def open_path(path: str, folder: Path, step_limit: int | None = None) -> Store:
    """The dataset at ``path``, whatever its kind.

    Args:
        path: what would stand as ``data.path``.
        folder: from where it is seen.
        step_limit: see ``data.step_limit``.

    Raises:
        UserError: it cannot be used.

    """
    kind = kind_of(path, folder)
    store: Store = plug.load("datasets", kind).open(DataSpec(kind=kind, path=path, step_limit=step_limit), folder)
    return store
