"""The jobs of :mod:`scaling.ops.layers`: weights laid out, all layers forward; one layer back, its gradients added up.

Sequences are independent of each other, so a worker takes some through all layers, part by part: the weights of one
part stay in a core's cache meanwhile. Parts are the blocks and the network. On the way back all wait for each other
after a layer, whose gradients are then added up. All that the way back needs lies in one row of numbers, ``kept``.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from scaling.ops import _feed_forward, _mamba_block, _mamba_layout
from scaling.ops._chunks import Shares, chunk, shares_of
from scaling.ops._feed_forward import COLUMN, TOKENS, Draws
from scaling.ops._jit import jit
from scaling.ops._jobs import DONE
from scaling.ops._mamba_layout import Counts, sizes_in, sizes_of, up
from scaling.ops._norm import distribute_norm, lay_out_norm
from scaling.ops._vectors import LANES, LINE, floats, integers

NORM = 2
"""Parameters of a norm: weight and bias."""


class Plan(NamedTuple):
    """How much is computed, and where in ``kept`` a layer has its numbers."""

    layers: int
    members: int
    each: int
    chunks: int
    """As in :class:`Shares`."""
    time: int
    width: int
    blocks: int
    normed: int
    """Whether the blocks have a norm before them and the residual around; a network always has."""
    channels: int
    """Inside the network; none: there is no network."""
    panels: int
    """Vectors of channels of all parts."""
    weights: int
    """Numbers that the weights of a layer take; those of all layers come first."""
    summed: int
    """Numbers that a group's sums take."""
    middle: int
    """What goes on after the blocks, among what else is kept of a layer."""
    result: int
    """What goes on after the network."""
    hidden: int
    inside: int
    """Numbers that a group has inside the network."""
    stride: int
    """From one layer to the next; 0 where there is no way back, and the next may take the place."""


class Part(NamedTuple):
    """Where numbers of a part of a layer are."""

    panels: int
    """Vectors of channels."""
    weights: int
    """Among those of the layer, each member's after another's."""
    each: int
    """Numbers of a member's."""
    sums: int
    """Among those of a group."""
    xz: int
    selected: int


class Given(NamedTuple):
    """What a job is given: numbers, and addresses of others."""

    plan: int
    network: int
    """Sizes of the network."""
    sizes: int
    """A row for each block."""
    parts: int
    """A row for each block and for the network."""
    total: int
    """Numbers of what is kept."""
    parameters: int
    """Addresses of parameters or of their gradients, a row for each layer."""
    each: int
    """How many are in a row."""
    eps: int
    """Of norms; then what remains is multiplied with where some is dropped."""
    threshold: int
    """As :func:`scaling.ops._masks.factors` wants it."""
    begin: int
    """Number of the first entry."""
    seeds: int
    """A row for each layer, a number for each member."""
    is_relu: int
    x: int
    kept: int
    y: int
    """What comes out; on the way back, as what follows, the gradient of this."""
    middle: int = 0
    dx: int = 0
    sums: int = 0
    layer: int = 0


GIVEN, PLAN, PART = len(Given._fields), len(Plan._fields), len(Part._fields)
SIZES, NETWORK_SIZES = _mamba_layout.FIELDS, len(_feed_forward.Sizes._fields)


@dataclass(eq=False)
class Layout:
    """A plan with what belongs to it, as jobs take it."""

    plan: Plan
    rows: tuple[np.ndarray, ...]
    """Plan, sizes of the network, rows of blocks' sizes and of parts."""
    kept: int
    """Numbers of what is kept."""

    @functools.cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where they are."""
        return tuple(row.ctypes.data for row in self.rows)


def layout_of(
    layers: int, members: int, each: int, time: int, width: int, normed: bool, channels: int, keeps: bool,
    blocks: tuple[tuple[int, Counts], ...],
) -> Layout:  # fmt: skip
    """The layout for layers of these blocks, each with the tokens after which it begins anew, and this network."""
    shares, tokens = shares_of(members, each), members * each * time
    sizes = [sizes_of(time, length, counts, normed) for length, counts in blocks]
    network = _feed_forward.sizes_of(width, channels)
    inside = -(-(-(-each // max(1, shares.chunks)) * time) // TOKENS) * (network.inner // LANES) * COLUMN
    own = [one.numbers + one.weights * one.channels for one in sizes] + [network.numbers + network.bias * network.inner]
    weights, sums = (
        _begins(members * count for count in own),
        _begins([*(one.numbers for one in sizes), network.numbers]),
    )
    held = [
        members * each * count
        for one in sizes
        for count in (2 * one.channels // LANES * one.column, time * one.selected)
    ]
    middle, result, hidden, *places, end = _begins(
        [tokens * width, tokens * width, members * shares.chunks * inside, *held]
    )
    panels = [one.channels // LANES for one in sizes] + [network.inner // LANES]
    places += [0, 0]  # the network has no such things
    rows = zip(panels, weights, own, sums, places[::2], places[1::2], strict=False)
    parts = [Part(*row) for row in rows]
    plan = Plan(
        layers=layers,
        members=members,
        each=each,
        chunks=shares.chunks,
        time=time,
        width=width,
        blocks=len(blocks),
        normed=int(normed and bool(blocks)),
        channels=channels,
        panels=sum(panels),
        weights=weights[-1],
        summed=sums[-1],
        middle=middle,
        result=result,
        hidden=hidden,
        inside=inside,
        stride=end if keeps else 0,
    )
    kept = layers * plan.weights + (layers * end if keeps else end)
    return Layout(plan, tuple(np.array(rows, np.int64) for rows in (plan, network, sizes, parts)), kept)


def _begins(counts: Iterable[int]) -> list[int]:
    """Where each begins that has so many numbers, at a line of the cache; then where all end."""
    found = [0]
    for count in counts:
        found.append(found[-1] + up(count, LINE))
    return found


@jit
def _part(parts, number):  # type: ignore[no-untyped-def]
    return Part(*to_fixed_tuple(parts[number], PART))


@jit
def _laid(p, part, kept, layer):  # type: ignore[no-untyped-def]
    """The weights of a part of a layer, a row for each member."""
    begin = layer * p.weights + part.weights
    return kept[begin : begin + p.members * part.each].reshape((p.members, part.each))


@jit
def _of_layer(p, kept, layer):  # type: ignore[no-untyped-def]
    """What else is kept of a layer."""
    return kept[p.layers * p.weights + layer * p.stride :]


@jit
def _tokens(p, whole, begin):  # type: ignore[no-untyped-def]
    """All tokens that lie from a place on."""
    return whole[begin : begin + p.members * p.each * p.time * p.width]


@jit
def _whose(p, parts, panel):  # type: ignore[no-untyped-def]
    """The number of the part that a vector of channels is of, and the first of its channels there."""
    number = 0
    while panel >= parts[number, 0]:
        panel -= parts[number, 0]
        number += 1
    return number, panel * LANES


@jit
def _told(address):  # type: ignore[no-untyped-def]
    """What a job is given, the plan, sizes of the network, rows of blocks' sizes, of parts and of addresses."""
    given = Given(*to_fixed_tuple(integers(address, GIVEN), GIVEN))
    p = Plan(*to_fixed_tuple(integers(given.plan, PLAN), PLAN))
    network = _feed_forward.Sizes(*to_fixed_tuple(integers(given.network, NETWORK_SIZES), NETWORK_SIZES))
    sizes = integers(given.sizes, p.blocks * SIZES).reshape((p.blocks, SIZES))
    parts = integers(given.parts, (p.blocks + 1) * PART).reshape((p.blocks + 1, PART))
    addresses = integers(given.parameters, p.layers * given.each).reshape((p.layers, given.each))
    return given, p, network, sizes, parts, addresses


@jit
def _drawn(p, given):  # type: ignore[no-untyped-def]
    """Eps of norms, and what decides masks."""
    eps, scale = floats(given.eps, 2)
    seeds = integers(given.seeds, p.layers * p.members).reshape((p.layers, p.members))
    return eps, Draws(np.uint32(given.threshold), scale, given.begin), seeds


@jit
def _batch(p, address):  # type: ignore[no-untyped-def]
    """What goes into a layer or comes out of it, or the gradient of that."""
    return floats(address, p.members * p.each * p.time * p.width)


@jit
def _sums(p, given):  # type: ignore[no-untyped-def]
    """A row for each group."""
    groups = p.members * p.chunks
    return floats(given.sums, groups * p.summed).reshape((groups, p.summed))


@jit
def _source(p, x, kept, y, layer):  # type: ignore[no-untyped-def]
    """What a layer is given."""
    if layer == 0:
        return x
    return _tokens(p, _of_layer(p, kept, layer - 1), p.result) if p.stride else y


@jit
def _within(p, kept, shares, number, layer):  # type: ignore[no-untyped-def]
    """What a group has inside the network; its member; of its tokens the first, and which is the member's first."""
    member, first, last = chunk(shares, number)
    begin = p.hidden + number * p.inside
    hidden = _of_layer(p, kept, layer)[begin : begin + p.inside]
    return hidden, member, member * p.each * p.time, first * p.time, last * p.time


@jit
def _slice(p, shares, whole, begin, end):  # type: ignore[no-untyped-def]
    """The tokens of groups."""
    _, first, _ = chunk(shares, begin)
    _, _, last = chunk(shares, end - 1)
    return whole[first * p.time * p.width : last * p.time * p.width]


@jit
def _add_up(own, begin, count):  # type: ignore[no-untyped-def]
    """Add these numbers of all groups to those of the first."""
    for number in range(1, len(own)):
        own[0, begin : begin + count] += own[number, begin : begin + count]


def lay_out(address, first, last):  # type: ignore[no-untyped-def]
    """A job: put vectors of channels of parts of layers where the kernels want them, and with the first the norm."""
    given, p, network, sizes, parts, addresses = _told(address)
    kept = floats(given.kept, given.total)
    for item in range(first, last):
        layer, panel, member = item // (p.panels * p.members), item // p.members % p.panels, item % p.members
        number, c = _whose(p, parts, panel)
        part, row = _part(parts, number), addresses[layer]
        laid, own_norm = _laid(p, part, kept, layer)[member], _mamba_layout.PARAMETERS * p.blocks
        if number < p.blocks:
            s = sizes_in(sizes[number])
            _mamba_layout.lay_out(s, row[_mamba_layout.PARAMETERS * number :], member, c, laid, laid[s.numbers :])
            if p.normed and c == 0:
                lay_out_norm(row[own_norm:], member, p.width, s.outputs, laid, s.norm)
        else:
            begin = own_norm + NORM * p.normed
            _feed_forward.lay_out(network, row[begin:], member, c, laid, laid[network.numbers :])
            if c == 0:
                begin += _feed_forward.PARAMETERS
                lay_out_norm(row[begin:], member, p.width, network.outputs, laid, network.norm)
    return DONE


def forward(address, begin, end):  # type: ignore[no-untyped-def]
    """A job: take groups of sequences through all layers."""
    given, p, network, sizes, parts, _ = _told(address)
    eps, draws, seeds = _drawn(p, given)
    kept, x, y = floats(given.kept, given.total), _batch(p, given.x), _batch(p, given.y)
    shares = Shares(p.members, p.each, p.chunks)
    for layer in range(p.layers):
        own, source = _of_layer(p, kept, layer), _source(p, x, kept, y, layer)
        result = _tokens(p, own, p.result) if p.stride and layer < p.layers - 1 else y
        middle = _tokens(p, own, p.middle) if p.channels else result
        base = source
        if p.blocks and not p.normed:
            _slice(p, shares, middle, begin, end)[:] = 0.0
            base = middle
        for number in range(p.blocks):
            s, part = sizes_in(sizes[number]), _part(parts, number)
            xz, selected = own[part.xz :], own[part.selected :]
            laid = _laid(p, part, kept, layer)
            _mamba_block.forward(s, laid, shares, begin, end, eps, source, base, middle, xz, selected)
            base = middle
        if p.channels:
            laid, within = _laid(p, _part(parts, p.blocks), kept, layer), middle if p.blocks else source
            for number in range(begin, end):
                hidden, member, before, first, last = _within(p, kept, shares, number, layer)
                _feed_forward.forward(
                    network, laid[member, : network.numbers], laid[member, network.numbers :], given.is_relu, draws,
                    seeds[layer, member], eps, before, first, last, within, hidden, result,
                )  # fmt: skip
    return DONE


def backward(address, begin, end):  # type: ignore[no-untyped-def]
    """A job: take gradients of groups of sequences back through a layer."""
    given, p, network, sizes, parts, _ = _told(address)
    eps, draws, seeds = _drawn(p, given)
    kept, x, dy = floats(given.kept, given.total), _batch(p, given.x), _batch(p, given.y)
    middle, dx, sums = _batch(p, given.middle), _batch(p, given.dx), _sums(p, given)
    shares, layer = Shares(p.members, p.each, p.chunks), given.layer
    own, source = _of_layer(p, kept, layer), _source(p, x, kept, x, layer)
    upstream = dy if layer == p.layers - 1 else dx
    sums[begin:end] = 0.0
    if p.channels:
        part = _part(parts, p.blocks)
        laid, within = _laid(p, part, kept, layer), _tokens(p, own, p.middle) if p.blocks else source
        target = middle if p.blocks else dx
        for number in range(begin, end):
            hidden, member, before, first, last = _within(p, kept, shares, number, layer)
            _feed_forward.backward(
                network, laid[member, : network.numbers], laid[member, network.numbers :], given.is_relu, draws,
                seeds[layer, member], eps, before, first, last, upstream, within, hidden, target,
                sums[number, part.sums :],
            )  # fmt: skip
        upstream = target
    elif p.blocks > 1:  # which all need it, when the first has written where it is
        _slice(p, shares, middle, begin, end)[:] = _slice(p, shares, upstream, begin, end)
        upstream = middle
    base = upstream
    if p.blocks and not p.normed:
        _slice(p, shares, dx, begin, end)[:] = 0.0
        base = dx
    for number in range(p.blocks):
        s, part = sizes_in(sizes[number]), _part(parts, number)
        xz, selected = own[part.xz :], own[part.selected :]
        laid = _laid(p, part, kept, layer)
        _mamba_block.backward(
            s, laid, shares, begin, end, eps, source, upstream, base, dx, xz, selected, sums, part.sums
        )
        base = dx
    return DONE


def distribute(address, first, last):  # type: ignore[no-untyped-def]
    """A job: add up vectors of channels over groups, put them where a layer's parameters come from, and so the norm."""
    given, p, network, sizes, parts, addresses = _told(address)
    kept, sums, layer = floats(given.kept, given.total), _sums(p, given), given.layer
    for item in range(first, last):
        panel, member = item // p.members, item % p.members
        number, c = _whose(p, parts, panel)
        part, row, own_norm = _part(parts, number), addresses[layer], _mamba_layout.PARAMETERS * p.blocks
        own = sums[member * p.chunks : (member + 1) * p.chunks]
        total = own[0, part.sums :]
        if number < p.blocks:
            s = sizes_in(sizes[number])
            _add_up(own, part.sums + c // LANES * s.panel, s.panel)
            laid = _laid(p, part, kept, layer)[member]
            _mamba_layout.distribute(s, row[_mamba_layout.PARAMETERS * number :], member, c, total, laid)
            if p.normed and c == 0 and number == 0:
                _add_up(own, part.sums + s.norm, 2 * s.outputs)
                for other in range(1, p.blocks):
                    begin = _part(parts, other).sums + sizes_in(sizes[other]).norm
                    _add_up(own, begin, 2 * s.outputs)
                    total[s.norm : s.norm + 2 * s.outputs] += own[0, begin : begin + 2 * s.outputs]
                distribute_norm(row[own_norm:], member, p.width, s.outputs, total, s.norm)
        else:
            begin = own_norm + NORM * p.normed
            _add_up(own, part.sums + c // LANES * network.panel, network.panel)
            if c == 0:
                _add_up(own, part.sums + network.norm, network.numbers - network.norm)
                after = begin + _feed_forward.PARAMETERS
                distribute_norm(row[after:], member, p.width, network.outputs, total, network.norm)
            _feed_forward.distribute(network, row[begin:], member, c, total)
    return DONE
