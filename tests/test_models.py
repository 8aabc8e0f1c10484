"""Contracts that every architecture keeps, under every combination of its knobs, and what is particular to each."""

import dataclasses
import math
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps import blocks_with
from scaling import plug
from scaling.errors import UserError
from scaling.identity import canonical
from scaling.layers import gloma, mamba, sequence
from scaling.layers.feed_forward import FeedForward
from scaling.layers.gloma import SCOPES, LocalBranch
from scaling.layers.mamba import Mamba, shape_of
from scaling.models import mambadm
from scaling.ops.layers import layers
from scaling.ops.mamba_inner import mamba_inner, selected
from scaling.spec import ModelSpec, RunSpec, Space

CONTINUOUS, DISCRETE = Space(state=5, action=3), Space(state=5, action=4, discrete=True)
PICTURES = Space(state=84, action=4, discrete=True, image=True)
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
    state = (
        torch.randint(0, 256, (batch, time + 3, 84, 84), generator=generator, dtype=torch.uint8)
        if space.image
        else torch.randn(batch, time, space.state, generator=generator)
    )
    rtg = torch.randn(batch, time, generator=generator)
    return {"rtg": rtg, "state": state, "action": action, "timestep": torch.arange(time).expand(batch, time)}


@st.composite
def specs(draw) -> ModelSpec:
    """Any combination of the knobs that can be built."""
    subsequence = draw(st.integers(1, 7))
    knobs = {
        "kind": st.sampled_from(KINDS),
        "depth": st.integers(1, 2),
        "stem": st.sampled_from(["gym", "atari"]),
        "positions": st.booleans(),
        "init": st.sampled_from(["torch", "gpt2"]),
        "ffn": st.booleans(),
        "heads": st.sampled_from([1, 2, 4]),
        "activation": st.sampled_from(["relu", "gelu"]),
        "d_state": st.integers(1, 4),
        "d_conv": st.integers(1, 4),
        "expand": st.integers(1, 2),
        "dt_init": st.sampled_from(["log_uniform", "zero_bias"]),
        "branches": st.sampled_from(list(SCOPES)),
        "overlap": st.integers(0, subsequence - 1),
        "local_weights": st.sampled_from(["shared", "per_window"]),
        "fusion": st.sampled_from(["sum", "learned", "gate"]),
        "ratio": st.sampled_from([0.5, 1.0, 2.0]),
        "local_d_state": st.sampled_from([None, 2]),
        "local_expand": st.sampled_from([None, 3]),
        "conditioned": st.booleans(),
    }
    return small(subsequence=subsequence, width=8, **{name: draw(values) for name, values in knobs.items()})


def visible(spec: ModelSpec, step: int) -> int:
    """First timestep that a prediction may depend on, through one layer after another."""
    if spec.kind == "bc":
        return step
    if spec.kind != "mambadm" or "global" in SCOPES[spec.branches]:
        return 0
    stride = spec.subsequence - spec.overlap
    for _ in range(spec.depth):
        step = max(0, math.ceil((step - spec.subsequence + 1) / stride) * stride)
    return step


@settings(max_examples=150, deadline=None)
@given(spec=specs(), time=st.integers(1, 7), step=st.integers(0, 6))
def test_a_prediction_sees_what_its_window_holds_and_no_action_of_its_own_and_no_future(spec, time, step):
    step = min(step, time - 1)
    model = build(spec, CONTINUOUS).double()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in window(CONTINUOUS, time, 1).items()}
    floating = [inputs[name].requires_grad_() for name in ("rtg", "state", "action")]
    found = torch.autograd.grad(model(**inputs)[0, step].sum(), floating, allow_unused=True)
    rtg, state, action = (torch.zeros(time) if g is None else g.reshape(time, -1).abs().sum(1) for g in found)
    first = visible(spec, step)
    steps = torch.arange(time)
    seen = (steps >= first) & (steps <= step)
    assert ((state > 0) == seen).all()
    assert ((rtg > 0) == (seen & (spec.conditioned or spec.kind != "bc"))).all()
    alone = spec.kind == "bc" or (first == step and spec.kind == "mambadm" and "global" not in SCOPES[spec.branches])
    assert ((action > 0) == (torch.zeros(time, dtype=torch.bool) if alone else seen & (steps < step))).all()


@settings(max_examples=100, deadline=None)
@given(spec=specs(), space=st.sampled_from([CONTINUOUS, DISCRETE]))
def test_count_equals_the_built_parameters_whatever_the_knobs(spec, space):
    model, counted = build(spec, space), plug.load("models", spec.kind).count(spec, space)
    parameters = dict(model.named_parameters())
    embeds = ("stem.",) if spec.kind == "bc" else ("stem.embed_",)
    unused = sum(p.numel() for p in parameters.values() if not p.requires_grad)
    embedding = sum(p.numel() for name, p in parameters.items() if name.startswith(embeds))
    blocks = sum(p.numel() for name, p in parameters.items() if name.startswith("layers."))
    total = sum(p.numel() for p in parameters.values())
    assert counted == {"N_total": total, "N": total - embedding - unused, "N_blocks": blocks}


@pytest.mark.parametrize("kind", KINDS)
def test_count_equals_the_built_parameters_for_pictures(kind):
    spec = small(kind, encoder="conv", stem="atari", frames=3)
    total = sum(p.numel() for p in build(spec, PICTURES).parameters())
    assert plug.load("models", kind).count(spec, PICTURES)["N_total"] == total


HOPPER, HALFCHEETAH = Space(state=11, action=3), Space(state=17, action=6)


@pytest.mark.parametrize(
    ("kind", "space", "width", "total", "blocks"),
    [
        ("decision_transformer", HOPPER, 128, 727_695, 594_816),
        ("decision_transformer", HALFCHEETAH, 128, 730_008, 594_816),
        ("decision_transformer", HOPPER, 256, 2_635_023, 2_369_280),
        ("decision_transformer", HALFCHEETAH, 256, 2_639_640, 2_369_280),
        ("dmamba", HOPPER, 128, 877_315, 746_112),
        ("dmamba", HALFCHEETAH, 128, 878_854, 746_112),
        ("dmamba", HOPPER, 256, 3_155_459, 2_893_056),
        ("dmamba", HALFCHEETAH, 256, 3_158_534, 2_893_056),
        ("mambadm", HOPPER, 128, 1_226_755, 1_095_552),
        ("mambadm", HALFCHEETAH, 128, 1_228_294, 1_095_552),
        ("mambadm", HOPPER, 256, 4_468_739, 4_206_336),
        ("mambadm", HALFCHEETAH, 256, 4_471_814, 4_206_336),
    ],
)
def test_the_published_gym_configurations_have_the_published_numbers_of_parameters(kind, space, width, total, blocks):
    counted = plug.load("models", kind).count(ModelSpec(kind=kind, width=width, depth=3), space)
    assert (counted["N_total"], counted["N_blocks"]) == (total, blocks)


ATARI_ENCODER, ATARI_REST, TIMESTEPS = 479_520, 13_696, 4_001 * 128


@pytest.mark.parametrize(
    ("kind", "blocks", "rest"),
    [
        ("decision_transformer", 1_189_632, ATARI_REST),
        ("dmamba", 1_492_224, ATARI_REST - 4 * 128),  # without the table of words that nothing reads
        ("mambadm", 2_191_104, ATARI_REST - 4 * 128),
    ],
)
def test_the_published_atari_configurations_have_the_published_numbers_of_parameters(kind, blocks, rest):
    spec = ModelSpec(kind=kind, width=128, depth=6, context=30, stem="atari", encoder="conv", max_timestep=4_000)
    counted = plug.load("models", kind).count(spec, PICTURES)
    assert counted["N_blocks"] == blocks
    assert counted["N_total"] == blocks + ATARI_ENCODER + rest + TIMESTEPS


def test_the_controls_have_the_parameters_of_both_branches():
    both = mambadm.count(ModelSpec(branches="both"), HOPPER)["N_blocks"]
    for branches in ("two_global", "two_local"):
        assert mambadm.count(ModelSpec(branches=branches), HOPPER)["N_blocks"] == both
    for branches in ("wide_global", "wide_local"):
        assert mambadm.count(ModelSpec(branches=branches), HOPPER)["N_blocks"] == pytest.approx(both, rel=0.01)
        assert mambadm.widened(ModelSpec(branches=branches)).width > 128
    assert mambadm.count(ModelSpec(branches="global"), HOPPER)["N_blocks"] < 0.7 * both


UNLIKE = [
    {"local_d_state": 64},
    {"local_expand": 4, "fusion": "gate"},
    {"local_weights": "per_window", "context": 20, "subsequence": 2},
    {"expand": 8, "local_expand": 1, "ffn": False},
]


@pytest.mark.parametrize("changes", UNLIKE)
def test_a_wide_control_follows_branches_that_are_unlike_and_a_double_one_is_refused(changes):
    def spec(branches: str) -> ModelSpec:
        return canonical(RunSpec(model=ModelSpec(width=64, branches=branches, **changes))).model

    both = mambadm.count(spec("both"), HOPPER)["N_blocks"]
    for branches in ("wide_global", "wide_local"):
        assert mambadm.count(spec(branches), HOPPER)["N_blocks"] == pytest.approx(both, rel=0.03)
    for branches in ("two_global", "two_local"):
        with pytest.raises(
            UserError, match=f"model.branches {branches} has the parameters of both only where these are"
        ):
            mambadm.check(spec(branches), HOPPER)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [CONTINUOUS, DISCRETE, PICTURES])
def test_the_gradient_reaches_every_weight(kind, space):
    model = build(small(kind, encoder="conv" if space.image else "linear", fusion="gate"), space)
    model(**window(space, 7, batch=4)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_actions_lie_between_minus_one_and_one_and_choices_are_logits(kind):
    assert build(small(kind), CONTINUOUS)(**window(CONTINUOUS, 7)).abs().max() <= 1
    assert build(small(kind), DISCRETE)(**window(DISCRETE, 7)).shape == (2, 7, 4)


@settings(max_examples=50, deadline=None)
@given(spec=specs(), time=st.integers(1, 6))
def test_what_stands_to_the_right_of_a_window_does_not_matter(spec, time):
    model = build(spec, CONTINUOUS).eval()
    inputs = window(CONTINUOUS, 7)
    shorter = {name: values[:, :time] for name, values in inputs.items()}
    torch.testing.assert_close(model(**shorter), model(**inputs)[:, :time], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_alone(kind):
    model, inputs = build(small(kind, dropout=0.5), CONTINUOUS), window(CONTINUOUS, 7)
    assert not torch.equal(model(**inputs), model(**inputs))
    model.eval()
    assert torch.equal(model(**inputs), model(**inputs))


@pytest.mark.parametrize(("part", "overlap"), [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (9, 4)])
@pytest.mark.parametrize("tokens", [1, 5, 6, 7, 12, 21])
def test_the_local_branch_starts_anew_with_every_subsequence(part, overlap, tokens):
    branch = LocalBranch(small(subsequence=part, overlap=overlap, context=20)).double()
    u = torch.randn(1, tokens, 16, requires_grad=True, dtype=torch.float64)
    stride = 3 * (part - overlap)
    for position in range(tokens):
        (gradient,) = torch.autograd.grad(branch(u)[0, position].sum(), u)
        seen = gradient[0].abs().sum(1) > 0
        first = next(start for start in range(0, tokens, stride) if position < start + 3 * part)
        assert seen.tolist() == [first <= other <= position for other in range(tokens)]


RECURRENT = [
    {"kind": "dmamba"},
    {"kind": "dmamba", "ffn": False, "positions": False},
    {"kind": "dmamba", "stem": "atari", "positions": False},
    *({"branches": branches} for branches in SCOPES),
    {"subsequence": 3, "overlap": 1},
    {"subsequence": 5, "overlap": 4, "fusion": "gate", "d_conv": 1},
    {"subsequence": 1, "fusion": "learned", "local_d_conv": 2},
]


@pytest.mark.parametrize("changes", RECURRENT)
def test_one_token_at_a_time_gives_what_the_whole_window_gives(changes):
    model, inputs = build(small(**changes), CONTINUOUS).eval(), window(CONTINUOUS, 17)
    tokens = model.stem(**inputs)
    state, outputs = model.initial_state(2), []
    for token in tokens.unbind(1):
        out, state = model.step(state, token)
        outputs.append(out)
    stepped = torch.stack(outputs, dim=1)
    torch.testing.assert_close(stepped, model.layers(tokens), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.head.predict(stepped[:, 1::3]), model(**inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"local_weights": "per_window"}, r"model.local_weights shared, not per_window"),
        ({"stem": "atari"}, r"no place for the tokens of model.stem atari"),
    ],
)
def test_a_network_without_a_recurrent_form_says_so(changes, said):
    with pytest.raises(UserError, match=said):
        mambadm.check_recurrent(small(**changes))
    mambadm.check_recurrent(small(branches="global", **changes) if "stem" not in changes else small())


@pytest.mark.parametrize(
    ("changes", "space", "said"),
    [
        ({"subsequence": 8}, CONTINUOUS, r"model.subsequence must not exceed model.context \(7\): 8"),
        ({"subsequence": 3, "overlap": 3}, CONTINUOUS, r"model.overlap must be less than model.subsequence \(3\): 3"),
        (
            {"kind": "decision_transformer", "heads": 3},
            CONTINUOUS,
            r"model.heads must divide model.width \(16\), one of 1, 2, 4, 8, 16: 3",
        ),
        ({"encoder": "conv"}, CONTINUOUS, "model.encoder conv takes pictures, but the states are vectors of 5"),
        ({}, PICTURES, "model.encoder linear takes vectors, but the states are pictures of 84 x 84 pixels: use conv"),
        (
            {"encoder": "conv"},
            dataclasses.replace(PICTURES, state=64),
            "model.encoder conv takes pictures of 84 x 84 pixels, not 64 x 64",
        ),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_in_one_line(changes, space, said):
    spec = small(**changes)
    with pytest.raises(UserError, match=said) as caught:
        plug.load("models", spec.kind).check(spec, space)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(spec=specs())
@example(spec=small(branches="wide_global", local_expand=3))
@example(spec=small(branches="wide_global", subsequence=3, overlap=2, ratio=2.0))
@example(spec=small(branches="wide_global", subsequence=1, local_weights="per_window"))
@example(spec=small(branches="wide_local", local_weights="per_window", fusion="gate"))
@example(spec=small(branches="two_local", local_d_state=2))
def test_fields_that_a_kind_does_not_read_change_nothing(spec):
    """The network of the canonical spec, which has them at their defaults, has the same weights and output."""
    same = canonical(RunSpec(model=spec)).model
    one, other = build(spec, CONTINUOUS), build(same, CONTINUOUS)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    inputs = window(CONTINUOUS, 7)
    assert torch.equal(one.eval()(**inputs), other.eval()(**inputs))
    module = plug.load("models", spec.kind)
    assert module.flops(spec, CONTINUOUS, 7) == module.flops(same, CONTINUOUS, 7)


def scan_and_conv(shape: mamba.MambaShape, tokens: int) -> int:
    """What the counter of PyTorch cannot see, by hand."""
    return tokens * (2 * shape.inner * shape.d_conv + 7 * shape.inner * shape.d_state)


def inner_projections(xz: Tensor, _1, _2, x_weight: Tensor, dt_weight: Tensor, A_log: Tensor, *_: Tensor) -> Tensor:
    """Of a block between its large projections, the small ones alone."""
    return selected(xz.chunk(2, dim=-1)[0], x_weight, dt_weight, A_log.shape[1])[0]


FLOP_CASES = [
    ({"kind": "bc"}, CONTINUOUS, 0),
    ({"kind": "bc"}, PICTURES, 0),
    ({"kind": "decision_transformer", "heads": 2}, CONTINUOUS, 0),
    ({"kind": "decision_transformer", "ffn": False}, DISCRETE, 0),
    ({"kind": "decision_transformer"}, PICTURES, 0),
    ({"kind": "dmamba"}, CONTINUOUS, 18),
    ({"branches": "both"}, CONTINUOUS, 36),
    ({"branches": "both", "subsequence": 4}, CONTINUOUS, 18 + 24),  # the second sub-sequence is filled up
    ({"subsequence": 3, "overlap": 2, "fusion": "gate"}, CONTINUOUS, 18 + 36),
    ({"subsequence": 3, "local_weights": "per_window"}, CONTINUOUS, 36),
    ({"branches": "two_local"}, DISCRETE, 36),
]


@pytest.mark.parametrize(("changes", "space", "mamba_tokens"), FLOP_CASES)
def test_flops_are_those_that_pytorch_counts_plus_conv_and_scan(changes, space, mamba_tokens):
    encoder = "conv" if space.image else "linear"
    spec = small(**{"width": 32, "depth": 1, "context": 6, "encoder": encoder, **changes})
    model = build(spec, space).eval()
    plain = blocks_with(inner_projections)
    by_parts = mock.patch.object(FeedForward, "in_one_kernel", return_value=False)
    with (
        sdpa_kernel(SDPBackend.MATH),
        plain,
        by_parts,
        FlopCounterMode(display=False) as counter,
    ):  # it sees into no kernel
        model(**window(space, 6, batch=1))
    unseen = scan_and_conv(shape_of(spec), mamba_tokens)
    assert plug.load("models", spec.kind).flops(spec, space, 6) == counter.get_total_flops() + unseen


@pytest.mark.parametrize(("changes", "space", "mamba_tokens"), FLOP_CASES)
def test_all_flops_but_those_of_conv_and_scan_are_matrix_products(changes, space, mamba_tokens):
    spec, module = (
        small(**{"width": 32, "depth": 2, "context": 6, **changes}),
        plug.load("models", changes.get("kind", "mambadm")),
    )
    rest = module.flops(spec, space, 6) - module.products(spec, space, 6)
    assert rest == 2 * scan_and_conv(shape_of(spec), mamba_tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ratio": 2.0},
        {"branches": "two_local"},
        {"branches": "two_global"},
        {"local_expand": 3, "local_d_state": 2, "local_d_conv": 2},
        {"width": 5},
        {"branches": "local"},
        {"ffn": False},
        {"kind": "dmamba"},
    ],
)
def test_layers_in_one_kernel_are_those_part_by_part(changes):
    model = build(small(**{"context": 6, "subsequence": 2, **changes}), CONTINUOUS)
    inputs = window(CONTINUOUS, 6, batch=20)
    parameters, found = list(model.parameters()), []
    for together in (nullcontext(), blocks_with(mamba_inner)):
        with together, mock.patch.object(sequence, "layers", wraps=layers) as used:
            out = model(**inputs)
        found.append([out, *torch.autograd.grad(out.square().sum(), parameters)])
        networks = sum(layer.ffn is not None for layer in model.layers)
        assert used.call_count == (1 if isinstance(together, nullcontext) else networks)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize(
    "changes",
    [
        {"context": 5},  # the last sub-sequence is filled up
        {"overlap": 1},
        {"fusion": "gate"},
        {"local_weights": "per_window"},
    ],
)
def test_branches_that_are_not_plain_go_by_themselves(changes):
    spec = small(**{"context": 6, "subsequence": 2, **changes})
    with mock.patch.object(mamba, "layers", wraps=layers) as used:
        build(spec, CONTINUOUS)(**window(CONTINUOUS, spec.context, batch=20))
    assert used.called
    assert all(
        len(form.lengths) == 1 and not form.normed for _, form, *_ in (call.args for call in used.call_args_list)
    )


def test_layers_that_are_not_alike_go_by_themselves():
    model = build(small(context=6, subsequence=2, dropout=0.5), CONTINUOUS)
    model.layers[0].eval()
    with mock.patch.object(sequence, "layers", wraps=layers) as used:
        model(**window(CONTINUOUS, 6, batch=20))
    assert [draw.p for call in used.call_args_list for draw in call.args[2]] == [0.0, 0.5]


def test_a_module_among_the_layers_is_called():
    model = build(small(context=6, subsequence=2), CONTINUOUS).eval()
    inputs = window(CONTINUOUS, 6, batch=2)
    before = model(**inputs)
    model.layers.insert(1, nn.Tanh())
    assert not torch.allclose(model(**inputs), before)


def test_mamba_has_the_parameter_names_of_mamba_ssm():
    expected = (
        "A_log D in_proj.weight conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias out_proj.weight"
    )
    assert set(Mamba(shape_of(small())).state_dict()) == set(expected.split())


def test_initial_step_sizes_spread_log_uniformly_over_the_published_range():
    bias = build(small(width=512, depth=1), CONTINUOUS).layers[0].mixer.branches[0].mamba.dt_proj.bias
    dt = torch.nn.functional.softplus(bias.detach())
    assert dt.min() >= 1e-3 * 0.99
    assert dt.max() <= 1e-1 * 1.01
    middle = 1e-2
    assert 0.4 < (dt < middle).float().mean() < 0.6


def test_initial_eigenvalues_are_those_of_s4d_real():
    A = -Mamba(shape_of(small())).A_log.exp()
    torch.testing.assert_close(A, -torch.arange(1.0, 17.0).expand_as(A))


def step_sizes(block: Mamba) -> Tensor:
    return torch.nn.functional.softplus(block.dt_proj.bias.detach())


@pytest.mark.parametrize("init", ["torch", "gpt2"])
def test_the_zeroed_bias_is_a_choice_and_the_branches_may_differ_in_it(init):
    spec = small(init=init, dt_init="zero_bias", local_dt_init="log_uniform", local_dt_min=0.2, local_dt_max=0.4)
    whole, local = build(spec, CONTINUOUS).layers[0].mixer.branches
    torch.testing.assert_close(step_sizes(whole.mamba), torch.full((32,), math.log(2)))
    assert ((step_sizes(local.mamba) > 0.199) & (step_sizes(local.mamba) < 0.401)).all()


def test_gpt2_initialisation_draws_from_a_narrow_normal_and_leaves_fusion_at_equal_shares():
    model = build(small(init="gpt2", width=64, fusion="gate"), CONTINUOUS)
    layer = model.layers[0]
    assert layer.ffn[0].weight.detach().std() == pytest.approx(0.02, rel=0.05)
    assert (layer.ffn[0].bias == 0).all()
    assert (layer.mixer.fusion.gate.weight == 0).all()
    assert layer.mixer.branches[0].mamba.in_proj.weight.detach().std() == pytest.approx(0.02, rel=0.05)


def test_sub_sequences_are_counted_to_the_end_of_the_window():
    assert gloma.windows(small(subsequence=3, overlap=0), 7) == 3
    assert gloma.windows(small(subsequence=3, overlap=2), 7) == 5
    assert gloma.windows(small(subsequence=7, overlap=0), 7) == 1
