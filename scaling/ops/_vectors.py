"""Short vectors of single-precision numbers as values inside Numba kernels.

LLVM vectorises a loop only where it can show that its arrays do not overlap, and then keeps nothing in registers from
one loop to the next. Here a kernel says itself what is a vector: a ``Vector`` has one number for each of ``LANES``
channels, a ``Tile`` is four vectors side by side, and LLVM cuts both to the registers of the machine at hand.

Arrays are flat, contiguous float32; places in them count numbers. Nothing is checked. NaN stays NaN everywhere, so
that a diverging run is seen to diverge.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from scaling.ops._jit import jit

WIDE = bool(llvm.get_host_cpu_features().get("avx512f"))

if WIDE and not numba.config.CPU_NAME:
    # LLVM keeps to half of a 512-bit register unless told otherwise; the scan is half again as fast with all of it.
    numba.config.CPU_NAME = llvm.get_host_cpu_name()
    numba.config.CPU_FEATURES = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"

LANES = 16 if WIDE else 8
"""Numbers in a vector: those of one register, or of two where registers hold four."""

GROUP = 4
"""Vectors in a tile: enough that the processor need not wait for one operation before it begins the next."""

F = np.float32


FREE = ("contract", "nsz")
"""What LLVM may change in sums and products: a product and a sum may become one operation."""


class Numbers(types.Type):
    """The Numba type of ``count`` numbers."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Numbers({count})")


@register_model(Numbers)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Numbers) -> None:
        super().__init__(manager, kind, numbers_of(kind.count))


Vector, Tile = Numbers(LANES), Numbers(GROUP * LANES)


def numbers_of(count: int) -> ir.VectorType:
    """LLVM's type of so many numbers."""
    return ir.VectorType(ir.FloatType(), count)


def constant(value: float, count: int) -> ir.Constant:
    """One number so many times."""
    return ir.Constant(numbers_of(count), [float(F(value))] * count)


def _pick(builder: ir.IRBuilder, value: ir.Value, places: Iterable[int]) -> ir.Value:
    """The numbers at these places."""
    chosen = list(places)
    return builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), chosen))


def _part(builder: ir.IRBuilder, tile: ir.Value, row: int) -> ir.Value:
    return _pick(builder, tile, range(row * LANES, (row + 1) * LANES))


def _joined(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Vectors of equal length, a power of two of them, end to end."""
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        both = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(count)))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [builder.shuffle_vector(one, other, both) for one, other in pairs]
    return parts[0]


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, place: ir.Value, count: int) -> ir.Value:
    start = builder.gep(context.make_array(kind)(context, builder, array).data, [place])
    return builder.bitcast(start, numbers_of(count).as_pointer())


def _load(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, place: ir.Value, count: int) -> ir.Value:
    return builder.load(_pointer(context, builder, kind, array, place, count), align=4)


@intrinsic
def load(typing, array, place):  # type: ignore[no-untyped-def]
    """The vector at a place."""
    return Vector(array, types.intp), lambda context, builder, signature, given: _load(
        context, builder, signature.args[0], *given, LANES
    )


@intrinsic
def load_tile(typing, array, place):  # type: ignore[no-untyped-def]
    """The tile at a place, its vectors one after another."""
    return Tile(array, types.intp), lambda context, builder, signature, given: _load(
        context, builder, signature.args[0], *given, GROUP * LANES
    )


@intrinsic
def load_rows(typing, array, place, stride):  # type: ignore[no-untyped-def]
    """The tile whose vectors begin at a place and ``stride`` further each."""

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        places = _strided(builder, *given[1:])
        return _joined(builder, [_load(context, builder, signature.args[0], given[0], at, LANES) for at in places])

    return Tile(array, types.intp, types.intp), build


@intrinsic
def spread(typing, array, place, stride):  # type: ignore[no-untyped-def]
    """The tile each of whose vectors repeats one number, from a place and ``stride`` further each."""

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        places = _strided(builder, *given[1:])
        ones = [_load(context, builder, signature.args[0], given[0], at, 1) for at in places]
        return _joined(builder, [_pick(builder, one, [0] * LANES) for one in ones])

    return Tile(array, types.intp, types.intp), build


@intrinsic
def store(typing, array, place, value):  # type: ignore[no-untyped-def]
    """Write a vector or a tile at a place."""

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        count = signature.args[2].count
        builder.store(given[2], _pointer(context, builder, signature.args[0], *given[:2], count), align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), build


@intrinsic
def store_rows(typing, array, place, stride, tile):  # type: ignore[no-untyped-def]
    """Write the vectors of a tile to a place and ``stride`` further each."""

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        for row, at in enumerate(_strided(builder, *given[1:3])):
            pointer = _pointer(context, builder, signature.args[0], given[0], at, LANES)
            builder.store(_part(builder, given[3], row), pointer, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, tile), build


@intrinsic
def store_sums(typing, array, place, tile):  # type: ignore[no-untyped-def]
    """Write the sum over each vector of a tile, one after another."""

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        value = given[2]
        while (count := value.type.count) > GROUP:
            value = add(builder, _pick(builder, value, range(0, count, 2)), _pick(builder, value, range(1, count, 2)))
        builder.store(value, _pointer(context, builder, signature.args[0], *given[:2], GROUP), align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, tile), build


@intrinsic
def _address(typing, array):  # type: ignore[no-untyped-def]
    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        begin = context.make_array(signature.args[0])(context, builder, given[0]).data
        return builder.ptrtoint(begin, ir.IntType(64))

    return types.int64(array), build


def _pointers(kind: Any) -> Any:
    """What makes pointers of addresses."""

    @intrinsic
    def pointer(typing, address):  # type: ignore[no-untyped-def]
        def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
            return builder.inttoptr(given[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(address), build

    return pointer


_to_float, _to_integer = _pointers(types.float32), _pointers(types.int64)


@jit
def floats(address, count):  # type: ignore[no-untyped-def]
    """So many numbers that lie from an address on."""
    return numba.carray(_to_float(address), (count,))


@jit
def integers(address, count):  # type: ignore[no-untyped-def]
    """So many integers of 64 bits."""
    return numba.carray(_to_integer(address), (count,))


@jit
def of_member(address, count, member):  # type: ignore[no-untyped-def]
    """A member's numbers, of which each has so many, one member after another from an address on."""
    return floats(address + 4 * count * member, count)


LINE = 16
"""Numbers in a line of the cache."""


@jit
def scratch(count):  # type: ignore[no-untyped-def]
    """Zeros that begin where a line of the cache does."""
    whole = np.zeros(count + LINE, np.float32)
    skipped = (-(_address(whole) // 4)) % LINE
    return whole[skipped : skipped + count]


def _strided(builder: ir.IRBuilder, place: ir.Value, stride: ir.Value) -> list[ir.Value]:
    places = [place]
    while len(places) < GROUP:
        places.append(builder.add(places[-1], stride))
    return places


@intrinsic
def zeros(typing):  # type: ignore[no-untyped-def]
    """A tile of zeros."""
    return Tile(), lambda context, builder, signature, given: constant(0.0, GROUP * LANES)


@intrinsic
def repeated(typing, vector):  # type: ignore[no-untyped-def]
    """The tile of one vector four times."""
    return Tile(vector), lambda context, builder, signature, given: _pick(builder, given[0], list(range(LANES)) * GROUP)


@intrinsic
def folded(typing, tile):  # type: ignore[no-untyped-def]
    """The sum of a tile's vectors."""

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        one, two, three, four = (_part(builder, given[0], row) for row in range(GROUP))
        return add(builder, add(builder, one, two), add(builder, three, four))

    return Vector(tile), build


def add(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    """The sum, which may become part of another operation."""
    return builder.fadd(one, other, flags=FREE)


def _operator(operation: Callable[[Any, Any], Any], emit: str) -> None:
    """Let Numba take numbers to numbers, or to one float32, by an instruction of LLVM."""

    @intrinsic
    def combine(typing, a, b):  # type: ignore[no-untyped-def]
        kind = a if isinstance(a, Numbers) else b

        def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
            both = [_as_numbers(builder, value, kind.count) for value in given]
            return getattr(builder, emit)(*both, flags=FREE)

        return kind(a, b), build

    @overload(operation)
    def chosen(a, b):  # type: ignore[no-untyped-def]
        if (isinstance(a, Numbers) and b in (a, types.float32)) or (isinstance(b, Numbers) and a == types.float32):
            return lambda a, b: combine(a, b)
        return None


def _as_numbers(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    if isinstance(value.type, ir.VectorType):
        return value
    one = builder.insert_element(ir.Constant(numbers_of(count), ir.Undefined), value, ir.IntType(32)(0))
    return _pick(builder, one, [0] * count)


for _operation, _emit in (
    (operator.add, "fadd"),
    (operator.iadd, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_operation, _emit)


@intrinsic
def at_least(typing, x, bound):  # type: ignore[no-untyped-def]
    """The larger of each number and a bound."""
    return x(x, types.float32), lambda context, builder, signature, given: bounded(builder, "<", *given)


@intrinsic
def at_most(typing, x, bound):  # type: ignore[no-untyped-def]
    """The smaller of each number and a bound."""
    return x(x, types.float32), lambda context, builder, signature, given: bounded(builder, ">", *given)


def bounded(builder: ir.IRBuilder, beyond: str, x: ir.Value, bound: ir.Value) -> ir.Value:
    """Numbers, or the bound for those beyond it; NaN stays."""
    limit = _as_numbers(builder, bound, x.type.count)
    return builder.select(builder.fcmp_ordered(beyond, x, limit), limit, x)


@intrinsic
def signed(typing, size, x):  # type: ignore[no-untyped-def]
    """Positive numbers, each with the sign of another."""

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        count = given[0].type.count
        bits = ir.VectorType(ir.IntType(32), count)
        size, x = (builder.bitcast(value, bits) for value in given)
        sign = builder.and_(x, ir.Constant(bits, [2**31] * count))
        return builder.bitcast(builder.or_(size, sign), numbers_of(count))

    return size(size, x), build


@intrinsic
def above_zero(typing, x):  # type: ignore[no-untyped-def]
    """1 for each positive number, NaN for NaN, else 0."""

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        count = given[0].type.count
        above = builder.fcmp_ordered(">", given[0], constant(0.0, count))
        below = builder.fcmp_ordered("<=", given[0], constant(0.0, count))
        step = builder.select(below, constant(0.0, count), given[0])
        return builder.select(above, constant(1.0, count), step)

    return x(x), build
