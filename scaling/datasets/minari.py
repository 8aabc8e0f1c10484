"""Episodes from a Minari dataset, HDF5 or Arrow, through the ``minari`` package.

``data.path`` is the name of a dataset that Minari has on this machine (``mujoco/hopper/medium-v0``), or a folder with
``data/metadata.json``. An episode that was both terminated and truncated counts as terminated. The last observation,
after which no action was taken, is left out.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa

from scaling.building import build_once, file_identity
from scaling.errors import UserError
from scaling.source import Episode, Source, packed, place_of
from scaling.spec import DataSpec
from scaling.store import Store

FIELDS = ("path",)
NAME = "minari:"
"""May stand in front of a dataset's name."""


def recognises(path: Path) -> bool:
    """Whether the folder is a Minari dataset."""
    return (path / "data" / "metadata.json").is_file()


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: minari is missing, there is no such dataset, or its spaces are not vectors, pictures or choices.

    """
    place = locate(spec.path, folder)
    return build_once(lambda: f"minari|{file_identity(place / 'data')}", lambda: read(place))


def locate(path: str, folder: Path) -> Path:
    """The folder of a dataset, by its place or by its name.

    Raises:
        UserError: neither exists.

    """
    path = path.removeprefix(NAME)
    beside = place_of(path, folder)
    if recognises(beside):
        return beside
    minari = _package()
    named = Path(minari.storage.get_dataset_path(path))
    if not recognises(named):
        with _quietly():  # Minari warns of folders that are no datasets
            known = ", ".join(sorted(minari.list_local_datasets())) or "none"
        raise UserError(
            f"data.path: no Minari dataset {path!r} on this machine (known: {known}); "
            f"fetch it with 'minari download {path}', or give its folder"
        )
    return named


def _package() -> Any:
    try:
        import minari  # optional extra: minari
    except ModuleNotFoundError as error:
        raise UserError("data.kind minari needs the package minari: pip install '.[minari]'") from error
    return minari


def read(place: Path) -> Source:
    """All episodes of the dataset."""
    minari = _package()
    with _damage_told(place):
        dataset = minari.MinariDataset(place / "data")
        about = {"env_id": _env_id(dataset), **_choices(dataset.action_space)}
    return Source(str(place), packed(_episodes(dataset, place), str(place)), about)


def _env_id(dataset: Any) -> str | None:
    with _quietly():  # Minari warns where the environment is not known
        found = dataset.env_spec
    return None if found is None else str(found.id)


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _damage_told(place: Path) -> Iterator[None]:
    """Minari asserts, and passes on whatever HDF5, Arrow and JSON raise."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{place}: not a whole Minari dataset ({said}); download or record it again") from error


def _choices(space: Any) -> dict[str, int]:
    return {"choices": int(space.n)} if isinstance(space, gymnasium.spaces.Discrete) else {}


def _episodes(dataset: Any, place: Path) -> Iterator[Episode]:
    space = dataset.action_space
    shift = int(space.start) if isinstance(space, gymnasium.spaces.Discrete) else 0
    with _damage_told(place):
        _refuse_invalid_arrow(place)
        for episode in dataset.iterate_episodes():
            if isinstance(episode.observations, dict | tuple) or isinstance(episode.actions, dict | tuple):
                raise UserError(
                    f"{place}: observations or actions are made of several arrays; only single arrays are supported: "
                    "flatten them with gymnasium.wrappers.FlattenObservation when recording"
                )
            actions = np.asarray(episode.actions)
            yield Episode(
                states=np.asarray(episode.observations)[: len(actions)],
                actions=actions - shift if actions.ndim == 1 else actions,
                rewards=np.asarray(episode.rewards),
                terminal=bool(np.any(episode.terminations)),
            )


def _refuse_invalid_arrow(place: Path) -> None:
    """Minari takes Arrow files as they are, and Arrow ends the process at one that contradicts itself."""
    for file in sorted((place / "data").rglob("*.arrow")):
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_file(mapped) as reader:
            for number in range(reader.num_record_batches):
                reader.get_batch(number).validate(full=True)
