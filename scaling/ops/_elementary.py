"""Exponentials of vectors and tiles, and what is made of them: sigmoid and softplus."""

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from scaling.ops._jit import jit
from scaling.ops._vectors import FREE, F, above_zero, add, at_least, at_most, bounded, constant, numbers_of

MAGIC = 1.5 * 2**23
"""Added to a small number, it leaves the nearest integer in the last bits."""

EXP2 = (1.3264725407e-3, 9.6715127680e-3, 5.5507337492e-2, 2.4022242083e-1, 6.9314697760e-1, 1.0)
"""The polynomial for 2^f, |f| <= 1/2, of least largest relative error, 9.2e-8, among those exact at 0."""

LOG2_E = float(np.log2(np.e))
LN2 = (0.693359375, -2.12194440e-4)
"""In two parts, the first of which has so few bits that whole multiples of it are exact (Cephes)."""


@intrinsic
def exp2(typing, x):  # type: ignore[no-untyped-def]
    """2^x for x <= 126, relative error below 2e-7; x is clamped at -125.

    x = k + f with |f| <= 1/2. Sums with ``MAGIC`` must round, so LLVM is given no freedom there.
    """

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        count = given[0].type.count
        clamped = bounded(builder, "<", given[0], ir.Constant(ir.FloatType(), -125.0))
        shifted = builder.fadd(clamped, constant(MAGIC, count))
        f = builder.fsub(clamped, builder.fsub(shifted, constant(MAGIC, count)))
        return _power(builder, shifted, f, 1.0)

    return x(x), build


@intrinsic
def exp(typing, x):  # type: ignore[no-untyped-def]
    """e^x for x <= 87, relative error below 2e-7; x is clamped at -86.

    x = k ln 2 + f with |f| <= ln(2) / 2.
    """

    def build(context, builder, signature, given):  # type: ignore[no-untyped-def]
        count = given[0].type.count
        f = bounded(builder, "<", given[0], ir.Constant(ir.FloatType(), -86.0))
        shifted = builder.fadd(builder.fmul(f, constant(LOG2_E, count)), constant(MAGIC, count))
        k = builder.fsub(shifted, constant(MAGIC, count))
        for part in LN2:
            f = add(builder, f, builder.fmul(k, constant(-part, count), flags=FREE))
        return _power(builder, shifted, f, LOG2_E)

    return x(x), build


def _power(builder: ir.IRBuilder, shifted: ir.Value, f: ir.Value, scale: float) -> ir.Value:
    """2^(k + scale f): k, in the last bits of ``shifted``, is added to the exponent of the polynomial."""
    count = f.type.count
    coefficients = [value * scale ** (len(EXP2) - 1 - at) for at, value in enumerate(EXP2)]
    p = constant(coefficients[0], count)
    for coefficient in coefficients[1:]:
        p = add(builder, builder.fmul(p, f, flags=FREE), constant(coefficient, count))
    bits = ir.VectorType(ir.IntType(32), count)
    k = builder.shl(builder.bitcast(shifted, bits), ir.Constant(bits, [23] * count))
    return builder.bitcast(builder.add(builder.bitcast(p, bits), k), numbers_of(count))


@jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x)."""
    return F(1.0) / (F(1.0) + exp(at_most(F(0.0) - x, F(87.0))))


@jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x)."""
    positive = at_least(x, F(0.0))
    return _softplus(positive, exp(x - F(2.0) * positive))


@jit
def softplus_and_slope(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x) and 1 / (1 + e^-x), which share an exponential."""
    positive = at_least(x, F(0.0))
    u = exp(x - F(2.0) * positive)
    return _softplus(positive, u), (u + (F(1.0) - u) * above_zero(x)) / (F(1.0) + u)


@jit
def _softplus(positive, u):  # type: ignore[no-untyped-def]
    """max(x, 0) + log1p(u) for u = e^-|x|; log1p(u) = 2 artanh(u / (2 + u)) as a series."""
    s = u / (F(2.0) + u)
    q = s * s
    p = q * F(1 / 13) + F(1 / 11)
    p = p * q + F(1 / 9)
    p = p * q + F(1 / 7)
    p = p * q + F(1 / 5)
    p = p * q + F(1 / 3)
    p = p * q + F(1.0)
    return positive + F(2.0) * s * p
