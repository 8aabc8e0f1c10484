"""Modules in the place of others, for as long as something is imported."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def instead(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """These modules, by their full names, and none else of their packages; afterwards what there was.

    Nothing in the place of a module makes its import fail.
    """
    packages = {name.partition(".")[0] for name in modules}
    before = _taken(packages)
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        _taken(packages)
        sys.modules.update(before)


def _taken(packages: set[str]) -> dict[str, ModuleType]:
    """The modules of these packages, no longer imported."""
    names = [name for name in sys.modules if name.partition(".")[0] in packages]
    return {name: sys.modules.pop(name) for name in names}
