"""Networks of one shape and their optimisers, side by side: a row of parameters and one of gradients for each.

Row by row this is what one network with AdamW and clipping computes; the forward pass maps over the rows.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from scaling.checkpoint import State
from scaling.flat import Layout, clip
from scaling.layers.dropout import Dropout
from scaling.optimisation import optimiser_of
from scaling.replay import Numbers

Moments = dict[str, Tensor]
"""AdamW's ``step``, ``exp_avg`` and ``exp_avg_sq``, the latter two in a network's row."""


@dataclass(eq=False)
class Network:
    """One network out of a stack."""

    values: Float[Tensor, " parameter"]
    groups: list[dict[str, Any]]
    """The settings of its optimiser."""
    generator: torch.Generator
    """From which its dropout draws."""
    rest: dict[str, Tensor]
    """What no gradient reaches."""
    clip: float
    """Largest norm of its gradient."""
    moments: Moments = field(default_factory=dict)
    """Empty before the first update."""


class Stack:
    """Networks that are trained together."""

    def __init__(
        self,
        model: nn.Module,
        networks: Sequence[Network],
        device: torch.device,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Put rows together.

        Args:
            model: of the shape that all have; its own parameters are not used.
            networks: the rows.
            device: where they are to be.
            reduce: adds up gradients over the processes that share a batch, if there are several.

        """
        self.reduce = reduce
        self.layout = Layout(model)
        self.model, self.single = (copy.deepcopy(model).to(device).requires_grad_(False) for _ in range(2))
        self.device = device
        self._assemble(networks)

    def _assemble(self, networks: Sequence[Network]) -> None:
        self.networks = list(networks)
        self.values = torch.stack([network.values for network in networks]).to(self.device)
        self.slopes = torch.zeros_like(self.values)
        self.parameters = {name: view.requires_grad_() for name, view in self.layout.split(self.values).items()}
        self.clips = torch.tensor([network.clip for network in networks], device=self.device)
        for module in self.model.modules():
            if isinstance(module, Dropout):
                module.generators = [network.generator for network in networks]
        self._build_optimiser()

    def _build_optimiser(self) -> None:
        groups, parts = [], []
        for row, slopes, network in zip(self.values, self.slopes, self.networks, strict=True):
            for at, settings in enumerate(network.groups):
                part = self.layout.groups(row)[at].requires_grad_()
                part.grad = self.layout.groups(slopes)[at]
                groups.append({**settings, "params": [part]})
                parts.append((part, at, network.moments))
        self.optimiser = optimiser_of(groups, self.device)
        for part, at, moments in parts:
            if moments:
                rows = {name: self.layout.groups(moments[name])[at] for name in ("exp_avg", "exp_avg_sq")}
                state = {name: row.to(self.device).clone() for name, row in rows.items()}
                self.optimiser.state[part] = {"step": moments["step"].to(self.device).clone(), **state}

    def keep(self, members: Sequence[int]) -> None:
        """Go on with some of the members."""
        networks = [self.networks[member] for member in members]
        for network, member in zip(networks, members, strict=True):
            network.values, network.moments = self.values[member].detach().clone(), self._moments(member)
        if networks:
            self._assemble(networks)

    def losses(self, loss: Callable[..., Tensor], *inputs: Tensor) -> Float[Tensor, " member"]:
        """``loss(predicted, *inputs)`` of each member, for inputs with an axis of members in front.

        The first four inputs are the network's.
        """

        def of_one(parameters: dict[str, Tensor], *given: Tensor) -> Tensor:
            return loss(functional_call(self.model, parameters, given[:4]), *given)

        return torch.vmap(of_one, randomness="different")(self.parameters, *inputs)

    def parameters_of(self, members: Sequence[int]) -> dict[str, Tensor]:
        """Rows of some members, by name."""
        everyone = len(members) == len(self.networks)
        return {name: rows if everyone else rows[list(members)] for name, rows in self.parameters.items()}

    @torch.no_grad()
    def predicted(self, parameters: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """What the networks of some members give without dropout, for inputs with an axis of these members in front."""
        self.model.eval()
        try:
            given: Tensor = torch.vmap(lambda own, *one: functional_call(self.model, own, one))(parameters, *inputs)
        finally:
            self.model.train()
        return given

    @torch.no_grad()
    def step(self, losses: Float[Tensor, " member"], rates: Numbers) -> None:
        """Clip the gradient of each member's loss, and step."""
        slopes = torch.autograd.grad(losses, list(self.parameters.values()), torch.ones_like(losses))
        torch.cat([slope.reshape(len(slope), -1) for slope in slopes], dim=1, out=self.slopes)
        if self.reduce is not None:
            self.slopes.copy_(self.reduce(self.slopes))
        clip(self.slopes, self.clips)
        for at, group in enumerate(self.optimiser.param_groups):
            group["lr"] = rates[at * len(rates) // len(self.optimiser.param_groups)]
        self.optimiser.step()

    def alone(self, member: int) -> nn.Module:
        """One member's network, until this is called again or the stack moves on."""
        views = {**self.networks[member].rest, **self.layout.split(self.values[member].detach())}
        for name, parameter in (*self.single.named_parameters(), *self.single.named_buffers()):
            parameter.data = views[name]
        return self.single

    def _moments(self, member: int) -> Moments:
        states = [self.optimiser.state[group["params"][0]] for group in self._groups(member)]
        if not states[0]:
            return {}
        rows = {name: torch.cat([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": states[0]["step"].clone(), **rows}

    def _groups(self, member: int) -> list[dict[str, Any]]:
        each = len(self.optimiser.param_groups) // len(self.networks)
        return self.optimiser.param_groups[member * each : (member + 1) * each]

    def state(self, member: int) -> State:
        """A member's network and optimiser as they would be alone."""
        model = {name: value.clone() for name, value in self.alone(member).state_dict().items()}
        moments = self._moments(member)
        parts = {name: self.layout.groups(moments[name]) for name in ("exp_avg", "exp_avg_sq")} if moments else {}
        states = {
            at: {"step": moments["step"].clone(), **{name: part[at].clone() for name, part in parts.items()}}
            for at in range(2)
            if moments
        }
        settings = zip(self.networks[member].groups, self._groups(member), strict=True)
        groups = [{**own, "lr": float(group["lr"])} for own, group in settings]
        return {"model": model, "optimiser": {"state": states, "param_groups": groups}}


def network_of(model: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator, clip: float) -> Network:
    """A network as it stands, to be put into a stack."""
    layout, state = Layout(model), optimiser.state_dict()
    values = model.state_dict()
    moments: Moments = {}
    if parts := list(state["state"].values()):
        rows = {kind: torch.cat([part[kind] for part in parts]) for kind in ("exp_avg", "exp_avg_sq")}
        moments = {"step": parts[0]["step"].clone(), **rows}
    rest = {name: value.clone() for name, value in values.items() if name not in layout.shapes}
    return Network(layout.join(values), state["param_groups"], generator, rest, clip, moments)
