"""Every model against a slow, independent transcription, in double precision, values and gradients."""

import dataclasses
import re

import pytest
import torch
import transcriptions
from torch import Tensor, nn

from scaling import interop, plug
from scaling.errors import UserError
from scaling.layers.gloma import SCOPES
from scaling.layers.mamba import Mamba, shape_of
from scaling.spec import ModelSpec, Space

VECTOR, CHOICE = Space(state=5, action=3), Space(state=5, action=4, discrete=True)
PICTURE, PICTURE_VECTOR = Space(state=84, action=4, discrete=True, image=True), Space(state=84, action=2, image=True)
SPACES = [VECTOR, CHOICE, PICTURE, PICTURE_VECTOR]
TIME = 5


def small(kind: str, space: Space, **changes) -> ModelSpec:
    values = {
        "width": 8,
        "depth": 2,
        "context": TIME,
        "subsequence": 2,
        "dropout": 0.0,
        "max_timestep": 30,
        "d_state": 3,
    }
    values["encoder"] = "conv" if space.image else "linear"
    return ModelSpec(kind=kind, **{**values, **changes})


def build(spec: ModelSpec, space: Space) -> nn.Module:
    """The network in double precision, no weight left at a special value."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = plug.load("models", spec.kind).Model(spec, space).double()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def window(space: Space) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, TIME)
    state = (
        torch.randint(0, 256, (2, TIME + 3, 84, 84), generator=generator, dtype=torch.uint8)
        if space.image
        else torch.randn(*shape, space.state, generator=generator, dtype=torch.float64)
    )
    action = (
        torch.randint(0, space.action, shape, generator=generator)
        if space.discrete
        else torch.rand(*shape, space.action, generator=generator, dtype=torch.float64) * 2 - 1
    )
    rtg = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return {
        "rtg": rtg,
        "state": state,
        "action": action,
        "timestep": torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]]),
    }


def stacked(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs as the transcriptions take them: pictures stacked four by four, from 0 to 1."""
    state = inputs["state"]
    if state.ndim == 4:
        state = torch.stack([state[:, t : t + 4] for t in range(TIME)], dim=1).double() / 255
    return {**inputs, "state": state}


def agree(model: nn.Module, weights: dict[str, Tensor], mine: Tensor, theirs: Tensor) -> None:
    """Same values, and same gradients to every weight, found in ``weights`` by the model's own names."""
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    direction = torch.randn(mine.shape, generator=torch.Generator().manual_seed(2), dtype=mine.dtype)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours = torch.autograd.grad((mine * direction).sum(), list(trained.values()), allow_unused=True)
    same = torch.autograd.grad((theirs * direction).sum(), [weights[name] for name in trained], allow_unused=True)
    for name, a, b in zip(trained, ours, same, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda said, name=name: f"{name}: {said}")


def leaves(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}


def gloma_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the parts of a GLoMa layer, as the transcription calls them."""
    renamed = {}
    for name, value in weights.items():
        for branch, theirs in (("0", "first"), ("1", "second")):
            name = re.sub(rf"mixer\.branches\.{branch}\.mamba\.", f"{theirs}.", name)
        renamed[name.replace("mixer.fusion.", "")] = value
    return {(re.sub(r"layers\.(\d+)\.mixer\.", r"layers.\1.mixer.", name)): value for name, value in renamed.items()}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("stem", ["gym", "atari"])
@pytest.mark.parametrize(("positions", "ffn"), [(True, True), (False, False)])
def test_decision_mamba(space, stem, positions, ffn):
    spec = small("dmamba", space, stem=stem, positions=positions, ffn=ffn)
    model = build(spec, space)
    weights, inputs = leaves(model), window(space)
    theirs = transcriptions.dmamba(weights, **stacked(inputs))
    agree(model, weights, model(**inputs), theirs)


def compare_gloma(spec: ModelSpec, space: Space) -> None:
    model = build(spec, space)
    weights, inputs = leaves(model), window(space)
    theirs = transcriptions.gloma(
        gloma_names(weights),
        **stacked(inputs),
        subsequence=spec.subsequence,
        overlap=spec.overlap,
        scopes=SCOPES[spec.branches],
        fusion=spec.fusion,
        ratio=spec.ratio,
    )
    agree(model, weights, model(**inputs), theirs)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("stem", ["gym", "atari"])
def test_mambadm_on_every_kind_of_data(space, stem):
    compare_gloma(small("mambadm", space, stem=stem), space)


@pytest.mark.parametrize("branches", list(SCOPES))
@pytest.mark.parametrize("fusion", ["sum", "learned", "gate"])
def test_mambadm_with_every_choice_of_branches_and_fusion(branches, fusion):
    compare_gloma(small("mambadm", VECTOR, branches=branches, fusion=fusion, ratio=2.0), VECTOR)


CUTS = [(w, o) for w in range(1, TIME + 1) for o in range(w)]


@pytest.mark.parametrize(("subsequence", "overlap"), CUTS)
@pytest.mark.parametrize("local_weights", ["shared", "per_window"])
def test_mambadm_with_every_way_of_cutting(subsequence, overlap, local_weights):
    spec = small("mambadm", VECTOR, subsequence=subsequence, overlap=overlap, local_weights=local_weights, depth=1)
    compare_gloma(spec, VECTOR)


@pytest.mark.parametrize(
    "changes",
    [
        {"ffn": False, "positions": False},
        {"d_conv": 1, "expand": 1, "d_state": 1},
        {"d_conv": 2, "local_d_conv": 3, "local_expand": 3, "local_d_state": 5},
        {"dt_init": "zero_bias", "local_dt_init": "log_uniform", "init": "gpt2"},
    ],
)
def test_mambadm_with_other_blocks(changes):
    compare_gloma(small("mambadm", VECTOR, **changes), VECTOR)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_behaviour_cloning(space, conditioned, depth):
    spec = small("bc", space, conditioned=conditioned, depth=depth)
    model = build(spec, space)
    weights, inputs = leaves(model), window(space)
    seen = stacked(inputs)
    theirs = transcriptions.bc(weights, seen["rtg"], seen["state"], conditioned=conditioned, discrete=space.discrete)
    agree(model, weights, model(**inputs), theirs)


def original(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our weights as leaves, and the same leaves in the original's layout."""
    weights = leaves(model)
    return weights, interop.to_original(weights)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_decision_transformer_of_the_gym_code(heads, activation):
    spec = small("decision_transformer", VECTOR, heads=heads, activation=activation)
    model = build(spec, VECTOR)
    weights, theirs = original(model)
    inputs = window(VECTOR)
    predicted = transcriptions.decision_transformer_gym(theirs, **inputs, heads=heads, activation=activation)
    agree(model, weights, model(**inputs), predicted)


@pytest.mark.parametrize("heads", [1, 4])
def test_decision_transformer_of_the_atari_code(heads):
    spec = small("decision_transformer", PICTURE, heads=heads, activation="gelu", stem="atari")
    model = build(spec, PICTURE)
    weights, theirs = original(model)
    inputs = stacked(window(PICTURE))
    predicted = transcriptions.decision_transformer_atari(
        theirs, inputs["rtg"], inputs["state"], inputs["action"], inputs["timestep"], heads=heads
    )
    agree(model, weights, model(**window(PICTURE)), predicted)


def gym_checkpoint(width: int = 8, depth: int = 2) -> dict[str, Tensor]:
    """A state_dict as the original Gym code saves it, buffers included, its shapes written down from its classes."""
    d = width
    shapes = {
        "transformer.wte.weight": (1, d),
        "transformer.ln_f.weight": (d,),
        "transformer.ln_f.bias": (d,),
        "embed_timestep.weight": (30, d),
        "embed_return.weight": (d, 1),
        "embed_return.bias": (d,),
        "embed_state.weight": (d, 5),
        "embed_state.bias": (d,),
        "embed_action.weight": (d, 3),
        "embed_action.bias": (d,),
        "embed_ln.weight": (d,),
        "embed_ln.bias": (d,),
        "predict_state.weight": (5, d),
        "predict_state.bias": (5,),
        "predict_action.0.weight": (3, d),
        "predict_action.0.bias": (3,),
        "predict_return.weight": (1, d),
        "predict_return.bias": (1,),
    }
    for i in range(depth):
        block = f"transformer.h.{i}"
        for name, shape in {
            "ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
            "attn.bias": (1, 1, 16, 16), "attn.masked_bias": (),
            "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
            "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,),
            "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,),
        }.items():  # fmt: skip
            shapes[f"{block}.{name}"] = shape
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def test_an_original_checkpoint_loads_gives_the_same_output_and_comes_back_whole():
    checkpoint = gym_checkpoint()
    model = build(small("decision_transformer", VECTOR, heads=2), VECTOR)
    model.load_state_dict(interop.from_original(checkpoint))
    inputs = window(VECTOR)
    theirs = transcriptions.decision_transformer_gym(checkpoint, **inputs, heads=2, activation="relu")
    torch.testing.assert_close(model(**inputs), theirs, rtol=1e-8, atol=1e-8)
    back = interop.to_original(model.state_dict())
    masks = {name for name in checkpoint if name.endswith((".attn.bias", ".attn.masked_bias"))}
    assert set(back) == set(checkpoint) - masks
    for name, value in back.items():
        assert torch.equal(value, checkpoint[name]), name


def test_an_atari_checkpoint_comes_back_whole():
    model = build(small("decision_transformer", PICTURE, stem="atari", activation="gelu"), PICTURE)
    there = interop.to_original(model.state_dict())
    assert {"pos_emb", "global_pos_emb", "blocks.1.attn.key.weight", "tok_emb.weight"} <= set(there)
    assert there["pos_emb"].shape == (1, 3 * TIME + 1, 8)
    back = interop.from_original(there)
    assert set(back) == set(model.state_dict())
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


def test_what_is_not_a_checkpoint_of_the_original_is_refused():
    with pytest.raises(UserError, match="not a Decision Transformer of the original layout: unknown weight 'conv"):
        interop.from_original({"conv.weight": torch.zeros(1)})


@pytest.mark.parametrize(("width", "d_state", "d_conv", "expand"), [(16, 16, 4, 2), (40, 4, 3, 1)])
def test_a_block_of_mamba_ssm_loads_gives_the_same_output_and_comes_back(width, d_state, d_conv, expand):
    """Names and shapes as ``mamba_ssm.Mamba(width, d_state, d_conv, expand)`` has them."""
    inner, rank = expand * width, -(-width // 16)
    shapes = {
        "A_log": (inner, d_state), "D": (inner,), "in_proj.weight": (2 * inner, width),
        "conv1d.weight": (inner, 1, d_conv), "conv1d.bias": (inner,), "x_proj.weight": (rank + 2 * d_state, inner),
        "dt_proj.weight": (inner, rank), "dt_proj.bias": (inner,), "out_proj.weight": (width, inner),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    theirs = {
        name: 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }
    block = Mamba(shape_of(ModelSpec(width=width, d_state=d_state, d_conv=d_conv, expand=expand))).double()
    block.load_state_dict(theirs)
    u = torch.randn(2, 9, width, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(block(u), transcriptions.mamba(theirs, "", u), rtol=1e-8, atol=1e-8)
    assert all(torch.equal(value, theirs[name]) for name, value in block.state_dict().items())


def test_the_transcription_notices_a_different_network():
    """The comparison can fail: another overlap is another network."""
    spec = small("mambadm", VECTOR, subsequence=3, overlap=0, depth=1)
    model = build(spec, VECTOR)
    weights, inputs = leaves(model), window(VECTOR)
    theirs = transcriptions.gloma(gloma_names(weights), **inputs, subsequence=3, overlap=2)
    mine = model(**inputs)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        agree(model, weights, mine, theirs)


def test_pictures_are_stacked_oldest_first():
    spec = dataclasses.replace(small("bc", PICTURE), depth=1)
    model = build(spec, PICTURE)
    inputs = window(PICTURE)
    moved = {**inputs, "state": inputs["state"].clone()}
    moved["state"][:, 0] = 255 - moved["state"][:, 0]
    changed = (model(**inputs) - model(**moved)).abs().sum((0, 2)) > 0
    assert changed.tolist() == [True, False, False, False, False]
