"""Causal depthwise convolution followed by SiLU, as in the Mamba block.

y[t, c] = silu( bias[c] + sum_k weight[c, k] x[t - K + 1 + k, c] ),  x = 0 before the window
"""

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops._rows import array, rows, threads_of_torch
from scaling.ops._vector_math import FLAGS, F, sigmoid


def causal_conv_ref(
    x: Float[Tensor, "batch time channel"], weight: Float[Tensor, "channel tap"], bias: Float[Tensor, " channel"]
) -> Float[Tensor, "batch time channel"]:
    """The convolution as PyTorch writes it, in any precision and on any device."""
    taps = weight.shape[1]
    padded = functional.pad(x.transpose(1, 2), (taps - 1, 0))
    return functional.silu(functional.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])).transpose(1, 2)


def causal_conv(
    x: Float[Tensor, "batch time channel"], weight: Float[Tensor, "channel tap"], bias: Float[Tensor, " channel"]
) -> Float[Tensor, "batch time channel"]:
    """The convolution, by the Numba kernel on a CPU in single precision and by PyTorch elsewhere."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return torch.ops.scaling.causal_conv(x, weight, bias)
    return causal_conv_ref(x, weight, bias)


@torch.library.custom_op("scaling::causal_conv", mutates_args=())
def _causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, time, channels = x.shape
    y = x.new_empty(batch, time, channels)
    taps = array(weight.t().contiguous())
    threads_of_torch()
    _forward(*rows(x), taps, array(bias), batch, time, array(y.view(-1, channels)))
    return y


@_causal_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("scaling::causal_conv_backward", mutates_args=())
def _causal_conv_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, channels = x.shape
    dx = x.new_zeros(batch, time, channels)
    per_sequence = x.new_zeros(batch, weight.shape[1] + 1, channels)
    taps = array(weight.t().contiguous())
    threads_of_torch()
    gradient = array(dx.view(-1, channels))
    _backward(*rows(x), *rows(dy), taps, array(bias), batch, time, gradient, array(per_sequence))
    total = per_sequence.sum(0)
    return dx, total[:-1].t().clone(memory_format=torch.contiguous_format), total[-1].clone()


@_causal_conv_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # signature fixed by torch.library
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy):  # type: ignore[no-untyped-def]
    return torch.ops.scaling.causal_conv_backward(dy, *ctx.saved_tensors)


torch.library.register_autograd("scaling::causal_conv", _differentiate, setup_context=_save)


@numba.njit(parallel=True, fastmath=FLAGS, error_model="numpy", cache=True)
def _forward(x, x_stride, taps, bias, batch, time, y):  # type: ignore[no-untyped-def]
    count, channels = taps.shape
    for b in numba.prange(batch):
        for t in range(time):
            row = b * time + t
            out = y[row]
            out[:] = bias
            for k in range(max(0, count - 1 - t), count):
                start = (row - count + 1 + k) * x_stride
                source, tap = x[start : start + channels], taps[k]
                for c in range(channels):
                    out[c] += tap[c] * source[c]
            for c in range(channels):
                out[c] *= sigmoid(out[c])


@numba.njit(parallel=True, fastmath=FLAGS, error_model="numpy", cache=True)
def _backward(x, x_stride, dy, dy_stride, taps, bias, batch, time, dx, per_sequence):  # type: ignore[no-untyped-def]
    count, channels = taps.shape
    for b in numba.prange(batch):
        before = np.empty(channels, np.float32)
        for t in range(time):
            row = b * time + t
            first = max(0, count - 1 - t)
            before[:] = bias
            for k in range(first, count):
                start = (row - count + 1 + k) * x_stride
                source, tap = x[start : start + channels], taps[k]
                for c in range(channels):
                    before[c] += tap[c] * source[c]
            above, d_bias = dy[row * dy_stride : row * dy_stride + channels], per_sequence[b, count]
            for c in range(channels):
                s = sigmoid(before[c])
                before[c] = above[c] * s * (F(1.0) + before[c] * (F(1.0) - s))
                d_bias[c] += before[c]
            for k in range(first, count):
                start = (row - count + 1 + k) * x_stride
                source, tap, d_tap = x[start : start + channels], taps[k], per_sequence[b, k]
                d_source = dx[row - count + 1 + k]
                for c in range(channels):
                    d_source[c] += before[c] * tap[c]
                    d_tap[c] += before[c] * source[c]
