"""What blocks remember: known decays are found, and the pictures of them can be drawn."""

import dataclasses
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from scaling import memory, model_figures, results, train
from scaling.datasets import tmaze
from scaling.layers.mamba import Mamba
from scaling.layers.sequence import Layer
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec, to_dict

SPEC = RunSpec(
    model=ModelSpec(width=16, depth=2, context=6, subsequence=2, dropout=0.0, d_state=3),
    data=DataSpec(kind="tmaze", horizon=6, episodes=40, starts="episode", rtg_scale=1.0),
    train=TrainSpec(amount=2.0, batch=4, evaluations=1),
)


def network(spec: RunSpec = SPEC) -> train.Trained:
    return train.trained(spec, tmaze.open(spec.data, None))


def with_model(**changes) -> RunSpec:
    return dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, **changes))


def test_planted_decays_are_found():
    found = network()
    for block in found.model.modules():
        if isinstance(block, Mamba):
            block.dt_proj.weight.data.zero_()
            block.dt_proj.bias.data.fill_(math.log(math.expm1(0.2)))  # softplus of this is 0.2
            block.A_log.data.copy_(torch.tensor([0.5, 1.0, 4.0]).log().expand(32, 3))
    frame = memory.memory(found, windows=8)
    assert len(frame) == 2 * 2 * 32 * 3
    np.testing.assert_allclose(frame[["dt_mean", "dt_low", "dt_median", "dt_high"]], 0.2, rtol=1e-5)
    first = frame[frame["channel"] == 0].head(3)
    np.testing.assert_allclose(first["eigenvalue"], [-0.5, -1.0, -4.0], rtol=1e-5)
    np.testing.assert_allclose(first["pole"], np.exp([-0.1, -0.2, -0.8]), rtol=1e-5)
    np.testing.assert_allclose(first["horizon"], [10 / 3, 5 / 3, 5 / 12], rtol=1e-5)
    assert frame.groupby("branch")["reset"].unique().map(list).to_dict() == {"global": [6], "local": [2]}
    np.testing.assert_allclose(memory.summary(frame)["horizon_50%"], 10 / 3, rtol=1e-5)


def test_a_state_really_decays_as_its_pole_says():
    """A block fed one token and then zeros, its step sizes fixed, forgets at the rate of its slowest state."""
    found = network(with_model(kind="dmamba", depth=1, d_state=1, d_conv=1))
    block = next(module for module in found.model.modules() if isinstance(module, Mamba))
    block.dt_proj.weight.data.zero_()
    block.conv1d.bias.data.zero_()  # nothing comes in with a token of zeros
    frame = memory.memory(found, windows=8)
    state, u = block.initial_state(1), torch.randn(1, 16)
    _, state = block.step(state, u)
    for token in range(1, 4):
        _, after = block.step(state, torch.zeros(1, 16))
        decay = (after.scan / state.scan).detach().squeeze()
        np.testing.assert_allclose(decay, frame["pole"], rtol=1e-3, err_msg=str(token))
        state = after


@pytest.mark.parametrize("changes", [{"kind": "dmamba"}, {"local_weights": "per_window"}, {"branches": "two_local"}])
def test_every_block_is_looked_at(changes):
    found = network(with_model(**changes))
    blocks = sum(isinstance(module, Mamba) for module in found.model.modules())
    frame = memory.memory(found, windows=4)
    assert len(frame) == blocks * 32 * 3
    assert frame["block"].nunique() == blocks
    longest = frame.groupby(["block", "channel"])["horizon"].max()  # every channel of every block counts once
    assert len(longest) == blocks * 32
    branch = frame.drop_duplicates("block").set_index("block")["branch"]
    layer = frame.drop_duplicates("block").set_index("block")["layer"]
    keys = [longest.index.get_level_values("block").map(part) for part in (layer, branch)]
    np.testing.assert_allclose(memory.summary(frame)["horizon_50%"], longest.groupby(keys).median())
    assert np.isfinite(frame.select_dtypes("number")).all(axis=None)


def test_the_initial_step_sizes_of_the_zeroed_bias_forget_within_a_timestep():
    spec = dataclasses.replace(with_model(dt_init="zero_bias"), train=TrainSpec(amount=1.0, learning_rate=1e-9))
    frame = memory.memory(network(spec), windows=4)
    assert frame["horizon"].max() < 1.0
    assert memory.memory(network(dataclasses.replace(spec, model=SPEC.model)), windows=4)["horizon"].max() > 20


def test_a_network_without_mamba_and_data_without_full_windows_are_refused():
    with pytest.raises(ValueError, match="no Mamba block"):
        memory.memory(network(with_model(kind="bc")))
    found = network()
    found.subset.held_out.context = 7
    with pytest.raises(ValueError, match="shorter than the context"):
        memory.memory(found)


def test_the_trained_network_is_that_of_the_row():
    store = tmaze.open(SPEC.data, None)
    curve = []
    found = train.trained(SPEC, store, lambda update, loss: curve.append(loss))
    assert curve[-1] == train.train(SPEC, store).row["loss"]
    assert not found.model.training
    assert sum(isinstance(module, Layer) for module in found.model.modules()) == 2


@pytest.mark.parametrize("draw", [model_figures.step_sizes, model_figures.horizons, model_figures.eigenvalues])
def test_memory_can_be_drawn(draw):
    frame = pd.concat([memory.memory(network(), windows=4).assign(network=name) for name in ("one", "other")])
    figure, axes = plt.subplots()
    draw(frame, axes)
    said = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"one, global", "one, local", "other, global", "other, local"} <= said
    plt.close(figure)


def table() -> pd.DataFrame:
    kinds = ["mambadm", "mambadm", "decision_transformer", "decision_transformer"]
    inits = ["log_uniform", "zero_bias", "log_uniform", "log_uniform"]
    specs = [
        RunSpec(model=ModelSpec(kind=kind, dt_init=init), data=DataSpec(kind="tmaze", horizon=horizon))
        for horizon in (5, 10)
        for kind, init in zip(kinds, inits, strict=True)
    ]
    return pd.DataFrame(
        {
            "spec": [json.dumps(to_dict(spec)) for spec in specs],
            "kind": [spec.model.kind for spec in specs],
            "return_mean": np.linspace(0, 1, len(specs)),
            "loss_best": np.linspace(1, 2, len(specs)),
        }
    )


def test_success_is_drawn_against_tokens_a_line_per_model_and_initialisation():
    frame = results.with_fields(table(), "data.horizon", "model.dt_init")
    assert frame["data.horizon"].tolist() == [5] * 4 + [10] * 4
    figure, axes = plt.subplots()
    model_figures.success(frame, axes)
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert said == ["mambadm, log uniform", "mambadm, zero bias", "decision_transformer"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["15", "30"]
    plt.close(figure)


def test_the_interval_of_a_mean_is_student_s():
    low, high = model_figures.mean_interval(pd.Series([1.0, 2.0, 3.0]))
    assert (low + high) / 2 == pytest.approx(2.0)
    assert high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)  # t of two degrees of freedom
    assert np.isnan(model_figures.mean_interval(pd.Series([1.0]))[0])


def test_models_are_compared_with_their_intervals():
    figure, axes = plt.subplots()
    model_figures.comparison(table(), "loss_best", axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mambadm", "decision_transformer"]
    assert axes.get_xlabel() == "loss_best"
    plt.close(figure)
