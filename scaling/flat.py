"""A network's parameters as one row, their gradients as another, for what clips and what steps."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scaling.optimisation import parameter_groups


class Layout:
    """Where each parameter has its place in a row: first those that decay."""

    def __init__(self, model: nn.Module) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decays, exempt = (group["params"] for group in parameter_groups(model, 0.0))
        self.shapes = {names[id(parameter)]: parameter.shape for parameter in (*decays, *exempt)}
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.ends = torch.tensor(sizes).cumsum(0).tolist()
        self.decaying = sum(parameter.numel() for parameter in decays)

    def join(self, by_name: dict[str, Tensor]) -> Float[Tensor, " parameter"]:
        """A row out of tensors."""
        return torch.cat([by_name[name].detach().flatten() for name in self.shapes])

    def split(self, rows: Float[Tensor, "*member parameter"]) -> dict[str, Tensor]:
        """Views of a row, or of many, by name."""
        starts = [0, *self.ends[:-1]]
        places = zip(self.shapes.items(), starts, self.ends, strict=True)
        return {name: rows[..., a:b].unflatten(-1, shape) if shape else rows[..., a] for (name, shape), a, b in places}

    def groups(self, row: Tensor) -> list[Tensor]:
        """The parts of a row that decay and do not."""
        return [row[: self.decaying], row[self.decaying :]]


@torch.no_grad()
def clip(slopes: Float[Tensor, "*member parameter"], largest: float | Float[Tensor, " member"]) -> None:
    """Scale rows whose norm is larger than this down to it, as ``torch.nn.utils.clip_grad_norm_`` does."""
    norms = torch.linalg.vector_norm(slopes, dim=-1)
    slopes *= (largest / (norms + 1e-6)).clamp(max=1.0)[..., None]


class Flat:
    """A network whose parameters are views of a row, and whose gradients are gathered in another."""

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        """Move the parameters into a row; nothing may move them from there any more."""
        self.layout = layout = Layout(model)
        self.values = layout.join(dict(model.named_parameters()))
        self.slopes = torch.zeros_like(self.values)
        self.parameters = [model.get_parameter(name) for name in layout.shapes]
        for parameter, view in zip(self.parameters, layout.split(self.values).values(), strict=True):
            parameter.data = view
        self.parts = [part.requires_grad_() for part in layout.groups(self.values)]
        """What an optimiser steps: the part that decays, and the rest."""
        for part, slope in zip(self.parts, layout.groups(self.slopes), strict=True):
            part.grad = slope
        self._places = list(layout.split(self.slopes).values())
        self.groups: list[dict[str, Any]] = [
            {"params": [part], "weight_decay": decay}
            for part, decay in zip(self.parts, (weight_decay, 0.0), strict=True)
        ]

    @torch.no_grad()
    def gather(self) -> None:
        """Put the gradients into their row, zeros where there are none, and forget them: cheaper than adding there."""
        found = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.parameters]
        torch._foreach_copy_(self._places, found)
        for parameter in self.parameters:
            parameter.grad = None
