"""Episodes from a store that ``scaling data convert`` made; nothing is copied."""

from pathlib import Path

from scaling.errors import UserError
from scaling.source import place_of
from scaling.spec import DataSpec
from scaling.store import Store, open_store

FIELDS = ("path",)


def recognises(path: Path) -> bool:
    """Whether the folder is a store."""
    return (path / "manifest.json").is_file() and (path / "states.npy").is_file()


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: there is no store, or it is not whole.

    """
    path = place_of(spec.path, folder)
    if not path.is_dir():
        raise UserError(f"data.path: no such folder: {path}; make a store with 'scaling data convert'")
    return open_store(path)
