"""The runs of a sweep, told apart by what they would compute, and which of them have a row."""

import json
import operator
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling import plug, results
from scaling.errors import UserError
from scaling.grid import Sweep, fields
from scaling.identity import canonical, check_model, check_read, run_id
from scaling.spec import RunSpec
from scaling.store import Store

DataKey = tuple[Any, ...]
"""What decides the content of a dataset: its kind and the fields that this kind reads."""


def _key(spec: RunSpec) -> DataKey:
    fields = plug.load("datasets", spec.data.kind).FIELDS
    return spec.data.kind, *(getattr(spec.data, name) for name in fields)


@dataclass(frozen=True, eq=False)
class Runs:
    """Every run of a sweep by its run_id, in the order of the grid."""

    sweep: Sweep
    specs: dict[str, RunSpec]
    stores: dict[DataKey, Store]

    def store(self, spec: RunSpec) -> Store:
        """The dataset of one of the runs."""
        return self.stores[_key(spec)]

    def varying(self) -> list[str]:
        """Dotted names of the fields in which the runs differ, in the order of the spec."""
        return [name for name in fields() if len({value_of(spec, name) for spec in self.specs.values()}) > 1]

    def rows(self, root: Path) -> dict[str, dict[str, Any]]:
        """The rows that exist, by run_id."""
        found = {name: results.read_row(root, name) for name in self.specs}
        return {name: row for name, row in found.items() if row is not None}

    def unfinished(self, root: Path, retry_failed: bool = False) -> list[str]:
        """The run_ids without a row, or also those whose row says failed."""
        rows = self.rows(root)
        ended = {name for name, row in rows.items() if not (retry_failed and row["status"] == results.FAILED)}
        return [name for name in self.specs if name not in ended]

    def running(self, root: Path) -> dict[str, dict[str, Any]]:
        """What the runs under way last said of themselves; of those on this machine, only while their process lives."""
        found = {}
        for name in self.specs:
            try:
                said = json.loads(sign_path(root, name).read_text())
            except (OSError, json.JSONDecodeError):
                continue
            if said["host"] != socket.gethostname() or Path(f"/proc/{said['pid']}").exists():
                found[name] = said
        return found


def value_of(spec: RunSpec, field: str) -> Any:
    """The value of a field by its dotted name."""
    return operator.attrgetter(field)(spec)


def sign_path(root: Path, name: str) -> Path:
    """Where a run under way leaves word of itself."""
    return root / name / "running.json"


def open_store(spec: RunSpec, folder: Path) -> Store:
    """The run's dataset, for a sweep whose file lies in ``folder``."""
    store: Store = plug.load("datasets", spec.data.kind).open(spec.data, folder)
    return store


def identify(sweep: Sweep) -> Runs:
    """The runs of a sweep, their datasets opened.

    Raises:
        UserError: a dataset or a network cannot be used, a field is set that no run reads, or two paths hold the same
            data, so that two cells of the grid are the same run.

    """
    check_read(sweep.named, sweep.runs)
    stores: dict[DataKey, Store] = {}
    specs: dict[str, RunSpec] = {}
    for spec in dict.fromkeys(map(canonical, sweep.runs)):  # cells that differ in ignored fields are one run
        key = _key(spec)
        if key not in stores:
            stores[key] = open_store(spec, sweep.folder)
        check_model(spec, stores[key].space)
        name = run_id(spec, stores[key].digest)
        if name in specs:
            raise UserError(f"sweep {sweep.name}: two cells are the same run {name}; do two paths hold the same data?")
        specs[name] = spec
    return Runs(sweep, specs, stores)
