"""Mamba blocks of other packages in the place of ours, on our parameters."""

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.formulations import Missing
from benchmarks.modules import instead
from scaling.layers.gloma import GLoMa
from scaling.layers.mamba import Mamba, MambaShape

Maker = Callable[[MambaShape], nn.Module]

CUDA_ONLY = ("mamba_ssm", "causal_conv1d", "kernels")
"""Packages whose kernels cannot serve a CPU."""


def mambapy(shape: MambaShape) -> nn.Module:
    """The block of ``mambapy``, with its parallel scan.

    Raises:
        Missing: the package is.

    """
    try:
        from mambapy.mamba import MambaBlock, MambaConfig  # optional extra: bench
    except ImportError as error:
        raise Missing("not installed: `pip install mambapy`") from error
    config = MambaConfig(
        d_model=shape.width, n_layers=1, d_state=shape.d_state, d_conv=shape.d_conv, expand_factor=shape.expand
    )
    block: nn.Module = MambaBlock(config)
    return block


def hugging_face(shape: MambaShape) -> nn.Module:
    """The block of ``transformers``, on its slow path: it takes kernels for CUDA where it finds any when imported.

    Raises:
        Missing: the package is.

    """
    try:
        with instead(dict.fromkeys(CUDA_ONLY)):
            from transformers import MambaConfig  # optional extra: bench
            from transformers.models.mamba.modeling_mamba import MambaMixer
    except ImportError as error:
        raise Missing("not installed: `pip install transformers`") from error
    config = MambaConfig(
        hidden_size=shape.width,
        num_hidden_layers=1,
        state_size=shape.d_state,
        conv_kernel=shape.d_conv,
        expand=shape.expand,
        time_step_rank=shape.rank,
        use_mambapy=False,
    )
    block: nn.Module = MambaMixer(config, layer_idx=0)
    return block


def replace(model: nn.Module, make: Maker) -> nn.Module:
    """The model, every Mamba block of which computes as the other package does, with the parameters it has.

    Raises:
        Missing: the other package is.

    """
    for block in [module for module in model.modules() if isinstance(module, Mamba)]:
        block.forward = _forward(_sharing(make(block.shape), block))  # type: ignore[method-assign, assignment]
    for mixer in [module for module in model.modules() if isinstance(module, Mamba | GLoMa)]:
        mixer.plain_blocks = lambda tokens: []  # type: ignore[method-assign]
    return model


def _forward(other: nn.Module) -> Callable[[Tensor], Tensor]:
    """Its slow path, which some versions keep under a name of its own."""
    forward: Callable[[Tensor], Tensor] = getattr(other, "slow_forward", other.forward)
    return forward


def _sharing(other: nn.Module, block: Mamba) -> nn.Module:
    """The other block, with the parameters of ours, which it knows by the same names."""
    for name, module in other.named_modules():
        for key, _ in list(module.named_parameters(recurse=False)):
            setattr(module, key, block.get_submodule(name).get_parameter(key))
    return other
