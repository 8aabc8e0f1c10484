"""MambaDM (Cao et al. 2024, arXiv 2406.02013): a decision sequence mixed at two scales by GLoMa layers.

    u = LN(x);  x <- x + Mamba_g(u) + Mamba_l(sub-sequences of u)     (Eq. 10: addition with equal weights)
    x <- x + FFN(LN(x)),  FFN = Linear -> GELU -> Linear -> dropout, four times wider inside

The authors released no code; this is a reading with the fewest assumptions, each marked.

CHOICE: a sub-sequence is a whole number of timesteps, not of tokens, so that no (R, s, a) is cut.
CHOICE: sub-sequences do not overlap and share one Mamba, as in the Multi-Grained Decision Mamba; GLAM overlaps them.
CHOICE: they are counted from the window's first timestep; windows slide the same way in training and in rollouts.
CHOICE: pre-norm, one norm for both branches, residual around their sum, as in Decision Mamba's block.
CHOICE: PyTorch's initialisation of linear layers and mamba-ssm's of the blocks. The public Decision Mamba draws all
weights from N(0, 0.02^2), which also zeroes the step-size bias.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scaling.layers import mamba, tokens
from scaling.layers.mamba import Mamba
from scaling.spec import ModelSpec, Space


class GLoMa(nn.Module):
    """One layer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width)
        self.global_mamba = Mamba(spec)
        self.local_mamba = Mamba(spec)
        self.ffn_norm = nn.LayerNorm(spec.width)
        self.ffn = nn.Sequential(
            nn.Linear(spec.width, 4 * spec.width),
            nn.GELU(),
            nn.Linear(4 * spec.width, spec.width),
            nn.Dropout(spec.dropout),
        )
        self.tokens_per_part = 3 * spec.subsequence

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The layer's output, residual included."""
        u = self.norm(x)
        x = x + self.global_mamba(u) + self.local(u)
        return x + self.ffn(self.ffn_norm(x))

    def local(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The local branch: its state starts anew with every sub-sequence.

        A last sub-sequence that is too short is filled up on the right, which a causal block cannot notice.
        """
        batch, length, width = u.shape
        part = min(self.tokens_per_part, length)
        missing = -length % part
        folded = functional.pad(u, (0, 0, 0, missing)) if missing else u
        mixed = self.local_mamba(folded.reshape(-1, part, width))
        return mixed.reshape(batch, length + missing, width)[:, :length]


class Model(nn.Module):
    """Predicts the action of every timestep of a window from what precedes it."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__()
        self.stem = tokens.TokenStem(spec, space)
        self.layers = nn.Sequential(*(GLoMa(spec) for _ in range(spec.depth)))
        self.head = tokens.ActionHead(spec, space)

    def forward(
        self,
        rtg: Float[Tensor, "batch time"],
        state: Float[Tensor, "batch time state"],
        action: Float[Tensor, "batch time action"] | Int[Tensor, "batch time"],
        timestep: Int[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time action"]:
        """Actions in [-1, 1], or logits; the last timestep's own action is not used."""
        x: Tensor = self.layers(self.stem(rtg, state, action, timestep))
        return self.head(x)


def count(spec: ModelSpec, space: Space) -> dict[str, int]:
    """Trainable parameters: ``N_blocks``, ``N`` (all but input embeddings) and ``N_total``."""
    ffn = 8 * spec.width**2 + 5 * spec.width
    blocks = spec.depth * (2 * mamba.count(spec) + ffn + 4 * spec.width)
    n = blocks + tokens.count_ends(spec, space)
    return {"N_blocks": blocks, "N": n, "N_total": n + tokens.count_embeddings(spec, space)}


def flops(spec: ModelSpec, space: Space, time: int) -> int:
    """Forward floating-point operations for one window of ``time`` timesteps."""
    part = min(spec.subsequence, time)
    local_time = time + -time % part
    ffn = 16 * spec.width**2
    layer = 3 * (time * (mamba.flops(spec) + ffn) + local_time * mamba.flops(spec))
    return spec.depth * layer + time * tokens.flops(spec, space)
