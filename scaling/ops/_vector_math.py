"""Elementary functions that LLVM can vectorise inside Numba kernels, in single precision.

Each is a short polynomial without branches or library calls. ``FLAGS`` allow contraction and reassociation but keep
NaN and infinity, so that a diverging run is seen to diverge.
"""

import llvmlite.binding as llvm
import numba
import numpy as np

if not numba.config.CPU_NAME and llvm.get_host_cpu_features().get("avx512f"):
    # LLVM keeps to half of a 512-bit register unless told otherwise; the scan is half again as fast with all of it.
    numba.config.CPU_NAME = llvm.get_host_cpu_name()
    numba.config.CPU_FEATURES = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"

FLAGS = {"contract", "reassoc", "nsz", "arcp"}
F = np.float32


@numba.njit(fastmath=FLAGS, error_model="numpy", inline="always")
def exp(x):  # type: ignore[no-untyped-def]  # compiled for float32
    """e^x, relative error below 2e-7 for -87 <= x <= 88, beyond which x is clamped; NaN stays NaN.

    x = k ln 2 + f with |f| <= ln(2) / 2; polynomial for e^f from Cephes ``expf``; 2^k is put together from its bits.
    """
    clamped = min(max(x, F(-87.0)), F(88.0))
    k = np.floor(clamped * F(1.4426950408889634) + F(0.5))
    f = clamped - k * F(0.693359375) + k * F(2.12194440e-4)
    p = F(1.9875691500e-4)
    p = p * f + F(1.3981999507e-3)
    p = p * f + F(8.3334519073e-3)
    p = p * f + F(4.1665795894e-2)
    p = p * f + F(1.6666665459e-1)
    p = p * f + F(5.0000001201e-1)
    p = p * (f * f) + (f + F(1.0))
    power_of_two = np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power_of_two


@numba.njit(fastmath=FLAGS, error_model="numpy", inline="always")
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x)."""
    return F(1.0) / (F(1.0) + exp(-x))


@numba.njit(fastmath=FLAGS, error_model="numpy", inline="always")
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x) = max(x, 0) + log1p(u), u = e^-|x|; log1p(u) = 2 artanh(u / (2 + u)) as a series."""
    u = exp(-abs(x))
    s = u / (F(2.0) + u)
    q = s * s
    p = F(1 / 13)
    p = p * q + F(1 / 11)
    p = p * q + F(1 / 9)
    p = p * q + F(1 / 7)
    p = p * q + F(1 / 5)
    p = p * q + F(1 / 3)
    p = p * q + F(1.0)
    return max(x, F(0.0)) + F(2.0) * s * p


@numba.njit(fastmath=FLAGS, error_model="numpy", inline="always")
def exp2(x):  # type: ignore[no-untyped-def]  # compiled for float32
    """2^x for x <= 0, relative error below 2e-7; x is clamped at -126, NaN stays NaN.

    x = k + f with |f| <= 1/2; the polynomial for 2^f has the least largest relative error, 9.2e-8, among those of its
    degree that are exact at 0; 2^k is put together from its bits.
    """
    clamped = max(x, F(-126.0))
    k = np.floor(clamped + F(0.5))
    f = clamped - k
    p = F(1.3264725407e-3)
    p = p * f + F(9.6715127680e-3)
    p = p * f + F(5.5507337492e-2)
    p = p * f + F(2.4022242083e-1)
    p = p * f + F(6.9314697760e-1)
    p = p * f + F(1.0)
    power_of_two = np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power_of_two
