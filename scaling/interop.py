"""Weights of other codes: the Decision Transformer's checkpoints in its authors' layout, ours from theirs and back.

Layouts of https://github.com/kzl/decision-transformer: ``gym`` on GPT-2, whose linear maps are transposed, and
``atari`` on minGPT, whose attention keeps query, key and value apart. A block of mamba-ssm needs no conversion: ours
has its names.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from scaling.errors import UserError

GYM = {
    "transformer.wte": "unused.wte",
    "predict_state": "unused.predict_state",
    "predict_return": "unused.predict_return",
    "embed_timestep": "stem.embed_timestep",
    "embed_return": "stem.embed_rtg",
    "embed_state": "stem.embed_state",
    "embed_action": "stem.embed_action",
    "embed_ln": "stem.norm",
    "transformer.ln_f": "head.norm",
    "predict_action.0": "head.out",
    "transformer.h.#.ln_1": "layers.#.norm",
    "transformer.h.#.attn.c_attn": "layers.#.mixer.qkv",
    "transformer.h.#.attn.c_proj": "layers.#.mixer.out",
    "transformer.h.#.ln_2": "layers.#.ffn_norm",
    "transformer.h.#.mlp.c_fc": "layers.#.ffn.0",
    "transformer.h.#.mlp.c_proj": "layers.#.ffn.2",
}
"""Modules there and here; # is the number of a layer."""

ATARI = {
    "tok_emb": "unused.tok_emb",
    "ret_emb.0": "stem.embed_rtg",
    "state_encoder.0": "stem.embed_state.0",
    "state_encoder.2": "stem.embed_state.2",
    "state_encoder.4": "stem.embed_state.4",
    "state_encoder.7": "stem.embed_state.7",
    "action_embeddings.0": "stem.embed_action",
    "ln_f": "head.norm",
    "head": "head.out",
    "blocks.#.ln1": "layers.#.norm",
    "blocks.#.attn.proj": "layers.#.mixer.out",
    "blocks.#.ln2": "layers.#.ffn_norm",
    "blocks.#.mlp.0": "layers.#.ffn.0",
    "blocks.#.mlp.2": "layers.#.ffn.2",
}
TABLES = {"pos_emb": "stem.embed_position.weight", "global_pos_emb": "stem.embed_window.weight"}
"""Parameters of the Atari code that carry a batch axis of one."""
QKV = ("query", "key", "value")

MASK = re.compile(r"\.attn\.(bias|masked_bias|mask)$")
"""Buffers of the original: its causal mask."""


def from_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of our Decision Transformer with the weights of an original checkpoint, of either code.

    Raises:
        UserError: a weight of neither layout.

    """
    weights = {name: value for name, value in state_dict.items() if not MASK.search(name)}
    modules = {**GYM, **ATARI}
    loaded: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in TABLES:
            loaded[TABLES[name]] = value[0]
        elif re.search(r"\.attn\.query\.", name):
            parts = [weights[name.replace(".query.", f".{part}.")] for part in QKV]
            loaded[_translate(name.replace("attn.query", "attn.qkv"), {"blocks.#.attn.qkv": "layers.#.mixer.qkv"})] = (
                torch.cat(parts)
            )
        elif not re.search(r"\.attn\.(key|value)\.", name):
            loaded[_translate(name, modules)] = value.T if _is_transposed(name) else value
    return loaded


def to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An original checkpoint with the weights of our Decision Transformer; its Atari layout where the stem is Atari's.

    Raises:
        UserError: the weights are not a Decision Transformer's.

    """
    atari = "stem.norm.weight" not in state_dict
    modules = {ours: theirs for theirs, ours in (ATARI if atari else GYM).items()}
    tables = {ours: theirs for theirs, ours in TABLES.items()}
    written: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if name in tables:
            written[tables[name]] = value[None]
        elif atari and ".mixer.qkv." in name:
            for part, piece in zip(QKV, value.chunk(3), strict=True):
                written[_translate(name, {"layers.#.mixer.qkv": f"blocks.#.attn.{part}"})] = piece
        else:
            there = _translate(name, modules)
            written[there] = value.T if _is_transposed(there) else value
    return written


def _is_transposed(name: str) -> bool:
    """Whether GPT-2 keeps this weight as (in, out)."""
    return re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name) is not None


def _translate(name: str, modules: Mapping[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    layer = re.search(r"(?<=layers\.|blocks\.)\d+|(?<=transformer\.h\.)\d+", module)
    number = layer.group() if layer else ""
    key = module[: layer.start()] + "#" + module[layer.end() :] if layer else module
    if key not in modules:
        raise UserError(f"not a Decision Transformer of the original layout: unknown weight {name!r}")
    return f"{modules[key].replace('#', number)}.{leaf}"
