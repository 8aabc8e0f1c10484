"""The runs of a sweep, told apart by what they would compute."""

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling import plug
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

    def label(self, name: str) -> str:
        """A run in a few words; runs of one model have the part before the comma in common."""
        model, data, seed = self.specs[name].model, self.specs[name].data, self.specs[name].seed
        size = f"{data.transitions:,} transitions" if data.transitions else f"fraction {data.fraction:.4g}"
        return (
            f"{model.kind} width {model.width} depth {model.depth} context {model.context}, {size}, draw {data.draw}, "
            f"seed {seed}"
        )


def value_of(spec: RunSpec, field: str) -> Any:
    """The value of a field by its dotted name."""
    return operator.attrgetter(field)(spec)


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
