"""Find an extension by its file name."""

import difflib
import functools
import importlib
import pkgutil
from types import ModuleType

from scaling.errors import UserError


@functools.cache
def names(room: str) -> list[str]:
    """Names of all extensions in ``scaling/<room>/``, sorted."""
    package = importlib.import_module(f"scaling.{room}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


@functools.cache
def load(room: str, name: str) -> ModuleType:
    """The module ``scaling/<room>/<name>.py``.

    Raises:
        UserError: no such file; the message lists the names that exist.

    """
    known = names(room)
    if name not in known:
        raise UserError(f"there is no {name!r} in {room}{suggestion(name, known)}; known: {', '.join(known)}")
    return importlib.import_module(f"scaling.{room}.{name}")


def suggestion(word: str, known: list[str]) -> str:
    """`` (did you mean 'width'?)`` when one known word is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
