"""Pictures as embeddings: DQN's three convolutions (Mnih et al. 2015), as in the Decision Transformer's Atari code.

    32 of 8 x 8, step 4;  64 of 4 x 4, step 2;  64 of 3 x 3, step 1;  ReLU after each;  linear;  tanh

Pictures travel as single frames of one byte per pixel and are stacked here, so a window of T states holds T + frames
- 1 pictures and not T x frames.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from scaling.spec import ModelSpec

SIDE = 84
"""Pixels along each side of a picture."""
CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel, step of each."""
SIDES = (20, 9, 7)
"""Pixels along each side after each convolution."""
FLAT = CONVOLUTIONS[-1][0] * SIDES[-1] ** 2


def conv_encoder(spec: ModelSpec) -> nn.Sequential:
    """From stacked pictures in [0, 1], (n, frames, side, side), to embeddings, (n, width)."""
    modules: list[nn.Module] = []
    channels = spec.frames
    for out, kernel, step in CONVOLUTIONS:
        modules += [nn.Conv2d(channels, out, kernel, step), nn.ReLU()]
        channels = out
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(FLAT, spec.width), nn.Tanh())


def encode(
    encoder: nn.Module, pictures: UInt8[Tensor, "batch picture side side"], frames: int
) -> Float[Tensor, "batch time width"]:
    """One embedding per state; the state at time t is made of the pictures t ... t + frames - 1 of its window."""
    batch, count = pictures.shape[:2]
    time = count - frames + 1
    index = torch.arange(time, device=pictures.device)[:, None] + torch.arange(frames, device=pictures.device)
    weight = next(encoder.parameters())
    stacks = pictures[:, index].flatten(0, 1).to(weight.dtype) / 255
    embedded: Tensor = encoder(stacks)
    return embedded.unflatten(0, (batch, time))


def count(spec: ModelSpec) -> int:
    """Parameters."""
    total, channels = FLAT * spec.width + spec.width, spec.frames
    for out, kernel, _ in CONVOLUTIONS:
        total += out * channels * kernel**2 + out
        channels = out
    return total


def flops(spec: ModelSpec) -> int:
    """Forward floating-point operations for one state."""
    total, channels = 2 * FLAT * spec.width, spec.frames
    for (out, kernel, _), side in zip(CONVOLUTIONS, SIDES, strict=True):
        total += 2 * out * channels * kernel**2 * side**2
        channels = out
    return total
