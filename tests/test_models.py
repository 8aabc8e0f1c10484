"""Contracts that every architecture keeps, and what is particular to MambaDM."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from scaling import plug
from scaling.layers import mamba
from scaling.layers.mamba import Mamba
from scaling.models.mambadm import GLoMa
from scaling.spec import ModelSpec, Space

CONTINUOUS, DISCRETE = Space(state=5, action=3), Space(state=5, action=4, discrete=True)
KINDS = plug.names("models")


def small(kind: str = "mambadm", **changes) -> ModelSpec:
    values = {"width": 16, "depth": 2, "context": 7, "subsequence": 2, "dropout": 0.0, "max_timestep": 50, **changes}
    return ModelSpec(kind=kind, **values)


def build(spec: ModelSpec, space: Space) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return plug.load("models", spec.kind).Model(spec, space)


def window(space: Space, time: int, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(time)
    action = (
        torch.randint(0, space.action, (batch, time), generator=generator)
        if space.discrete
        else torch.rand(batch, time, space.action, generator=generator) * 2 - 1
    )
    return {
        "rtg": torch.randn(batch, time, generator=generator),
        "state": torch.randn(batch, time, space.state, generator=generator),
        "action": action,
        "timestep": torch.arange(time).expand(batch, time),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [CONTINUOUS, DISCRETE])
def test_count_equals_the_built_parameters(kind, space):
    spec = small(kind)
    model, counted = build(spec, space), plug.load("models", kind).count(spec, space)
    parameters = dict(model.named_parameters())
    embedding = sum(p.numel() for name, p in parameters.items() if name.startswith("stem.embed_"))
    blocks = sum(p.numel() for name, p in parameters.items() if name.startswith("layers."))
    total = sum(p.numel() for p in parameters.values())
    assert counted == {"N_total": total, "N": total - embedding, "N_blocks": blocks}


@pytest.mark.parametrize(
    ("space", "width", "total"),
    [
        (Space(state=11, action=3), 128, 1_226_755),
        (Space(state=17, action=6), 128, 1_228_294),
        (Space(state=11, action=3), 256, 4_468_739),
    ],
)
def test_mambadm_has_as_many_parameters_as_worked_out_by_hand(space, width, total):
    assert plug.load("models", "mambadm").count(ModelSpec(width=width, depth=3), space)["N_total"] == total


def future_gradients(model: torch.nn.Module, space: Space, time: int, step: int) -> dict[str, Tensor]:
    """Absolute gradient of the action predicted at ``step`` to each timestep's inputs."""
    inputs = window(space, time, batch=1)
    for name in ("rtg", "state", "action"):
        if inputs[name].is_floating_point():
            inputs[name].requires_grad_()
    model(**inputs)[0, step].sum().backward()
    return {
        name: inputs[name].grad.reshape(time, -1).abs().sum(1)
        for name in ("rtg", "state", "action")
        if inputs[name].is_floating_point()
    }


@settings(max_examples=30, deadline=None)
@given(time=st.integers(1, 9), step=st.integers(0, 8), part=st.integers(1, 7), kind=st.sampled_from(KINDS))
def test_no_prediction_sees_its_own_action_or_the_future(time, step, part, kind):
    step = min(step, time - 1)
    gradient = future_gradients(build(small(kind, subsequence=part), CONTINUOUS), CONTINUOUS, time, step)
    assert (gradient["action"][step:] == 0).all()
    assert (gradient["state"][step + 1 :] == 0).all()
    assert (gradient["rtg"][step + 1 :] == 0).all()
    assert (gradient["state"][: step + 1] > 0).all()
    assert (gradient["rtg"][: step + 1] > 0).all()
    assert (gradient["action"][:step] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [CONTINUOUS, DISCRETE])
def test_the_gradient_reaches_every_weight(kind, space):
    model = build(small(kind), space)
    inputs = window(space, 7, batch=4)
    model(**inputs).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_actions_lie_between_minus_one_and_one_and_choices_are_logits(kind):
    assert build(small(kind), CONTINUOUS)(**window(CONTINUOUS, 7)).abs().max() <= 1
    assert build(small(kind), DISCRETE)(**window(DISCRETE, 7)).shape == (2, 7, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_to_the_right_of_a_window_does_not_matter(kind):
    model = build(small(kind), CONTINUOUS)
    inputs = window(CONTINUOUS, 7)
    for time in range(1, 7):
        shorter = {name: values[:, :time] for name, values in inputs.items()}
        torch.testing.assert_close(model(**shorter), model(**inputs)[:, :time], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 5, 6, 7, 12, 20])
def test_the_local_branch_starts_anew_with_every_subsequence(tokens):
    layer = GLoMa(small(subsequence=2))
    u = torch.randn(1, tokens, 16, requires_grad=True)
    for position in range(tokens):
        (gradient,) = torch.autograd.grad(layer.local(u)[0, position].sum(), u)
        seen = gradient[0].abs().sum(1) > 0
        first = position - position % 6
        assert seen.tolist() == [first <= other <= position for other in range(tokens)]


def test_the_global_branch_sees_across_subsequences():
    layer = GLoMa(small(subsequence=2))
    u = torch.randn(1, 18, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer.global_mamba(u)[0, -1].sum(), u)
    assert (gradient[0].abs().sum(1) > 0).all()


def test_flops_are_those_of_the_matrix_products_plus_conv_and_scan():
    from torch.utils.flop_counter import FlopCounterMode

    spec, space = small(width=32, depth=1, context=6, subsequence=2), CONTINUOUS
    model = build(spec, space)
    with FlopCounterMode(display=False) as counter:
        model(**window(space, 6, batch=1))
    inner = spec.expand * spec.width
    unseen_by_counter = 2 * 18 * (2 * inner * spec.d_conv + 7 * inner * spec.d_state)
    assert plug.load("models", "mambadm").flops(spec, space, 6) == counter.get_total_flops() + unseen_by_counter


def test_mamba_has_the_parameter_names_of_mamba_ssm():
    expected = (
        "A_log D in_proj.weight conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias out_proj.weight"
    )
    assert set(Mamba(small()).state_dict()) == set(expected.split())


def test_initial_step_sizes_spread_log_uniformly_over_the_published_range():
    bias = build(small(width=512, depth=1), CONTINUOUS).layers[0].global_mamba.dt_proj.bias
    dt = torch.nn.functional.softplus(bias.detach())
    assert dt.min() >= mamba.DT_MIN * 0.99
    assert dt.max() <= mamba.DT_MAX * 1.01
    middle = math.sqrt(mamba.DT_MIN * mamba.DT_MAX)
    assert 0.4 < (dt < middle).float().mean() < 0.6


def test_initial_eigenvalues_are_those_of_s4d_real():
    A = -Mamba(small()).A_log.exp()
    torch.testing.assert_close(A, -torch.arange(1.0, 17.0).expand_as(A))
