"""Equal runs are one run, whatever the sweep says about fields that their kinds do not read."""

import dataclasses
import typing

import pytest

from scaling import grid, plug
from scaling.errors import UserError
from scaling.identity import canonical, read_fields, run_id
from scaling.runs import identify
from scaling.spec import DataSpec, EvaluateSpec, ModelSpec, RunSpec


def sweep(tmp_path, text: str) -> grid.Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return grid.read(path)


def test_a_grid_over_kinds_holds_each_run_once(tmp_path):
    runs = identify(
        sweep(
            tmp_path,
            """
axes:
  model.kind: [mambadm, dmamba, decision_transformer]
  model.subsequence: [2, 4]
  model.dt_init: [log_uniform, zero_bias]
""",
        )
    )
    kinds = [spec.model.kind for spec in runs.specs.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"mambadm": 4, "dmamba": 2, "decision_transformer": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "base: {model: {kind: decision_transformer, subsequence: 2}}",
            "model.subsequence has no effect on decision_transformer as this sweep sets it; leave it out. "
            "Fields that have one: activation, context, depth",
        ),
        ("base: {model: {branches: global, overlap: 1}}", "model.overlap has no effect on mambadm"),
        ("base: {data: {kind: tmaze, path: x.hdf5}}", "data.path has no effect on tmaze"),
        ("axes: {data.horizon: [5, 6]}", "data.horizon has no effect on d4rl"),
        ("base: {model: {subsequence: 30}}", r"model.subsequence must not exceed model.context \(20\): 30"),
        ("base: {model: {kind: decision_transformer, heads: 3}}", r"model.heads must divide model.width \(128\)"),
        ("base: {model: {encoder: conv}}", "model.encoder conv takes pictures"),
        ("base: {model: {kind: nothing}}", "there is no 'nothing' in models"),
        ("base: {data: {kind: tmaze, horizon: 1}}", "data.horizon of a tmaze must be at least 2"),
        ("base: {data: {kind: local, horizon: 26}}", "data.horizon of local must be at most 25: 26"),
    ],
)
def test_what_cannot_matter_and_what_cannot_be_built_is_refused_before_anything_trains(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        identify(sweep(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: {model: {branches: three}}", "model.branches must be one of both, global, local, two_global"),
        ("base: {model: {local_dt_init: no}}", "model.local_dt_init must be one of log_uniform, zero_bias: False"),
        ("base: {model: {dt_min: 0.2}}", r"0 < minimum <= maximum: 0.2, 0.1"),
        ("base: {model: {local_dt_min: 0.0}}", r"0 < minimum <= maximum: 0, 0.1"),
        ("base: {model: {local_dt_max: 0.0001}}", r"model.local_dt_min and local_dt_max .* 0.001, 0.0001"),
        ("base: {model: {overlap: -1}}", "model.overlap must not be negative"),
        ("base: {model: {ratio: 0}}", "model.ratio must be positive"),
        ("base: {train: {beta2: 1.0}}", r"train.beta2 must lie in \(0, 1\): 1.0"),
        ("base: {data: {episodes: 1}}", "data.episodes must be at least 2"),
    ],
)
def test_impossible_values_are_refused_when_the_file_is_read(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        sweep(tmp_path, text)


def test_a_missing_override_is_written_as_null(tmp_path):
    runs = sweep(tmp_path, "axes: {model.local_dt_init: [null, zero_bias]}").runs
    assert [run.model.local_dt_init for run in runs] == [None, "zero_bias"]


def test_identity_ignores_what_is_not_read_and_nothing_else():
    transformer = RunSpec(model=ModelSpec(kind="decision_transformer"))
    other = dataclasses.replace(transformer, model=ModelSpec(kind="decision_transformer", subsequence=2))
    assert canonical(other) == transformer
    assert run_id(other, "d") == run_id(transformer, "d")
    assert run_id(RunSpec(model=ModelSpec(subsequence=2)), "d") != run_id(RunSpec(), "d")


OF_CONTENT = {"model.kind", "data.path", "data.kind", "data.step_limit", "data.parts", "evaluate.env"}
"""Fields whose meaning lies in what they lead to."""


def another(name: str, value: object) -> object:
    """A legal value of a field other than this one."""
    choices = typing.get_args(grid.fields()[name])
    options = [choice for option in choices for choice in typing.get_args(option)] or list(choices)
    if isinstance(value, tuple):
        return (*value, 0.5)
    if isinstance(value, str):
        return next(choice for choice in options if choice not in (value, type(None)))
    if isinstance(value, bool):
        return not value
    if value is None:
        return next((option for option in options if isinstance(option, str)), 0.05 if float in choices else 3)
    return value + 1 if isinstance(value, int) else value * 0.9 or 0.5


@pytest.mark.parametrize("kind", plug.names("models"))
def test_every_field_that_a_run_reads_tells_runs_apart(kind):
    model = ModelSpec(kind=kind, overlap=1, fusion="sum")
    spec = RunSpec(model=model, evaluate=EvaluateSpec(env="Hopper-v5", targets=(3000.0,)))
    for name in read_fields(spec) - OF_CONTENT:
        part, _, leaf = name.rpartition(".")
        owner = getattr(spec, part) if part else spec
        changed = dataclasses.replace(owner, **{leaf: another(name, getattr(owner, leaf))})
        other = dataclasses.replace(spec, **{part: changed}) if part else changed
        assert run_id(other, "d") != run_id(spec, "d"), name


def test_fields_of_rollouts_matter_where_there_are_rollouts(tmp_path):
    silent = [RunSpec(evaluate=EvaluateSpec(episodes=episodes)) for episodes in (1, 2)]
    assert run_id(silent[0], "d") == run_id(silent[1], "d")
    with pytest.raises(UserError, match=r"evaluate.rollout has no effect without evaluate\.env"):
        identify(sweep(tmp_path, "base: {evaluate: {rollout: recurrent}}"))


def test_an_override_that_changes_nothing_is_no_other_run():
    assert run_id(RunSpec(model=ModelSpec(local_d_state=16)), "d") == run_id(RunSpec(), "d")
    local = [ModelSpec(branches="local", local_d_state=8, d_state=d_state) for d_state in (16, 32)]
    assert run_id(RunSpec(model=local[0]), "d") == run_id(RunSpec(model=local[1]), "d")


def test_a_generated_task_is_told_apart_by_what_it_is_made_from():
    specs = [RunSpec(data=DataSpec(kind="tmaze", horizon=horizon)) for horizon in (5, 6)]
    assert run_id(specs[0], "d") != run_id(specs[1], "d")
    assert canonical(RunSpec(data=DataSpec(kind="tmaze", path="x"))).data.path == DataSpec().path
