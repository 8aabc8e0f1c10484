"""The Triton kernels of :mod:`scaling.ops.selective_scan`: a program for each sequence and block of channels.

A program goes through time with its states in registers. The way there leaves the states from which each segment of
tokens starts; the way back finds those within a segment again and keeps them in a scratch of the program's own. No
tensor holds a state for each token, no sum is atomic, and nothing waits for the host. All is computed in single
precision. This module is imported only where it is called: Triton comes with PyTorch's CUDA builds alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SEGMENT = 16
"""Tokens between saved states."""

MOST_CHANNELS, CELLS = 32, 512
"""Of a block: channels, and channels times states, which a warp holds in registers."""


@triton.jit
def _loaded(x, at, mask):  # type: ignore[no-untyped-def]
    """Numbers in single precision, zeros where the mask says no."""
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _of_member(A, D, bias, own, state, states, has_c, has_both):  # type: ignore[no-untyped-def]
    """The parameters of a block of a member's channels."""
    a = _loaded(A, own[:, None] * states + state[None, :], has_both)
    return a, _loaded(D, own, has_c), _loaded(bias, own, has_c)


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x); the quotient undoes the rounding of 1 + e^-|x|, which would cost short steps their digits."""
    small = tl.exp(-tl.abs(x))
    rounded = 1.0 + small
    lost = rounded == 1.0
    return tl.maximum(x, 0.0) + tl.where(lost, small, tl.log(rounded) * (small / tl.where(lost, 1.0, rounded - 1.0)))


@triton.jit
def _advanced(h, a, dt, u, b):  # type: ignore[no-untyped-def]
    """The state after a token, (channel, state)."""
    return tl.exp(dt[:, None] * a) * h + (dt * u)[:, None] * b[None, :]


@triton.jit
def _token_back(dy, u, step, b, c, z, before, dh, a, d):  # type: ignore[no-untyped-def]
    """Gradients at a token: of u, delta, B, C and z, what it adds to those of A and D, and that of the state before.

    ``step`` is delta + delta_bias, ``before`` the state before the token, ``dh`` the gradient of that after it.
    """
    dt, opened = _softplus(step), tl.sigmoid(z)
    h = _advanced(before, a, dt, u, b)
    read = tl.sum(h * c[None, :], axis=1) + d * u
    d_read = dy * z * opened
    dz = dy * read * opened * (1.0 + z * (1.0 - opened))
    dC = tl.sum(d_read[:, None] * h, axis=0)
    dh += d_read[:, None] * c[None, :]
    dB = tl.sum(dh * (dt * u)[:, None], axis=0)
    driven = tl.sum(dh * b[None, :], axis=1)
    dh *= tl.exp(dt[:, None] * a)
    d_step = (tl.sum(dh * before * a, axis=1) + driven * u) * tl.sigmoid(step)
    return d * d_read + dt * driven, d_step, dB, dC, dz, dh * before * dt[:, None], d_read * u, dh


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    u, delta, A, B, C, D, z, bias,
    y, starts,
    time, channels, states, each,
    SEGMENT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The output, and the state at the start of each segment."""
    sequence = tl.program_id(0).to(tl.int64)
    channel, state = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    has_c, has_n = channel < channels, state < states
    has_both = has_c[:, None] & has_n[None, :]
    a, d, shift = _of_member(A, D, bias, sequence // each * channels + channel, state, states, has_c, has_both)
    segments = tl.cdiv(time, SEGMENT)
    h = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    for segment in range(segments):
        start = (sequence * segments + segment) * channels + channel
        tl.store(starts + start[:, None] * states + state[None, :], h, mask=has_both)
        for t in range(segment * SEGMENT, tl.minimum(time, (segment + 1) * SEGMENT)):
            at_c, at_n = (sequence * time + t) * channels + channel, (sequence * time + t) * states + state
            x, gate = _loaded(u, at_c, has_c), _loaded(z, at_c, has_c)
            dt = _softplus(_loaded(delta, at_c, has_c) + shift)
            h = _advanced(h, a, dt, x, _loaded(B, at_n, has_n))
            read = tl.sum(h * _loaded(C, at_n, has_n)[None, :], axis=1) + d * x
            tl.store(y + at_c, read * gate * tl.sigmoid(gate), mask=has_c)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    dy, u, delta, A, B, C, D, z, bias, starts, scratch,
    du, d_delta, dA, dB, dC, dD, dz, d_bias,
    time, channels, states, each,
    SEGMENT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients: those of B and C in parts, one for each block of channels, those of parameters for each sequence."""
    sequence, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    lane, state = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    channel = block * BLOCK_C + lane
    has_c, has_n = channel < channels, state < states
    has_both = has_c[:, None] & has_n[None, :]
    a, d, shift = _of_member(A, D, bias, sequence // each * channels + channel, state, states, has_c, has_both)
    kept = scratch + (sequence * blocks + block) * (SEGMENT * BLOCK_C * BLOCK_N)
    kept += lane[:, None] * BLOCK_N + state[None, :]
    segments = tl.cdiv(time, SEGMENT)
    dh, sum_a = tl.zeros((BLOCK_C, BLOCK_N), tl.float32), tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    sum_d, sum_shift = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for back in range(segments):
        segment = segments - 1 - back
        first, end = segment * SEGMENT, tl.minimum(time, (segment + 1) * SEGMENT)
        start = (sequence * segments + segment) * channels + channel
        h = _loaded(starts, start[:, None] * states + state[None, :], has_both)
        tl.debug_barrier()  # what threads read of the scratch must be read before others write it anew ...
        for t in range(first, end):
            at_c, at_n = (sequence * time + t) * channels + channel, (sequence * time + t) * states + state
            tl.store(kept + (t - first) * (BLOCK_C * BLOCK_N), h)
            dt = _softplus(_loaded(delta, at_c, has_c) + shift)
            h = _advanced(h, a, dt, _loaded(u, at_c, has_c), _loaded(B, at_n, has_n))
        tl.debug_barrier()  # ... and all be written before it is read
        for before in range(end - first):
            t = end - 1 - before
            token = sequence * time + t
            at_c, at_n, part = token * channels + channel, token * states + state, (token * blocks + block) * states
            x, gate, upstream = _loaded(u, at_c, has_c), _loaded(z, at_c, has_c), _loaded(dy, at_c, has_c)
            step, b, c = _loaded(delta, at_c, has_c) + shift, _loaded(B, at_n, has_n), _loaded(C, at_n, has_n)
            h = tl.load(kept + (t - first) * (BLOCK_C * BLOCK_N))
            to_u, to_delta, to_b, to_c, to_z, to_a, to_d, dh = _token_back(upstream, x, step, b, c, gate, h, dh, a, d)
            tl.store(du + at_c, to_u, mask=has_c)
            tl.store(d_delta + at_c, to_delta, mask=has_c)
            tl.store(dz + at_c, to_z, mask=has_c)
            tl.store(dB + part + state, to_b, mask=has_n)
            tl.store(dC + part + state, to_c, mask=has_n)
            sum_a, sum_d, sum_shift = sum_a + to_a, sum_d + to_d, sum_shift + to_delta
    summed = sequence * channels + channel
    tl.store(dA + summed[:, None] * states + state[None, :], sum_a, mask=has_both)
    tl.store(dD + summed, sum_d, mask=has_c)
    tl.store(d_bias + summed, sum_shift, mask=has_c)


def _block(u: Tensor, A: Tensor) -> tuple[int, int, int]:
    """Blocks of channels, the channels of each, and states, padded to what Triton can hold."""
    states = triton.next_power_of_2(A.shape[-1])
    high = max(1, min(MOST_CHANNELS, CELLS // states))
    return triton.cdiv(u.shape[2], high), high, states


def _launch(kernel: Any, given: Sequence[Tensor], u: Tensor, A: Tensor) -> None:
    """Queue a kernel; A may have an axis of members, whose sequences follow each other."""
    (batch, time, channels), (blocks, high, wide) = u.shape, _block(u, A)
    sizes = time, channels, A.shape[-1], batch // A.shape[:-2].numel()
    with torch.cuda.device_of(u):
        kernel[batch, blocks](*given, *sizes, SEGMENT, high, wide, num_warps=1, enable_fp_fusion=True)


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The output, and the states (batch, segment, channel, state) at the start of each segment."""
    given = [x.contiguous() for x in (u, delta, A, B, C, D, z, bias)]
    batch, time, channels = u.shape
    y = u.new_empty(u.shape, dtype=torch.float32)
    starts = y.new_empty(batch, triton.cdiv(time, SEGMENT), channels, A.shape[-1])
    _launch(_forward_kernel, [*given, y, starts], u, A)
    return y, starts


def _backward(dy: Tensor, starts: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each input."""
    u, delta, A, B, C, D, z, bias = given = [x.contiguous() for x in inputs]
    (batch, time, _), (blocks, high, wide) = u.shape, _block(u, A)
    du, d_delta, dz = (torch.empty_like(x) for x in (u, delta, z))
    dB, dC = (starts.new_empty(batch, time, blocks, A.shape[-1]) for _ in (B, C))
    dA, dD, d_bias = (starts.new_empty(batch, *shape) for shape in (A.shape[-2:], D.shape[-1:], bias.shape[-1:]))
    scratch = starts.new_empty(batch, blocks, SEGMENT, high, wide)
    found = [du, d_delta, dA, dB, dC, dD, dz, d_bias]
    _launch(_backward_kernel, [dy.contiguous(), *given, starts, scratch, *found], u, A)
    dA, dD, d_bias = (_of_members(x, like) for x, like in ((dA, A), (dD, D), (d_bias, bias)))
    return [du, d_delta, dA, dB.sum(2), dC.sum(2), dD, dz, d_bias]


def _of_members(x: Tensor, like: Tensor) -> Tensor:
    """What each sequence adds to a parameter's gradient, summed over those of each member: the parameter's shape."""
    per_sequence = x.shape[1:]
    return x.view(like.shape[: like.ndim - len(per_sequence)].numel(), -1, *per_sequence).sum(1).view(like.shape)


_LIBRARY = torch.library.Library("scaling", "FRAGMENT")
"""The kernels are operators, so that a profiler knows them by name; on a CPU, Triton's interpreter runs them."""
_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor z, Tensor delta_bias"
_LIBRARY.define(f"selective_scan({_INPUTS}) -> (Tensor, Tensor)")
_LIBRARY.define("selective_scan_backward(Tensor dy, Tensor starts, Tensor[] inputs) -> Tensor[]")
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("selective_scan", _forward, _device)
    _LIBRARY.impl("selective_scan_backward", _backward, _device)
