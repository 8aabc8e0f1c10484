"""Who a run is, once the fields that its kinds do not read are set aside, and whether it can be built."""

import dataclasses
from typing import Any

from scaling import plug, spec as specs
from scaling.errors import UserError
from scaling.spec import PARTS, DataSpec, EvaluateSpec, RunSpec, Space, TrainSpec
from scaling.subsets import FIXED_ORDERS

COMMON: dict[str, set[str]] = {
    "model": {"kind", "width", "depth", "context", "dropout", "max_timestep"},
    "data": {
        *("kind", "fraction", "transitions", "selection", "weights", "segment", "action_noise", "reward_noise"),
        *("held_out", "rtg_scale", "starts"),
    },
}
"""Fields that every kind reads."""

DEFAULTS: dict[str, Any] = {name: kind() for name, kind in PARTS.items()}
"""Parts of a spec with fields that a run may ignore."""

WITHOUT_KIND = {
    "evaluate": " without evaluate.env, or in the environment it names",
    "train": " under the train.budget this sweep sets",
}
"""Why a field of a part that has no kind may be ignored."""


def read_fields(spec: RunSpec) -> set[str]:
    """Dotted names of the fields that the run reads: its kinds' own; those of ``evaluate`` if there are rollouts."""
    read = {
        "model": COMMON["model"] | plug.load("models", spec.model.kind).fields(spec.model),
        "data": COMMON["data"] | _drawn(spec.data) | set(plug.load("datasets", spec.data.kind).FIELDS),
        "train": _train_fields(spec.train),
        "evaluate": _evaluate_fields(spec.evaluate),
    }
    return {"seed"} | {f"{part}.{name}" for part, names in read.items() for name in names}


def _drawn(data: DataSpec) -> set[str]:
    """The draw, if there is anything to draw."""
    fixed = data.selection in FIXED_ORDERS and data.segment is None and not data.degrades
    return set() if fixed else {"draw"}


def _train_fields(train: TrainSpec) -> set[str]:
    unread = set() if train.budget == "convergence" else {"patience"}
    return {field.name for field in dataclasses.fields(train)} - unread


def _evaluate_fields(evaluate: EvaluateSpec) -> set[str]:
    if evaluate.env is None:
        return {"env"}
    atari = evaluate.env.startswith("ALE/")
    return {field.name for field in dataclasses.fields(evaluate)} - (set() if atari else {"sticky", "noops"})


def canonical(spec: RunSpec) -> RunSpec:
    """The spec with every field that makes no difference back at its default, so that equal runs are equal."""
    read = read_fields(spec)
    spec = dataclasses.replace(spec, data=_with_shares(spec.data))
    parts: dict[str, Any] = {}
    for name, defaults in DEFAULTS.items():
        ignored = [f.name for f in dataclasses.fields(defaults) if f"{name}.{f.name}" not in read]
        parts[name] = dataclasses.replace(getattr(spec, name), **{field: getattr(defaults, field) for field in ignored})
    return dataclasses.replace(spec, **parts)


def _with_shares(data: DataSpec) -> DataSpec:
    """Weights that add up to one."""
    return dataclasses.replace(data, weights=tuple(round(weight / sum(data.weights), 12) for weight in data.weights))


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
    for name in sorted(named - read):
        part = name.partition(".")[0]
        if part in WITHOUT_KIND:
            raise UserError(f"{name} has no effect{WITHOUT_KIND[part]}; leave it out")
        kinds = sorted({getattr(spec, part).kind for spec in runs})
        known = sorted(field.partition(".")[2] for field in read if field.startswith(f"{part}."))
        raise UserError(
            f"{name} has no effect on {', '.join(kinds)} as this sweep sets it; leave it out. "
            f"Fields that have one: {', '.join(known)}"
        )
