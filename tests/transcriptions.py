"""Slow forward passes of the models, written from the public sources, to compare values and gradients with.

Every model is a plain function of its weights `w`, a dict from parameter names to float64 tensors, in evaluation mode
(no dropout). All loops over time, heads and windows are written out; nothing is fused, cached or batched over them.

Shapes: B batch, T timesteps, L tokens (3 for each timestep: return-to-go, state, action), d width.

Sources, by the short names used below:

- kzl: github.com/kzl/decision-transformer, the Decision Transformer (arXiv 2106.01345);
- ota: github.com/Toshihiro-Ota/decision-mamba, DMamba (arXiv 2403.19925);
- mamba_ssm: github.com/state-spaces/mamba, Mamba (arXiv 2312.00752);
- MambaDM: arXiv 2406.02013.
"""

import math
from itertools import count

import torch
from torch import Tensor
from torch.nn.functional import conv2d

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """W x + b with W (out, in); the bias may be absent."""
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) over the channels, the variance divided by d, then scale and shift."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def relu(x: Tensor) -> Tensor:
    """max(x, 0), with slope 0 at 0."""
    return torch.where(x > 0, x, torch.zeros_like(x))


def gelu(x: Tensor) -> Tensor:
    """x times the Gaussian distribution function at x, exactly."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x * torch.sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x)."""
    return torch.logaddexp(x, torch.zeros_like(x))


def softmax(scores: Tensor) -> Tensor:
    """exp(scores) / sum of exp(scores) along the last axis, shifted by the largest score."""
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values.detach())
    return weights / weights.sum(dim=-1, keepdim=True)


def depth(w: Weights, name: str) -> int:
    """How many of `name`.0, `name`.1, ... there are."""
    return next(i for i in count() if not any(key.startswith(f"{name}.{i}.") for key in w))


def interleave(rtg: Tensor, state: Tensor, action: Tensor) -> Tensor:
    """(B, 3T, d) tokens R_0, s_0, a_0, R_1, s_1, a_1, ... of three (B, T, d)."""
    tokens = []
    for t in range(state.shape[1]):
        tokens += [rtg[:, t], state[:, t], action[:, t]]
    return torch.stack(tokens, dim=1)


def image_embedding(w: Weights, name: str, stacks: Tensor) -> Tensor:
    """(B, T, d) of stacks (B, T, 4, 84, 84) in [0, 1] (kzl, atari/mingpt/model_atari.py: state_encoder).

    Convolutions 8x8 by 4, 4x4 by 2 and 3x3 by 1, each with ReLU; flatten; linear; tanh.
    """
    batch, time = stacks.shape[:2]
    x = stacks.reshape(batch * time, *stacks.shape[2:])
    for layer, stride in ((0, 4), (2, 2), (4, 1)):
        x = relu(conv2d(x, w[f"{name}.{layer}.weight"], w[f"{name}.{layer}.bias"], stride=stride))
    x = torch.tanh(linear(w, f"{name}.7", x.reshape(batch * time, -1)))
    return x.reshape(batch, time, -1)


def causal_convolution(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """y_t[c] = b[c] + sum_j weight[c, 0, j] x_{t-(k-1)+j}[c], x zero before the start; x (B, L, channels)."""
    kernel = weight.shape[-1]
    outputs = []
    for t in range(x.shape[1]):
        y = bias.expand_as(x[:, t])
        for j in range(kernel):
            source = t - (kernel - 1) + j
            if source >= 0:
                y = y + weight[:, 0, j] * x[:, source]
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence of Mamba, from a state of zero (mamba_ssm, ops/selective_scan_interface.py: selective_scan_ref).

    h_t[c, n] = exp(delta_t[c] A[c, n]) h_{t-1}[c, n] + delta_t[c] B_t[n] x_t[c]
    y_t[c] = sum_n C_t[n] h_t[c, n] + D[c] x_t[c]

    x and delta (B, L, channels), A (channels, n), B and C (B, L, n), D (channels).
    """
    h = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        h = decay * h + delta[:, t, :, None] * B[:, t, None, :] * x[:, t, :, None]
        outputs.append((C[:, t, None, :] * h).sum(dim=-1) + D * x[:, t])
    return torch.stack(outputs, dim=1)


def mamba(w: Weights, prefix: str, u: Tensor) -> Tensor:
    """The Mamba block, (B, L, d) to (B, L, d) (mamba_ssm, modules/mamba_simple.py: Mamba.forward, slow path).

    [x, z] = in_proj u;  x = silu(conv1d x);  [dt, B, C] = x_proj x;  delta = softplus(dt_proj dt);
    y = out_proj(selective_scan(x) silu(z)) with A = -exp(A_log).  The prefix may end in a dot or not, or be empty.
    """
    start = f"{prefix.rstrip('.')}." if prefix else ""
    w = {key.removeprefix(start): value for key, value in w.items() if key.startswith(start)}
    inner, states = w["A_log"].shape
    rank = w["dt_proj.weight"].shape[1]
    both = linear(w, "in_proj", u)
    x, z = both[..., :inner], both[..., inner:]
    x = silu(causal_convolution(w["conv1d.weight"], w["conv1d.bias"], x))
    projected = linear(w, "x_proj", x)
    dt, B, C = projected[..., :rank], projected[..., rank : rank + states], projected[..., rank + states :]
    delta = softplus(linear(w, "dt_proj", dt))
    y = selective_scan(x, delta, -torch.exp(w["A_log"]), B, C, w["D"])
    return linear(w, "out_proj", y * silu(z))


def causal_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Token i of every head averages the values of tokens 0..i, with weights softmax(q_i . k_j / sqrt(d / heads)).

    (B, L, d) each; the heads are consecutive slices of the channels, and are put side by side again.
    """
    size = query.shape[-1] // heads
    outputs = []
    for i in range(query.shape[1]):
        of_heads = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = query[:, i, part], key[:, : i + 1, part], value[:, : i + 1, part]
            weights = softmax((q[:, None, :] * k).sum(dim=-1) / math.sqrt(size))
            of_heads.append((weights[:, :, None] * v).sum(dim=1))
        outputs.append(torch.cat(of_heads, dim=-1))
    return torch.stack(outputs, dim=1)


def conv1d(w: Weights, name: str, x: Tensor) -> Tensor:
    """x W + b with W (in, out), as GPT-2 keeps its linear maps (transformers, modeling_utils.py: Conv1D)."""
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def decision_transformer_gym(
    w: Weights, rtg: Tensor, state: Tensor, action: Tensor, timestep: Tensor, heads: int, activation: str
) -> Tensor:
    """(B, T, A) actions from rtg (B, T), state (B, T, S), action (B, T, A), timestep (B, T).

    kzl, gym/decision_transformer/models/decision_transformer.py: DecisionTransformer.forward, and
    trajectory_gpt2.py: Attention, MLP, Block, GPT2Model, whose names the weights keep.
    """
    time = w["embed_timestep.weight"][timestep]
    tokens = interleave(
        linear(w, "embed_return", rtg[..., None]) + time,
        linear(w, "embed_state", state) + time,
        linear(w, "embed_action", action) + time,
    )
    x = layer_norm(w, "embed_ln", tokens)
    for i in range(depth(w, "transformer.h")):
        block = f"transformer.h.{i}"
        projected = conv1d(w, f"{block}.attn.c_attn", layer_norm(w, f"{block}.ln_1", x))
        mixed = causal_attention(*projected.chunk(3, dim=-1), heads)
        x = x + conv1d(w, f"{block}.attn.c_proj", mixed)
        hidden = conv1d(w, f"{block}.mlp.c_fc", layer_norm(w, f"{block}.ln_2", x))
        x = x + conv1d(w, f"{block}.mlp.c_proj", {"relu": relu, "gelu": gelu}[activation](hidden))
    x = layer_norm(w, "transformer.ln_f", x)
    return torch.tanh(linear(w, "predict_action.0", x[:, 1::3]))


def decision_transformer_atari(
    w: Weights, rtg: Tensor, stacks: Tensor, action: Tensor, timestep: Tensor, heads: int
) -> Tensor:
    """(B, T, A) logits from rtg (B, T), stacks (B, T, 4, 84, 84) in [0, 1], action (B, T), timestep (B, T).

    kzl, atari/mingpt/model_atari.py: CausalSelfAttention, Block, GPT.forward (reward-conditioned, with all T actions).
    The timestep of a window's first step gives all its tokens one more embedding.
    """
    tokens = interleave(
        torch.tanh(linear(w, "ret_emb.0", rtg[..., None])),
        image_embedding(w, "state_encoder", stacks),
        torch.tanh(w["action_embeddings.0.weight"][action]),
    )
    window = w["global_pos_emb"][0, timestep[:, 0]]
    x = tokens + window[:, None, :] + w["pos_emb"][0, : tokens.shape[1]]
    for i in range(depth(w, "blocks")):
        block = f"blocks.{i}"
        u = layer_norm(w, f"{block}.ln1", x)
        query, key, value = (linear(w, f"{block}.attn.{name}", u) for name in ("query", "key", "value"))
        x = x + linear(w, f"{block}.attn.proj", causal_attention(query, key, value, heads))
        hidden = gelu(linear(w, f"{block}.mlp.0", layer_norm(w, f"{block}.ln2", x)))
        x = x + linear(w, f"{block}.mlp.2", hidden)
    return linear(w, "head", layer_norm(w, "ln_f", x)[:, 1::3])


def stem(w: Weights, rtg: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
    """(B, 3T, d) tokens of DMamba and GLoMa; those for Gym have `stem.norm`, those for Atari have not."""
    images = "stem.embed_state.0.weight" in w
    of_rtg = linear(w, "stem.embed_rtg", rtg[..., None])
    of_state = image_embedding(w, "stem.embed_state", state) if images else linear(w, "stem.embed_state", state)
    continuous = action.is_floating_point()
    of_action = linear(w, "stem.embed_action", action) if continuous else w["stem.embed_action.weight"][action]
    if "stem.norm.weight" in w:
        return gym_tokens(w, of_rtg, of_state, of_action, timestep)
    of_state = of_state if images else torch.tanh(of_state)
    return atari_tokens(w, torch.tanh(of_rtg), of_state, torch.tanh(of_action), timestep)


def gym_tokens(w: Weights, rtg: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
    """The embedding of the timestep, if any, added to its three tokens; norm (ota, gym/models/decision_mamba.py)."""
    if "stem.embed_timestep.weight" in w:
        time = w["stem.embed_timestep.weight"][timestep]
        rtg, state, action = rtg + time, state + time, action + time
    return layer_norm(w, "stem.norm", interleave(rtg, state, action))


def atari_tokens(w: Weights, rtg: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
    """Embeddings of the window's first timestep and of the token's index added (ota, atari/mingpt/model_atari.py)."""
    tokens = interleave(rtg, state, action)
    if "stem.embed_window.weight" not in w:
        return tokens
    window = w["stem.embed_window.weight"][timestep[:, 0]]
    return tokens + window[:, None, :] + w["stem.embed_position.weight"][: tokens.shape[1]]


def feed_forward(w: Weights, layer: str, x: Tensor) -> Tensor:
    """x + W_2 gelu(W_0 norm(x)), or x where there is no such network (ota, gym/models/layers.py: Block)."""
    if f"{layer}.ffn.0.weight" not in w:
        return x
    hidden = gelu(linear(w, f"{layer}.ffn.0", layer_norm(w, f"{layer}.ffn_norm", x)))
    return x + linear(w, f"{layer}.ffn.2", hidden)


def predict(w: Weights, x: Tensor, continuous: bool) -> Tensor:
    """(B, T, A): norm and linear map of the state tokens, then tanh if the actions are continuous."""
    y = linear(w, "head.out", layer_norm(w, "head.norm", x[:, 1::3]))
    return torch.tanh(y) if continuous else y


def dmamba(w: Weights, rtg: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
    """x = x + mamba(norm x), then the feed-forward network, layer by layer (ota, gym/models/layers.py: Block)."""
    x = stem(w, rtg, state, action, timestep)
    for i in range(depth(w, "layers")):
        x = x + mamba(w, f"layers.{i}.mixer.", layer_norm(w, f"layers.{i}.norm", x))
        x = feed_forward(w, f"layers.{i}", x)
    return predict(w, x, action.is_floating_point())


def local_mamba(w: Weights, prefix: str, u: Tensor, subsequence: int, overlap: int) -> Tensor:
    """Mamba over windows of `subsequence` timesteps, each from a state of zero (MambaDM, the local branch).

    A window starts at every multiple of subsequence - overlap (the paper's text on overlap is not known). The output at
    a timestep is that of the earliest window that contains it. Windows with weights of their own are numbered.
    """
    stride = subsequence - overlap
    own = f"{prefix}0.A_log" in w
    outputs = []
    for t in range(u.shape[1] // 3):
        start = next(start for start in range(0, t + 1, stride) if t < start + subsequence)
        weights = f"{prefix}{start // stride}." if own else prefix
        seen = u[:, 3 * start : 3 * (t + 1)]
        outputs.append(mamba(w, weights, seen)[:, -3:])
    return torch.cat(outputs, dim=1)


def fuse(w: Weights, layer: str, u: Tensor, first: Tensor, second: Tensor, fusion: str, ratio: float) -> Tensor:
    """The two branches' outputs with weights that sum to 2; at ratio 1, their plain sum (MambaDM, eq. 10)."""
    if fusion == "sum":
        return 2 * ratio / (1 + ratio) * first + 2 / (1 + ratio) * second
    s = torch.sigmoid(w[f"{layer}.mix"] if fusion == "learned" else linear(w, f"{layer}.gate", u))
    return 2 * s * first + 2 * (1 - s) * second


def gloma(
    w: Weights,
    rtg: Tensor,
    state: Tensor,
    action: Tensor,
    timestep: Tensor,
    *,
    subsequence: int,
    overlap: int = 0,
    scopes: tuple[str, ...] = ("global", "local"),
    fusion: str = "sum",
    ratio: float = 1.0,
) -> Tensor:
    """u = norm x; x = x + fuse(first(u), second(u)), then the feed-forward network, layer by layer (MambaDM)."""
    x = stem(w, rtg, state, action, timestep)
    for i in range(depth(w, "layers")):
        layer = f"layers.{i}"
        u = layer_norm(w, f"{layer}.norm", x)
        outputs = []
        for name, scope in zip(("first", "second")[: len(scopes)], scopes, strict=True):
            whole, prefix = scope == "global", f"{layer}.{name}."
            outputs.append(mamba(w, prefix, u) if whole else local_mamba(w, prefix, u, subsequence, overlap))
        x = x + (outputs[0] if len(scopes) == 1 else fuse(w, layer, u, *outputs, fusion, ratio))
        x = feed_forward(w, layer, x)
    return predict(w, x, action.is_floating_point())


def bc(w: Weights, rtg: Tensor, state: Tensor, *, conditioned: bool, discrete: bool) -> Tensor:
    """(B, T, A) from each timestep on its own: linear maps with ReLU between, tanh last if the actions are continuous.

    The input is the state, or its embedding if it is an image, after the return-to-go if conditioned.
    """
    x = image_embedding(w, "embed_state", state) if "embed_state.0.weight" in w else state
    x = torch.cat([rtg[..., None], x], dim=-1) if conditioned else x
    h = relu(linear(w, "stem", x))
    for i in range(depth(w, "layers")):
        h = relu(linear(w, f"layers.{i}", h))
    y = linear(w, "head", h)
    return y if discrete else torch.tanh(y)
