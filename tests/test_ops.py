"""The fast kernels against their references: values, gradients, odd sizes, threads, NaN."""

from collections.abc import Callable

import numba
import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from scaling.ops import _cache, _elementary, _feed_forward, _vectors, selective_scan
from scaling.ops._jobs import DONE, share
from scaling.ops.causal_conv import causal_conv
from scaling.ops.dropout import NOTHING, Draw, seed_from
from scaling.ops.layers import ACTIVATIONS, BLOCK, Form, layers, layers_ref
from scaling.ops.mamba_inner import mamba_inner, mamba_inner_ref
from scaling.ops.selective_scan import kernel_name, selective_scan_ref


def normal_of(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def scan_inputs(batch: int, time: int, channels: int, states: int) -> list[Tensor]:
    normal = normal_of(time)
    u, z, delta = (normal(batch, time, channels) for _ in range(3))
    B, C = normal(batch, time, states), normal(batch, time, states)
    A = -torch.exp(normal(channels, states))
    return [u, delta - 1.0, A, B, C, normal(channels), z, normal(channels)]


def inner_inputs(batch: int, time: int, channels: int, states: int, taps: int = 4, rank: int = 3) -> list[Tensor]:
    normal = normal_of(time)
    xz, x_weight = normal(batch, time, 2 * channels), normal(rank + 2 * states, channels) / channels**0.5
    small, dt_weight, A_log = (
        normal(channels, 1, taps) / 2,
        normal(channels, rank) / rank**0.5,
        normal(channels, states),
    )
    return [xz, small, normal(channels), x_weight, dt_weight, A_log, normal(channels), normal(channels) - 1.0]


def block_inputs(
    batch: int, time: int, width: int, channels: int, states: int, taps: int = 4, rank: int = 3
) -> list[Tensor]:
    _, *inner = inner_inputs(batch, time, channels, states, taps, rank)
    normal = normal_of(time + 1)
    u, in_weight = normal(batch, time, width), normal(2 * channels, width) / width**0.5
    return [u, in_weight, *inner, normal(width, channels) / channels**0.5]


def block(u: Tensor, *parameters: Tensor) -> Tensor:
    return layers(u, Form((u.shape[1],), normed=False), [NOTHING], parameters)


def block_ref(u: Tensor, *parameters: Tensor) -> Tensor:
    return layers_ref(u, Form((u.shape[1],), normed=False), [NOTHING], parameters)


def gradients(function, inputs: list[Tensor], upstream: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    return y, torch.autograd.grad((y * upstream.to(y.dtype)).sum(), inputs)


def assert_close_to_double(fast, slow, inputs: list[Tensor], upstream: Tensor) -> None:
    y_ref, g_ref = gradients(slow, inputs, upstream)
    y, g = gradients(fast, [x.float() for x in inputs], upstream)
    assert (y - y_ref).abs().max() <= 1e-5 * y_ref.abs().max().clamp(min=1)
    for one, other in zip(g, g_ref, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("time", [1, 2, 3, 59, 64, 65, 200])
@pytest.mark.parametrize(("batch", "width", "channels", "states"), [(1, 3, 5, 3), (3, 37, 70, 16), (34, 32, 64, 16)])
def test_block_agrees_with_double_reference_in_value_and_gradient(time, batch, width, channels, states):
    inputs, upstream = block_inputs(batch, time, width, channels, states), normal_of(1)(batch, time, width)
    assert_close_to_double(block, block_ref, inputs, upstream)


@pytest.mark.parametrize("time", [1, 2, 3, 4, 61])
@pytest.mark.parametrize(("taps", "rank"), [(1, 1), (4, 9), (7, 4)])
def test_block_of_any_taps_and_rank_agrees_with_double_reference(time, taps, rank):
    inputs, upstream = block_inputs(3, time, 4, 8, 2, taps, rank), normal_of(1)(3, time, 4)
    assert_close_to_double(block, block_ref, inputs, upstream)


def beside(function, lengths: tuple[int, int]):
    """Two blocks, with a norm if there are parameters left."""

    def call(u: Tensor, *parameters: Tensor) -> Tensor:
        return function(u, Form(lengths, normed=len(parameters) > 2 * BLOCK), [NOTHING], parameters)

    return call


def pair_inputs(batch: int, time: int, width: int, channels: tuple[int, int]) -> list[Tensor]:
    one, other = (
        block_inputs(batch, time, width, count, states, rank=states)
        for count, states in zip(channels, (3, 5), strict=True)
    )
    return [*one, *other[1:]]


PLACES = (
    ("time", "lengths"),
    [(12, (12, 3)), (12, (4, 12)), (12, (1, 6)), (9, (9, 3)), (140, (140, 70)), (130, (65, 13))],
)
SIZES = ("batch", "width", "channels"), [(20, 16, (32, 16)), (3, 16, (32, 16)), (9, 21, (5, 70))]


@pytest.mark.parametrize(*PLACES)
@pytest.mark.parametrize(*SIZES)
def test_the_sum_of_blocks_agrees_with_double_reference(time, lengths, batch, width, channels):
    fast, slow = (beside(function, lengths) for function in (layers, layers_ref))
    upstream = normal_of(1)(batch, time, width)
    assert_close_to_double(fast, slow, pair_inputs(batch, time, width, channels), upstream)


@pytest.mark.parametrize(*PLACES)
@pytest.mark.parametrize(*SIZES)
def test_blocks_around_which_the_residual_goes_on_agree_with_double_reference(time, lengths, batch, width, channels):
    fast, slow = (beside(function, lengths) for function in (layers, layers_ref))
    normal, inputs = normal_of(2), pair_inputs(batch, time, width, channels)
    inputs[0] = 3.0 * inputs[0] + 5.0
    inputs += [1.0 + 0.5 * normal(width), normal(width)]
    assert_close_to_double(fast, slow, inputs, normal(batch, time, width))


def test_a_nan_stays_in_its_piece():
    u, *parameters = (x.float() for x in pair_inputs(20, 12, 16, (32, 16)))
    function, upstream = beside(layers, (6, 3)), torch.ones(20, 12, 16)
    y_before, (d_before, *_) = gradients(function, [u, *parameters], upstream)
    u[4, 4] = float("nan")
    y, (d, *_) = gradients(function, [u, *parameters], upstream)
    assert y[4, 4:6].isnan().all()
    assert d[4, 4].isnan().all()
    for one, other in ((y, y_before), (d, d_before)):
        one[4, :6], other[4, :6] = 0.0, 0.0  # a piece of the first block, in which two of the second's lie
        assert torch.equal(one, other)


def test_the_sum_of_blocks_is_that_of_each_alone_on_its_pieces():
    u, *parameters = (x.float() for x in pair_inputs(8, 12, 16, (32, 16)))
    y = beside(layers, (12, 3))(u, *parameters)
    alone = block(u.reshape(32, 3, 16), *parameters[BLOCK:])
    assert torch.equal(y, block(u, *parameters[:BLOCK]) + alone.reshape(8, 12, 16))


@pytest.mark.parametrize("channels", [(32, 16), (5, 70)])
@pytest.mark.parametrize("normed", [False, True])
def test_members_with_blocks_side_by_side_are_computed_as_each_alone(channels, normed):
    inputs = [x.float() for x in pair_inputs(20, 12, 21, channels)]
    inputs += [torch.ones(21), torch.zeros(21)] if normed else []
    function, upstream = beside(layers, (12, 3)), torch.ones(20, 12, 21)
    alone = [gradients(function, [scale * x for x in inputs], upstream) for scale in (1.0, 1.5)]
    y, found = gradients(torch.vmap(function), [torch.stack([x, 1.5 * x]) for x in inputs], upstream)
    for member, (y_alone, g_alone) in enumerate(alone):
        assert torch.equal(y[member], y_alone)
        assert all(torch.equal(one[member], other) for one, other in zip(found, g_alone, strict=True))


def test_part_by_part_a_block_is_the_reference():
    inputs = inner_inputs(3, 9, 6, 4)
    found = [gradients(function, inputs, normal_of(1)(3, 9, 6)) for function in (mamba_inner, mamba_inner_ref)]
    for one, other in zip(*([y, *g] for y, g in found), strict=True):
        torch.testing.assert_close(one, other)


def test_reference_scan_is_the_recurrence_written_out():
    u, delta, A, B, C, D, z, bias = scan_inputs(1, 4, 2, 3)
    h, expected = np.zeros((2, 3)), []
    for t in range(4):
        dt = np.log1p(np.exp((delta[0, t] + bias).numpy()))
        for c in range(2):
            for n in range(3):
                h[c, n] = np.exp(dt[c] * A[c, n].item()) * h[c, n] + dt[c] * B[0, t, n].item() * u[0, t, c].item()
        y = h @ C[0, t].numpy() + D.numpy() * u[0, t].numpy()
        gate = z[0, t].numpy() / (1 + np.exp(-z[0, t].numpy()))
        expected.append(y * gate)
    np.testing.assert_allclose(selective_scan_ref(u, delta, A, B, C, D, z, bias)[0].numpy(), expected, rtol=1e-12)


def test_convolution_reference_is_causal_and_silu_follows():
    x, weight, bias = normal_of(0)(1, 5, 2), normal_of(1)(2, 3), normal_of(2)(2)
    padded = np.concatenate([np.zeros((2, 2)), x[0].numpy()])
    taps = weight.numpy()
    before = np.array([(padded[t : t + 3] * taps.T).sum(0) for t in range(5)]) + bias.numpy()
    np.testing.assert_allclose(causal_conv(x, weight, bias)[0].numpy(), before / (1 + np.exp(-before)), rtol=1e-12)


@pytest.mark.parametrize("shared", [0, 1])
def test_members_may_share_their_input_or_their_parameters(shared):
    u, *parameters = (x.float() for x in block_inputs(3, 5, 4, 6, 2))
    pair = [torch.stack([x, 2 * x]) for x in parameters] if shared == 0 else parameters
    given = u if shared == 0 else torch.stack([u, 2 * u])
    y = torch.vmap(block, in_dims=(None, *[0] * BLOCK) if shared == 0 else (0, *[None] * BLOCK))(given, *pair)
    twice = [2 * x for x in parameters] if shared == 0 else parameters
    assert torch.equal(y[1], block(u if shared == 0 else 2 * u, *twice))


def test_gradients_do_not_depend_on_the_number_of_threads():
    inputs = [x.float() for x in block_inputs(40, 9, 35, 70, 16)]
    upstream = torch.ones(40, 9, 35)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(gradients(block, inputs, upstream)[1])
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_nan_goes_in_and_comes_out():
    inputs = [x.float() for x in block_inputs(1, 5, 4, 8, 4)]
    inputs[0][0, 2, 3] = float("nan")
    y = block(*inputs)
    assert y[0, 2].isnan().all()
    assert y[0, :2].isfinite().all()


@pytest.mark.parametrize("batch", [40, 41])
def test_a_member_that_diverges_leaves_the_others_alone(batch):
    parameters = [torch.stack([x.float()] * 3) for x in block_inputs(batch, 9, 4, 6, 2)]
    normed = [torch.ones(3, 4), torch.zeros(3, 4)]
    upstream = torch.ones(3, batch, 9, 4)
    function = torch.vmap(lambda u, *rest: layers(u, Form((9,)), [NOTHING], rest))
    expected = gradients(function, [*parameters, *normed], upstream)
    parameters[0][1, -1, -1], parameters[4][1] = float("nan"), float("nan")
    y, found = gradients(function, [*parameters, *normed], upstream)
    assert y[1].isnan().all()
    for one, other in zip((y, *found), (expected[0], *expected[1]), strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])


def test_no_sequences_give_no_gradients():
    inputs = [x.float() for x in block_inputs(0, 5, 4, 8, 4)]
    y, found = gradients(block, inputs, torch.ones(0, 5, 4))
    assert y.shape == (0, 5, 4)
    assert not any(x.any() for x in found)


def test_a_profiler_knows_the_kernels_by_name():
    inputs = [x.float() for x in block_inputs(1, 2, 4, 8, 4)]
    with torch.profiler.profile() as watch:
        gradients(block, inputs, torch.ones(1, 2, 4))
    assert {"scaling::layers", "scaling::layers_backward"} <= {event.name for event in watch.events()}


@njit
def each_number(function, x, y):
    for at in range(0, len(x), _vectors.LANES):
        _vectors.store(y, at, function(_vectors.load(x, at)))


@pytest.mark.parametrize(
    ("name", "exact", "low", "high"),
    [
        ("exp2", np.exp2, -125.0, 126.0),
        ("exp", np.exp, -86.0, 87.0),
        ("softplus", lambda x: np.logaddexp(0.0, x), -80.0, 80.0),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0),
    ],
)
def test_vector_functions_are_accurate_to_single_precision(name, exact, low, high):
    x = np.linspace(low, high, 20000).astype(np.float32)
    found = np.empty_like(x)
    function = getattr(_elementary, name)
    each_number(njit(lambda numbers: function(numbers)), x, found)
    expected = exact(x.astype(np.float64))
    assert np.abs(found / expected - 1).max() < 5e-7


def test_without_a_faster_kernel_the_reference_serves():
    assert kernel_name("cpu") == "numba"
    assert kernel_name("cpu", torch.float64) == "reference"
    assert kernel_name("meta") == "reference"


@pytest.mark.parametrize(
    ("mamba_ssm", "triton", "names"),
    [
        (True, True, ["mamba_ssm", "mamba_ssm"]),
        (False, True, ["triton", "reference"]),
        (False, False, ["reference", "reference"]),
    ],
)
def test_on_cuda_the_kernel_is_one_of_those_installed(mamba_ssm, triton, names, monkeypatch):
    monkeypatch.setattr(selective_scan, "_mamba_ssm", lambda: selective_scan_ref if mamba_ssm else None)
    monkeypatch.setattr(selective_scan, "_triton_is_there", lambda: triton)
    assert [kernel_name("cuda", dtype) for dtype in (torch.float32, torch.float64)] == names
    assert kernel_name("cuda", mapped=True) == ("triton" if triton else "reference")


def feed_forward_inputs(width: int, *batch: int) -> list[Tensor]:
    normal = normal_of(width)
    return [
        normal(*batch, width),
        normal(4 * width, width),
        normal(4 * width),
        normal(width, 4 * width) / 2,
        normal(width),
        1.0 + 0.5 * normal(width),
        normal(width),
    ]


def network(activation: str, draw: Draw) -> Callable[..., Tensor]:
    return lambda x, *given: layers(x, Form(activation=activation), [draw], given)


@pytest.mark.parametrize("width", [2, 3, 8, 20, 64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("draw", [Draw(0.0), Draw(0.3, (12345,), 77)])
@pytest.mark.parametrize(("batch", "time"), [(15, 11), (9, 67)])
def test_networks_agree_with_double_reference_in_value_and_gradient(width, activation, draw, batch, time):
    def slow(x: Tensor, *given: Tensor) -> Tensor:
        return layers_ref(x, Form(activation=activation), [draw], given)

    upstream = normal_of(1)(batch, time, width)
    assert_close_to_double(network(activation, draw), slow, feed_forward_inputs(width, batch, time), upstream)


def test_a_member_whose_network_diverges_leaves_the_others_alone():
    stacked = [torch.stack([x.float()] * 3) for x in feed_forward_inputs(5, 10, 7)]
    function, upstream = torch.vmap(network("gelu", NOTHING)), torch.ones(3, 10, 7, 5)
    expected = gradients(function, stacked, upstream)
    stacked[0][1, -1], stacked[1][1] = float("nan"), float("nan")
    y, found = gradients(function, stacked, upstream)
    assert y[1].isnan().all()
    for one, other in zip((y, *found), (expected[0], *expected[1]), strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("width", [5, 16])
def test_members_of_a_population_go_through_networks_as_each_alone(width):
    stacked = [torch.stack([x, x / 2, -x]).float() for x in feed_forward_inputs(width, 2, 7)]
    generators = tuple(torch.Generator().manual_seed(seed) for seed in range(3))
    seeds = [seed_from(torch.Generator().manual_seed(seed)) for seed in range(3)]
    upstream = torch.ones(2, 7, width)
    y, found = gradients(torch.vmap(network("gelu", Draw(0.2, generators=generators))), stacked, upstream)
    for member, seed in enumerate(seeds):
        y_alone, alone = gradients(network("gelu", Draw(0.2, (seed,))), [x[member] for x in stacked], upstream)
        assert torch.equal(y[member], y_alone)
        assert all(torch.equal(one[member], other) for one, other in zip(found, alone, strict=True))


LAYERS = [
    ((12, 3), (32, 16), "gelu", True, 2),
    ((4, 12), (5, 70), "relu", True, 3),
    ((6,), (16,), "gelu", True, 3),
    ((12, 3), (16, 16), None, True, 3),
    ((12,), (16,), None, True, 3),
    ((12,), (16,), None, False, 1),
    ((), (), "gelu", True, 2),
]


def layers_inputs(width: int, lengths, channels, activation, normed: bool, depth: int) -> tuple[Form, list[Tensor]]:
    normal, parameters = normal_of(width), []
    for _ in range(depth):
        for count, states in zip(channels, (3, 5), strict=False):
            parameters += block_inputs(1, 1, width, count, states)[1:]
        parameters += [1.0 + 0.5 * normal(width), normal(width)] if normed and channels else []
        parameters += feed_forward_inputs(width, 1)[1:] if activation else []
    return Form(lengths, normed, activation), parameters


@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("width", [16, 21])
@pytest.mark.parametrize("shape", LAYERS)
def test_layers_agree_with_double_reference_in_value_and_gradient(batch, width, shape):
    form, parameters = layers_inputs(width, *shape)
    draws = [Draw(0.3, (seed,), 77) if form.activation else NOTHING for seed in range(shape[-1])]
    fast, slow = (lambda x, *given, op=op: op(x, form, draws, given) for op in (layers, layers_ref))
    normal = normal_of(1)
    inputs = [normal(batch, 12, width), *parameters]
    assert_close_to_double(fast, slow, inputs, normal(batch, 12, width))


@pytest.mark.parametrize("shape", LAYERS)
def test_layers_that_keep_nothing_give_the_same(shape):
    form, parameters = layers_inputs(16, *shape)
    x, given = normal_of(1)(9, 12, 16).float(), [parameter.float() for parameter in parameters]
    y, before = layers(x, form, [NOTHING] * shape[-1], given), x.clone()
    kept = layers(x.requires_grad_(), form, [NOTHING] * shape[-1], given)
    assert torch.equal(y, kept)
    assert torch.equal(x, before)


def test_members_go_through_layers_as_each_alone():
    form, parameters = layers_inputs(21, *LAYERS[1])
    inputs = [x.float() for x in (normal_of(1)(20, 12, 21), *parameters)]
    draws = [Draw(0.2, (1, 2), 5), Draw(0.2, (3, 4), 5), Draw(0.2, (5, 6), 5)]
    upstream = torch.ones(20, 12, 21)
    y, found = gradients(
        torch.vmap(lambda x, *given: layers(x, form, draws, given)),
        [torch.stack([x, 1.5 * x]) for x in inputs],
        upstream,
    )
    for member, scale in enumerate((1.0, 1.5)):
        own = [Draw(0.2, (draw.seeds[member],), 5) for draw in draws]
        y_alone, alone = gradients(
            lambda x, *given, own=own: layers(x, form, own, given), [scale * x for x in inputs], upstream
        )
        assert torch.equal(y[member], y_alone)
        assert all(torch.equal(one[member], other) for one, other in zip(found, alone, strict=True))


def test_layers_that_cannot_be_are_refused():
    form, parameters = layers_inputs(16, *LAYERS[0])
    x, given = torch.zeros(2, 12, 16), [parameter.float() for parameter in parameters]
    with pytest.raises(ValueError, match="2 layers of width 16 do not have parameters of the shapes"):
        layers(x, form, [NOTHING] * 2, [*given[:-1], torch.zeros(17)])
    with pytest.raises(ValueError, match="2 layers of width 15"):
        layers(x[..., :15], form, [NOTHING] * 2, given)
    with pytest.raises(ValueError, match=r"anew after \(12, 3\) tokens of 10"):
        layers(x[:, :10], form, [NOTHING] * 2, given)
    with pytest.raises(ValueError, match="float64"):
        layers(x, form, [NOTHING] * 2, parameters)
    with pytest.raises(NotImplementedError, match="Meta"):
        layers(x, form, [NOTHING] * 2, [*given[:-1], given[-1].to("meta")])
    with pytest.raises(ValueError, match="one probability"):
        layers(x, form, [NOTHING, Draw(0.5)], given)
    with pytest.raises(ValueError, match="do not make 2 layers"):
        layers(x, form, [NOTHING] * 2, given[:-1])


def test_there_is_no_second_derivative():
    form, parameters = layers_inputs(16, *LAYERS[2])
    x = torch.ones(2, 12, 16, requires_grad=True)
    y = layers(x, form, [NOTHING] * 3, [parameter.float() for parameter in parameters])
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def count(given, first, last):
    address, _ = _vectors.integers(given, 2)
    counts = _vectors.integers(address, last)
    for item in range(first, last):
        counts[item] += 1
    return DONE


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("items", [1, 2, 7, 8, 100])
def test_each_item_is_done_once_in_the_turns_of_any_threads(items, threads):
    counts, before = np.zeros(items, np.int64), numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    for _ in range(1000):
        share(count, np.array([counts.ctypes.data, items], np.int64), items, threads)
    numba.set_num_threads(before)
    assert (counts == 1000).all()


def without_memory(given, first, last):
    if first == 0:
        raise MemoryError
    return DONE


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_that_finds_no_memory_is_no_result():
    with pytest.raises(MemoryError, match="found no memory"):
        share(without_memory, np.zeros(1, np.int64), items=3, threads=2)


@njit
def each_pair(function, x, y, slope):
    for at in range(0, len(x), _vectors.LANES):
        one, other = function(_vectors.load(x, at))
        _vectors.store(y, at, one)
        _vectors.store(slope, at, other)


def test_gelu_and_relu_are_right_everywhere_and_pass_nan_on():
    x = torch.cat([torch.linspace(-12, 12, 4003), torch.tensor([0.0, -0.0, -1e4, 1e4, torch.nan])])
    exact = x.double().requires_grad_()
    for own, reference in ((_feed_forward.gelu, functional.gelu), (_feed_forward.relu, functional.relu)):
        value, slope = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
        each_pair(own, x.numpy(), value, slope)
        y = reference(exact)
        (expected,) = torch.autograd.grad(y[:-1].sum(), exact)
        found = torch.from_numpy(value).double()
        torch.testing.assert_close(found, y.detach(), rtol=3e-7, atol=3e-7, equal_nan=True)
        torch.testing.assert_close(torch.from_numpy(slope[:-1]).double(), expected[:-1], rtol=1e-6, atol=1e-6)
        assert np.isnan(slope[-1])


def test_kernels_are_compiled_anew_when_any_of_their_sources_changes(tmp_path, monkeypatch):
    package = tmp_path / "ops"
    package.mkdir()
    folders = []
    for text in ("one", "one", "two"):
        (package / "_products.py").write_text(text)
        monkeypatch.setattr(_cache, "__file__", str(package / "_cache.py"))
        monkeypatch.setattr(numba.config, "CACHE_DIR", "")
        _cache.keep_apart()
        folders.append(numba.config.CACHE_DIR)
    assert folders[0] == folders[1] != folders[2]
    assert all(folder.startswith(str(package / "__pycache__")) for folder in folders)
