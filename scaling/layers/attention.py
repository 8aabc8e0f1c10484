"""Causal multi-head self-attention, as in GPT-2 (Radford et al. 2019).

q, k, v = W u + b;   out = W_o softmax(q k^T / sqrt(d_head), over the past) v + b_o
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scaling.spec import ModelSpec


class Attention(nn.Module):
    """Attention of every token to itself and to earlier ones; dropout on its weights and on its output."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.dropout = spec.heads, spec.dropout
        self.qkv = nn.Linear(spec.width, 3 * spec.width)
        self.out = nn.Linear(spec.width, spec.width)
        self.out_dropout = nn.Dropout(spec.dropout)

    def forward(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """What attention adds to the residual stream."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.qkv(u).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        attended: Tensor = self.out_dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return attended


def count(spec: ModelSpec) -> int:
    """Parameters."""
    return 4 * spec.width**2 + 4 * spec.width


def flops(spec: ModelSpec, tokens: int) -> int:
    """Forward floating-point operations for a window; products with the future are counted, since they are computed."""
    return 8 * tokens * spec.width**2 + 4 * tokens**2 * spec.width
