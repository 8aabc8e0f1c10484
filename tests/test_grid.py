"""How YAML becomes runs, and what a mistake in it gets."""

import dataclasses

import pytest

from scaling import grid
from scaling.errors import UserError
from scaling.identity import run_id
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec, from_dict, to_dict


def write(tmp_path, text: str):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def test_runs_are_the_product_of_the_axes_over_base_over_defaults(tmp_path):
    sweep = grid.read(
        write(
            tmp_path,
            """
name: demo
question: is it
  so?
base:
  model: {depth: 5, width: 99}
  train: {learning_rate: 1}
axes:
  model.width: [16, 32]
  seed: [3, 4]
""",
        )
    )
    assert sweep.name == "demo"
    assert sweep.question == "is it so?"
    assert [(r.model.width, r.seed) for r in sweep.runs] == [(16, 3), (16, 4), (32, 3), (32, 4)]
    assert {r.model.depth for r in sweep.runs} == {5}
    assert sweep.runs[0].train.learning_rate == 1.0
    assert sweep.runs[0].data == DataSpec()


def test_fields_that_move_together_are_one_axis_and_skip_leaves_cells_out(tmp_path):
    sweep = grid.read(
        write(
            tmp_path,
            """
name: demo
axes:
  model.width: [16, 32]
  data.draw, seed: [[0, 5], [1, 6]]
skip:
  - {model.width: 32, seed: 6}
  - {model.width: 16, data.fraction: 1.0, data.draw: 1}
""",
        )
    )
    assert [(r.model.width, r.data.draw, r.seed) for r in sweep.runs] == [(16, 0, 5), (32, 0, 5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "base:\n  model:\n    widht: 3",
            r"sweep.yaml:3: unknown key in base.model: 'widht' \(did you mean 'width'\?\); valid: kind, width",
        ),
        ("axis: {}", r"sweep.yaml:1: unknown key in a sweep: 'axis'"),
        (
            "base: {train: {learning_rate: 1e-4}}",
            r"learning_rate must be float, not str: '1e-4' \(YAML reads this as text; write it as 1.0e-4",
        ),
        ("base: {model: {width: 3.5}}", "model.width must be int, not float: 3.5"),
        ("base: {model: {width: true}}", "model.width must be int, not bool: True"),
        ("base: {model: {width: 0}}", "model.width must be at least 1: 0"),
        ("base: {data: {fraction: 1.5}}", r"data.fraction must lie in \(0, 1\]: 1.5"),
        (
            "base: {train: {budget: steps}}",
            "train.budget must be one of updates, .*, convergence: 'steps'",
        ),
        ("base: {train: {amount: 2.5}}", "train.amount must be a whole number of updates: 2.5"),
        ("base: {evaluate: {env: Hopper-v5}}", "evaluate.targets must be given"),
        ("base: {evaluate: {env: 3}}", "evaluate.env must be str or nothing, not int: 3"),
        ("base: {model: 3}", "base.model must be a mapping"),
        ("axes: {model.width: 16}", "the axis model.width must be a list of values: 16"),
        ("axes: {model.width: []}", "must be a list of values"),
        ("axes:\n  model.widths: [1]", r"sweep.yaml:2: unknown axis: 'model.widths' \(did you mean 'model.width'\?\)"),
        ("axes: {model.width: [16, 16]}", "lists 16 twice"),
        ("axes: {seed: [0], 'data.draw, seed': [[0, 0]]}", "seed stands in two axes"),
        ("axes: {'data.draw, seed': [[0]]}", r"expected one value for each of data.draw, seed: \[0\]"),
        ("axes: {seed: [0]}\nskip: [{seed: 0}]", "skip leaves no run of 1"),
        ("skip: 3", "skip must be a list"),
        ("base: {train: {amount: 1.0e4}}", "must be float, not str: '1.0e4' .* or 1.0e"),
        ("base: {train: {clip: .nan}}", "train.clip must be a finite number: nan"),
        ("base: {evaluate: {seed: -1}}", "evaluate.seed must not be negative: -1"),
        ("question: {a: b}", "question must be a sentence"),
        ("name: a b", "name must be made of letters"),
        ("name: a\nname: b", "sweep.yaml:2: 'name' is written twice"),
        ("a: [", "is not YAML"),
        ("", "is empty"),
        ("- 1", "a sweep must be a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_is_known(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        grid.read(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the sweep .*none\.yaml: No such file"):
        grid.read(tmp_path / "none.yaml")


def test_default_run_id_is_pinned():
    """Changes with any default and any new field, on purpose: old rows then belong to other runs."""
    assert run_id(RunSpec(), "digest") == "27ff1bf8c5ac6cd3"


def test_run_id_holds_all_that_changes_a_result_and_not_where_the_data_lies():
    base = RunSpec()
    same = dataclasses.replace(base, data=DataSpec(path="elsewhere.hdf5"))
    assert run_id(same, "d") == run_id(base, "d")
    others = [
        (base, "other digest"),
        (dataclasses.replace(base, seed=1), "d"),
        (dataclasses.replace(base, model=ModelSpec(width=64)), "d"),
        (dataclasses.replace(base, data=DataSpec(draw=1)), "d"),
        (dataclasses.replace(base, train=TrainSpec(batch=32)), "d"),
    ]
    assert len({run_id(spec, digest) for spec, digest in [(base, "d"), *others]}) == 6


def test_a_spec_survives_the_way_through_plain_values():
    spec = RunSpec(model=ModelSpec(width=64), seed=9)
    assert from_dict(to_dict(spec)) == spec
