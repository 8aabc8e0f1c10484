"""Causal multi-head self-attention, as in GPT-2 (Radford et al. 2019).

q, k, v = W u + b;   out = W_o softmax(q k^T / sqrt(d_head), over the past) v + b_o
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scaling.layers.dropout import Dropout
from scaling.spec import ModelSpec

Heads = Float[Tensor, "batch head token channel"]


class Attention(nn.Module):
    """Attention of every token to itself and to earlier ones; dropout on its weights and on its output."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.dropout = Dropout(spec.dropout)
        self.qkv = nn.Linear(spec.width, 3 * spec.width)
        self.out = nn.Linear(spec.width, spec.width)
        self.out_dropout = Dropout(spec.dropout)

    def forward(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """What attention adds to the residual stream."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.qkv(u).chunk(3, dim=-1))
        mixed = self._in_parts(q, k, v) if self.dropout.draws(u.device) else self._whole(q, k, v)
        attended: Tensor = self.out_dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return attended

    def _whole(self, q: Heads, k: Heads, v: Heads) -> Heads:
        p = self.dropout.p if self.training else 0.0
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)

    def _in_parts(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """The same with dropout of our own, and without a fused kernel, over which nothing can be mapped."""
        tokens = q.shape[-2]
        past = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
        scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~past, -math.inf)
        return self.dropout(scores.softmax(-1)) @ v


def count(spec: ModelSpec) -> int:
    """Parameters."""
    return 4 * spec.width**2 + 4 * spec.width


def flops(spec: ModelSpec, tokens: int) -> int:
    """Forward floating-point operations for a window; products with the future are counted, since they are computed."""
    return 8 * tokens * spec.width**2 + 4 * tokens**2 * spec.width
