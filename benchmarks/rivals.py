"""Our training step against other formulations, other packages, a Transformer of equal size and the floor."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

from benchmarks import formulations, mixers
from benchmarks.document import Cell, Settings, Table
from benchmarks.floor import product, product_flops, step_flops
from benchmarks.formulations import Missing
from benchmarks.steps import HOPPER, Point, inputs, network, step
from benchmarks.timing import in_turns
from scaling import plug
from scaling.allocator import memory_kept
from scaling.layers.attention import Attention
from scaling.ops.mamba_inner import mamba_inner_ref
from scaling.spec import ModelSpec

OURS, REFERENCE, LOOP = "ours", "reference formulation", "loop with a running state"
MAMBA_SSM, MAMBAPY, HUGGING_FACE = "mamba-ssm, its reference", "mambapy", "transformers, its slow path"
TRANSFORMER, FLOOR = "Decision Transformer of equal N", "floor: matrix products"
PRODUCT = "product"
STRIDE = 8
"""Widths of the Transformer are multiples of this, so that they suit vector units."""

Step = Callable[[], None]
Rival = Callable[[Point, Settings], Step]


def ours(point: Point, settings: Settings) -> Step:
    """The project's own network and kernels."""
    return step(network(point.spec()), inputs(point))


def reference(point: Point, settings: Settings) -> Step:
    """The same network through whole (batch, time, channel, state) tensors."""
    return step(network(point.spec()), inputs(point), mamba_inner_ref)


def running_state(point: Point, settings: Settings) -> Step:
    """The same network by a careful loop over time."""
    return step(network(point.spec()), inputs(point), formulations.around(formulations.running_state_scan))


def mamba_ssm(point: Point, settings: Settings) -> Step:
    """The same network on mamba-ssm's reference of the scan."""
    inner = formulations.around(formulations.mamba_ssm_scan(settings.mamba_ssm))
    return step(network(point.spec()), inputs(point), inner)


def mambapy(point: Point, settings: Settings) -> Step:
    """The same network with mambapy's blocks."""
    return step(mixers.replace(network(point.spec()), mixers.mambapy), inputs(point))


def hugging_face(point: Point, settings: Settings) -> Step:
    """The same network with the blocks of transformers."""
    return step(mixers.replace(network(point.spec()), mixers.hugging_face), inputs(point))


def transformer(point: Point, settings: Settings) -> Step:
    """Attention by ``scaled_dot_product_attention`` in a network of equal size."""
    model = network(equal_transformer(point.spec()))
    for module in model.modules():
        if isinstance(module, Attention):  # which on a CPU draws its own masks, and then attends in parts
            module._in_parts = module._whole  # type: ignore[method-assign]
    return step(model, inputs(point))


RIVALS: dict[str, Rival] = {
    OURS: ours,
    REFERENCE: reference,
    LOOP: running_state,
    MAMBA_SSM: mamba_ssm,
    MAMBAPY: mambapy,
    HUGGING_FACE: hugging_face,
    TRANSFORMER: transformer,
}


def parameters(spec: ModelSpec) -> int:
    """N of the network."""
    counted: dict[str, int] = plug.load("models", spec.kind).count(spec, HOPPER)
    return counted["N"]


def equal_transformer(spec: ModelSpec) -> ModelSpec:
    """The Decision Transformer whose N is nearest, among those of once to twice the depth."""
    wanted = parameters(spec)
    candidates = []
    for depth in range(spec.depth, 2 * spec.depth + 1):
        for width in itertools.count(STRIDE, STRIDE):
            shape = {"width": width, "depth": depth, "context": spec.context, "dropout": spec.dropout}
            candidates.append(ModelSpec(kind="decision_transformer", **shape))  # type: ignore[arg-type]
            if parameters(candidates[-1]) >= wanted:
                break
    return min(candidates, key=lambda candidate: abs(parameters(candidate) - wanted))


def section(settings: Settings) -> list[Table]:
    """Our step against its floor as in a run, then against all rivals, and at a small size against the reference.

    A run keeps its memory between updates; rivals' users would not, so there nobody does. They come first: once told to
    keep memory, the C library never goes back to adjusting what it keeps.
    """
    usual = Point(width=16, depth=1, context=4, batch=2) if settings.quick else Point()
    small = dataclasses.replace(usual, width=8 if settings.quick else 32)
    few = {name: RIVALS[name] for name in (OURS, REFERENCE)}
    beside = [compared(usual, settings, RIVALS, "and its rivals"), compared(small, settings, few, "and a rival")]
    with memory_kept():
        alone = [compared(point, settings, {OURS: ours}, "in a run") for point in (usual, small)]
    return [*alone, *beside]


def compared(point: Point, settings: Settings, rivals: Mapping[str, Rival], where: str = "") -> Table:
    """Rivals at one size, in turns with each other and with a large matrix product."""
    size = 256 if settings.quick else 2048
    calls: dict[str, Callable[[], object]] = {PRODUCT: product(size)}
    absent: dict[str, str] = {}
    for name, rival in rivals.items():
        try:
            calls[name] = rival(point, settings)
        except Missing as error:
            absent[name] = str(error)
    took = in_turns(calls, settings.rounds)
    rate = product_flops(size) / took.pop(PRODUCT)
    floor = step_flops(point) / rate
    seconds = {name: took.get(name) for name in rivals} | {FLOOR: floor}
    return Table(
        title=f"Training step {where}: {point.depth} layers, width {point.width}, batch {point.batch}, "
        f"context {point.context}",
        rows=[_row(name, value, took[OURS], floor, absent.get(name)) for name, value in seconds.items()],
        facts={"ours over the floor": took[OURS] / floor, "GFLOP/s of the large product": rate / 1e9},
        note=said_of_transformer(point.spec()) if TRANSFORMER in rivals else "",
    )


def said_of_transformer(spec: ModelSpec) -> str:
    """Its size and ours."""
    other = equal_transformer(spec)
    size = f"{other.depth} layers of width {other.width}"
    return f"The Transformer has {size}, N {parameters(other):,} against {parameters(spec):,}."


def _row(name: str, seconds: float | None, ours: float, floor: float, absent: str | None) -> dict[str, Cell]:
    if seconds is None:
        return {"what": f"{name}: {absent}", "ms": None, "times ours": None, "times the floor": None}
    return {"what": name, "ms": 1e3 * seconds, "times ours": seconds / ours, "times the floor": seconds / floor}
