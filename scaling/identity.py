"""Who a run is, once the fields that its kinds do not read are set aside, and whether it can be built."""

import dataclasses
from typing import Any

from scaling import plug, spec as specs
from scaling.errors import UserError
from scaling.spec import DataSpec, ModelSpec, RunSpec, Space

COMMON = {
    "model": {"kind", "width", "depth", "context", "dropout", "max_timestep"},
    "data": {"kind", "fraction", "draw", "held_out", "rtg_scale", "starts"},
}
"""Fields that every kind reads."""


def read_fields(spec: RunSpec) -> set[str]:
    """Dotted names of the ``model`` and ``data`` fields that the run's kinds read."""
    model = COMMON["model"] | plug.load("models", spec.model.kind).fields(spec.model)
    data = COMMON["data"] | set(plug.load("datasets", spec.data.kind).FIELDS)
    return {f"model.{name}" for name in model} | {f"data.{name}" for name in data}


def canonical(spec: RunSpec) -> RunSpec:
    """The spec with every field that makes no difference back at its default, so that equal runs are equal."""
    read = read_fields(spec)
    return dataclasses.replace(
        spec, model=_reset(spec.model, ModelSpec(), "model", read), data=_reset(spec.data, DataSpec(), "data", read)
    )


def _reset(part: Any, defaults: Any, name: str, read: set[str]) -> Any:
    ignored = {f.name for f in dataclasses.fields(part) if f"{name}.{f.name}" not in read}
    return dataclasses.replace(part, **{field: getattr(defaults, field) for field in ignored})


def run_id(spec: RunSpec, digest: str) -> str:
    """Content hash of all that can change the run's result; see :func:`spec.run_id`."""
    return specs.run_id(canonical(spec), digest)


def check_model(spec: RunSpec, space: Space) -> None:
    """Refuse a network that cannot be built for a dataset's space.

    Raises:
        UserError: naming the field and what it may be.

    """
    plug.load("models", spec.model.kind).check(spec.model, space)


def check_read(named: frozenset[str], runs: tuple[RunSpec, ...]) -> None:
    """Refuse a field that a sweep sets and none of its runs reads.

    Raises:
        UserError: with the field, the kinds, and the fields that they read.

    """
    read = set().union(*(read_fields(spec) for spec in runs))
    for name in sorted(named):
        part = name.partition(".")[0]
        if part in COMMON and name not in read:
            kinds = sorted({getattr(spec, part).kind for spec in runs})
            known = sorted(field.partition(".")[2] for field in read if field.startswith(f"{part}."))
            raise UserError(
                f"{name} has no effect on {', '.join(kinds)} as this sweep sets it; leave it out. "
                f"Fields that have one: {', '.join(known)}"
            )
