"""Learning rates, and which parameters decay."""

import inspect
import math
from typing import Any

import torch
from torch import nn

from scaling.spec import TrainSpec


def peak_rate(spec: TrainSpec, width: int) -> float:
    """The learning rate of a network of this width once it has risen."""
    return spec.learning_rate * (1.0 if spec.base_width is None else spec.base_width / width)


def learning_rate(spec: TrainSpec, width: int, update: int, updates: int) -> float:
    """Linear rise over the first ``warmup`` share of the updates, then constant, or a cosine down to a tenth."""
    rise, peak = max(1.0, spec.warmup * updates), peak_rate(spec, width)
    if update + 1 <= rise or spec.schedule == "constant":
        return peak * min(1.0, (update + 1) / rise)
    progress = (update + 1 - rise) / max(1.0, updates - rise)
    return peak * max(0.1, 0.5 * (1.0 + math.cos(math.pi * progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of projections decay; A_log, D, norms, biases and embedding tables do not.

    Mamba's authors exempt A_log and D (``_no_weight_decay``); norms, biases and tables follow minGPT.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decays: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        free = parameter.ndim < 2 or name.rsplit(".", 1)[-1] == "A_log" or id(parameter) in tables
        (exempt if free else decays).append(parameter)
    return [{"params": decays, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


class AdamW(torch.optim.AdamW):
    """PyTorch's own, less what it does for ``torch.compile``, whose import costs each process seconds."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)


def optimiser_of(groups: list[dict[str, Any]], device: torch.device) -> AdamW:
    """AdamW with these groups and settings of their own; on a GPU one whose steps a CUDA graph may hold."""
    for group in groups:
        group["capturable"] = device.type == "cuda"
    return AdamW(groups, fused=True)


def plain_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state, with rates as numbers where they are tensors of a GPU."""
    state: dict[str, Any] = optimiser.state_dict()
    groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def load_state(optimiser: torch.optim.Optimizer, state: dict[str, Any], device: torch.device) -> None:
    """Go on from a state, which may be of another kind of device."""
    optimiser.load_state_dict(state)
    for group in optimiser.param_groups:
        group["capturable"] = device.type == "cuda"
