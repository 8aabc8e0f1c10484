"""Scan and training step against the same network on other formulations of the scan.

    python -m benchmarks.step [--rounds 5] [--threads 2] [--json FILE]

``reference formulation``: the whole (batch, time, channel, state) tensors, then a loop over time, as mamba-ssm's
reference and Hugging Face's slow path run on a CPU. ``running state``: a careful loop that keeps the state alone.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.timing import in_turns, table
from scaling import plug
from scaling.layers import mamba
from scaling.ops.causal_conv import causal_conv, causal_conv_ref
from scaling.ops.selective_scan import selective_scan, selective_scan_ref
from scaling.spec import ModelSpec, Space

OURS, REFERENCE, LOOP = "ours", "reference formulation", "running state"


def running_state_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan as a loop over time in which no tensor holds time and state at once."""
    dt = functional.softplus(delta + delta_bias)
    drive = dt * u
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + drive[:, t, :, None] * B[:, t, None]
        outputs.append((h @ C[:, t, :, None]).squeeze(-1))
    return (torch.stack(outputs, dim=1) + u * D) * functional.silu(z)


@contextmanager
def kernels(scan: Callable[..., Tensor], conv: Callable[..., Tensor]) -> Iterator[None]:
    """The network on other kernels."""
    with mock.patch.object(mamba, "selective_scan", scan), mock.patch.object(mamba, "causal_conv", conv):
        yield


def step(scan: Callable[..., Tensor], conv: Callable[..., Tensor], spec: ModelSpec, batch: int) -> Callable[[], None]:
    """One training step: forward, loss, backward, clipping, AdamW."""
    torch.manual_seed(0)
    model = plug.load("models", spec.kind).Model(spec, Space(state=11, action=3))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shape = (batch, spec.context)
    rtg, state, action = torch.randn(shape), torch.randn(*shape, 11), torch.rand(*shape, 3)
    timestep = torch.arange(spec.context).expand(shape)

    def run() -> None:
        with kernels(scan, conv):
            (model(rtg, state, action, timestep) - action).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimiser.step()
        optimiser.zero_grad()

    return run


def scan_forward(batch: int, time: int, channels: int, states: int) -> dict[str, Callable[[], object]]:
    """The scan's forward pass alone, on the same inputs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    u, delta, z = (normal(batch, time, channels) for _ in range(3))
    B, C, A = normal(batch, time, states), normal(batch, time, states), -normal(channels, states).exp()
    inputs = (u, delta, A, B, C, normal(channels), z, normal(channels))

    def forward(scan: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> Tensor:
            with torch.no_grad():
                return scan(*inputs)

        return run

    return {OURS: forward(selective_scan), REFERENCE: forward(selective_scan_ref), LOOP: forward(running_state_scan)}


def main(arguments: list[str] | None = None) -> None:
    """Print both tables; write them as JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--context", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    spec = ModelSpec(width=given.width, depth=given.depth, context=given.context)
    rivals = {
        OURS: step(selective_scan, causal_conv, spec, given.batch),
        REFERENCE: step(selective_scan_ref, causal_conv_ref, spec, given.batch),
        LOOP: step(running_state_scan, causal_conv_ref, spec, given.batch),
    }
    tokens, channels = 3 * given.context, 2 * given.width
    scans = scan_forward(given.batch, tokens, channels, 16)
    scan_title = f"scan forward: batch {given.batch}, {tokens} tokens, {channels} channels, 16 states"
    step_title = f"training step: {given.depth} x {given.width}, batch {given.batch}, context {given.context}"
    found = {scan_title: in_turns(scans, 4 * given.rounds), step_title: in_turns(rivals, given.rounds)}
    for title, seconds in found.items():
        print(table(f"{title}, {given.threads} threads", seconds, OURS))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
