"""One run from spec to row: learning, repeating, diverging, sharing the work among processes."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling import cost, optimisation, plug, results, train as training
from scaling.errors import Diverged
from scaling.runs import open_store
from scaling.spec import DataSpec, EvaluateSpec, ModelSpec, RunSpec, Space, TrainSpec

from conftest import make_columns, write_hdf5

TINY = RunSpec(
    model=ModelSpec(width=16, depth=1, context=6, subsequence=2, dropout=0.1, max_timestep=100),
    train=TrainSpec(amount=12.0, batch=8, evaluations=3),
)


@pytest.fixture
def data(tmp_path) -> tuple[RunSpec, Path]:
    lengths = np.random.default_rng(1).integers(4, 30, 40).tolist()
    write_hdf5(tmp_path / "data.hdf5", make_columns(lengths))
    return dataclasses.replace(TINY, data=DataSpec(path="data.hdf5", rtg_scale=10.0)), tmp_path


def of_kind(spec: RunSpec, kind: str) -> RunSpec:
    return dataclasses.replace(spec, model=dataclasses.replace(spec.model, kind=kind))


def repeatable(row: dict) -> dict:
    return {name: row.get(name) for name, column in results.BY_NAME.items() if column.repeatable}


def test_the_same_spec_gives_the_same_row_and_leaves_the_global_generator_alone(data):
    spec, folder = data
    store = open_store(spec, folder)
    before = torch.random.get_rng_state()
    first = training.train(spec, store).row
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    other = dataclasses.replace(spec, seed=5)
    different = training.train(other, store).row
    again = training.train(spec, store).row
    assert repeatable(first) == repeatable(again)
    assert different["loss"] != first["loss"]


def test_a_row_says_what_was_done(data):
    spec, folder = data
    store = open_store(spec, folder)
    row = training.train(spec, store).row
    subset = cost.subset_of(spec, store)
    assert row["status"] == "done"
    assert row["D"] == len(subset.training)
    assert row["held_out"] + row["D"] == len(store.states)
    assert row["updates"] == 12
    assert row["tokens_seen"] == 3 * 6 * 8 * 12
    assert [point["update"] for point in row["curve"]] == [4, 8, 12]
    assert row["loss"] == row["curve"][-1]["loss"]
    assert row["loss_best"] == min(point["loss"] for point in row["curve"])
    assert row["exposures"] == pytest.approx(cost.cost_of(spec, store).exposures, rel=0.1)
    assert set(row) <= set(results.SCHEMA.names)
    assert row["C"] == 3 * plug.load("models", "mambadm").flops(spec.model, Space(state=4, action=2), 6) * 8 * 12


def test_measures_of_a_subset_are_those_of_a_process_that_saw_no_other(data):
    spec, folder = data
    store = open_store(spec, folder)
    half = dataclasses.replace(spec, data=dataclasses.replace(spec.data, fraction=0.5))
    both = [training.train(each, store).row for each in (spec, half)]
    training._diversities.clear()
    alone = training.train(half, store).row
    measures = ("return_quantiles", "return_sd", "coverage", "entropy")
    assert [both[1][name] for name in measures] == [alone[name] for name in measures]
    assert both[0]["entropy"] != both[1]["entropy"]


def test_training_beats_the_best_constant_prediction(data):
    spec, folder = data
    spec = dataclasses.replace(spec, train=TrainSpec(amount=150.0, batch=16, evaluations=3, learning_rate=3e-3))
    row = training.train(spec, open_store(spec, folder)).row
    assert row["loss_best"] < 0.5 * row["loss_constant"]


def test_constant_loss_is_the_error_of_the_training_mean(data):
    spec, folder = data
    store = open_store(spec, folder)
    subset = cost.subset_of(spec, store)
    seen, unseen = (np.concatenate(list(part.actions())) for part in (subset.training, subset.held_out))
    expected = np.square(unseen - seen.mean(0)).mean()
    assert training.train(spec, store).row["loss_constant"] == pytest.approx(expected, rel=1e-5)


def test_a_run_that_diverges_says_so(data):
    spec, folder = data
    spec = dataclasses.replace(
        spec, train=TrainSpec(amount=40.0, batch=8, learning_rate=1e30, evaluations=4, warmup=0.0)
    )
    with pytest.raises(Diverged, match="not finite after"):
        training.train(spec, open_store(spec, folder))


def test_decay_spares_state_matrix_norms_biases_and_tables():
    model = plug.load("models", "mambadm").Model(TINY.model, Space(state=4, action=2))
    decays, exempt = optimisation.parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    spared = {names[id(p)] for p in exempt["params"]}
    assert decays["weight_decay"] == 0.1
    assert exempt["weight_decay"] == 0.0
    assert len(spared) + len(decays["params"]) == len(names)
    for name in names.values():
        plain = name.endswith("weight") and "norm" not in name and "embed_timestep" not in name
        assert (name in spared) == (not plain), name


def test_discrete_actions_are_trained_with_cross_entropy(tmp_path, data):
    spec, folder = data
    store = open_store(spec, folder)
    choices = (np.asarray(store.actions[:, 0]) > 0).astype(np.int64) + (np.asarray(store.actions[:, 1]) > 0)
    store = dataclasses.replace(store, actions=choices, about={"choices": 3})
    spec = dataclasses.replace(spec, train=TrainSpec(amount=150.0, batch=16, evaluations=2, learning_rate=3e-3))
    row = training.train(spec, store).row
    assert row["loss_best"] < 0.8 * row["loss_constant"] < math.log(3)


@pytest.mark.parametrize("kind", plug.names("models"))
def test_bf16_trains_with_the_scan_in_single_precision(data, kind):
    spec, folder = of_kind(data[0], kind), data[1]
    store = open_store(spec, folder)
    full = training.train(spec, store).row
    half = training.train(dataclasses.replace(spec, train=dataclasses.replace(spec.train, precision="bf16")), store).row
    assert half["loss"] == pytest.approx(full["loss"], rel=0.02)
    assert half["loss"] != full["loss"]


def test_an_environment_of_another_shape_is_refused_before_training(data):
    spec, folder = data
    spec = dataclasses.replace(spec, evaluate=EvaluateSpec(env="Hopper-v5", targets=(1.0,)))
    from scaling.errors import UserError

    with pytest.raises(
        UserError, match=r"Hopper-v5 has states \(11,\) and actions \(3,\); the dataset has \(4,\) and \(2,\)"
    ):
        training.train(spec, open_store(spec, folder))
