"""What the Mamba blocks of a trained network remember, and for how long, on real data.

A state of a block decays by exp(dt A) at every token, with A < 0 learned and dt chosen from the input. Over n tokens
that is exp(A sum dt), so the mean step size on data, and not the initial one, decides how long it remembers:

    pole = exp(A mean dt) per token;   horizon = -1 / (3 A mean dt) timesteps until a state has fallen to 1/e

A is diagonal, hence its entries are its eigenvalues. The eigenvalues alone say nothing about memory.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scaling.batches import Tensors, tensors
from scaling.layers.gloma import GLoMa, LocalBranch
from scaling.layers.mamba import Mamba
from scaling.layers.sequence import Layer, SequenceModel
from scaling.train import Trained
from scaling.windows import Batch

QUANTILES = {"dt_low": 0.05, "dt_median": 0.5, "dt_high": 0.95}


def memory(network: Trained, windows: int = 64, seed: int = 0) -> pd.DataFrame:
    """One row per layer, branch, channel and state of every Mamba block, measured on held-out windows without padding.

    Columns: ``layer``; ``branch``, global or local; ``block``, its number in the network; ``channel``; ``state``;
    ``eigenvalue``, an entry of A; ``dt_mean`` and the 5, 50 and 95 % quantiles ``dt_low``, ``dt_median``, ``dt_high``
    of the channel's step size over tokens; ``pole``; ``horizon`` in timesteps; ``reset``, the timesteps after which
    the branch forgets everything anyway.

    Args:
        network: a trained network.
        windows: how many windows to look at.
        seed: chooses them.

    Raises:
        ValueError: the network has no Mamba block, or no window of the held-out episodes is without padding.

    """
    model = network.model
    blocks = list(_blocks(model))
    if not isinstance(model, SequenceModel) or not blocks:
        raise ValueError("the network has no Mamba block")
    batch = _full_windows(network, windows, seed)
    device = next(model.parameters()).device
    with torch.no_grad():
        inputs = _inputs(model, tensors(batch, device))
        frames = [
            _block(block, inputs[block]).assign(
                layer=layer, branch=scope, block=number, reset=reset or batch.mask.shape[1]
            )
            for number, (layer, scope, reset, block) in enumerate(blocks)
        ]
    return pd.concat(frames, ignore_index=True)


def _full_windows(network: Trained, windows: int, seed: int) -> Batch:
    held_out = network.subset.held_out
    starts = held_out.draw(20 * windows, np.random.default_rng(seed))
    full = starts[held_out.gather(starts, network.normalise).mask.all(axis=1)][:windows]
    if not len(full):
        raise ValueError("every window of the held-out episodes is padded: they are shorter than the context")
    return held_out.gather(full, network.normalise)


def _blocks(model: nn.Module) -> Iterator[tuple[int, str, int | None, Mamba]]:
    """Layer, scope, timesteps until the state begins anew if it does, and block."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for number, layer in enumerate(layers):
        if isinstance(layer.mixer, Mamba):
            yield number, "global", None, layer.mixer
        for branch in layer.mixer.branches if isinstance(layer.mixer, GLoMa) else ():
            scope, reset = ("local", branch.length // 3) if isinstance(branch, LocalBranch) else ("global", None)
            for block in branch.modules():
                if isinstance(block, Mamba):
                    yield number, scope, reset, block


def _inputs(model: SequenceModel, given: Tensors) -> dict[Mamba, Tensor]:
    """What each block is given in a forward pass; blocks within a kernel also go by themselves."""
    inputs: dict[Mamba, Tensor] = {}

    def keep(block: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(block, Mamba)
        inputs[block] = arguments[0]

    handles = [part.register_forward_pre_hook(keep) for part in model.modules() if isinstance(part, Mamba)]
    try:
        x = model.stem(*given)
        for layer in model.layers:
            assert isinstance(layer, Layer)
            for mixer in layer.mixer.branches if isinstance(layer.mixer, GLoMa) else [layer.mixer]:
                mixer(layer.norm(x))
            x = layer(x)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def _block(block: Mamba, u: Float[Tensor, "batch token width"]) -> pd.DataFrame:
    """The rows of one block; tokens that fill up a last sub-sequence are zero and left out."""
    dt = block.step_sizes(u)[u.abs().sum(-1) > 0].double().cpu().numpy()
    eigenvalues = -np.exp(block.A_log.detach().double().cpu().numpy())
    channels, states = eigenvalues.shape
    channel, state = (index.ravel() for index in np.indices((channels, states)))
    quantiles = np.quantile(dt, list(QUANTILES.values()), axis=0)
    mean = dt.mean(axis=0)[channel]
    return pd.DataFrame(
        {
            "channel": channel,
            "state": state,
            "eigenvalue": eigenvalues.ravel(),
            "dt_mean": mean,
            **{name: quantile[channel] for name, quantile in zip(QUANTILES, quantiles, strict=True)},
            "pole": np.exp(eigenvalues.ravel() * mean),
            "horizon": -1.0 / (3.0 * eigenvalues.ravel() * mean),
        }
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Per layer and branch: median step size, and quantiles over channels of the longest horizon of a channel."""
    longest = frame.loc[frame.groupby(["block", "channel"])["horizon"].idxmax()]
    quantiles = longest.groupby(["layer", "branch"])["horizon"].quantile(np.array([0.05, 0.5, 0.95])).unstack()
    quantiles.columns = pd.Index(["horizon_5%", "horizon_50%", "horizon_95%"])
    steps = longest.groupby(["layer", "branch"]).agg(dt_median=("dt_median", "median"), reset=("reset", "first"))
    return steps.join(quantiles).reset_index()
