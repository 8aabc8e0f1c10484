"""Second-order forward derivatives of elementwise formulas, sparse in the parameters.

A :class:`Jet` is a value with its first and second partial derivatives, each an array that broadcasts to (problem,
row). Formulas written with the operators and functions of this module give exact derivatives by the chain rule.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray


class Jet:
    """A value, (problem, row), with derivatives by parameter number; what is absent is zero."""

    __slots__ = ("first", "second", "value")
    __array_ufunc__ = None  # let array op Jet come here

    def __init__(self, value: Array, first: dict[int, Array], second: dict[tuple[int, int], Array]) -> None:
        self.value, self.first, self.second = value, first, second

    def __neg__(self) -> "Jet":
        return self * -1.0

    def __add__(self, other: "Jet | Array | float") -> "Jet":
        if not isinstance(other, Jet):
            return Jet(self.value + other, self.first, self.second)
        return Jet(self.value + other.value, _sum(self.first, other.first), _sum(self.second, other.second))

    def __sub__(self, other: "Jet | Array | float") -> "Jet":
        return self + (-other)

    def __mul__(self, other: "Jet | Array | float") -> "Jet":
        if not isinstance(other, Jet):
            return Jet(self.value * other, _scaled(self.first, other), _scaled(self.second, other))
        first = _sum(_scaled(self.first, other.value), _scaled(other.first, self.value))
        second = _sum(_scaled(self.second, other.value), _scaled(other.second, self.value))
        return Jet(self.value * other.value, first, _sum(second, _outer(self.first, other.first)))

    def __truediv__(self, other: "Jet | Array | float") -> "Jet":
        if not isinstance(other, Jet):
            return self * (1.0 / np.asarray(other))
        inverse = 1.0 / other.value
        return self * compose(other, inverse, -(inverse**2), 2 * inverse**3)

    def __rsub__(self, other: Array | float) -> "Jet":
        return -self + other

    __radd__, __rmul__ = __add__, __mul__


def variable(value: Array, place: int) -> Jet:
    """Parameter number ``place`` itself."""
    return Jet(value, {place: np.ones((1, 1))}, {})


def compose(u: Jet, value: Array, slope: Array, curve: Array) -> Jet:
    """h(u) from h, h' and h'' at u."""
    second = _sum(_scaled(u.second, slope), {p: curve * x for p, x in _square(u.first).items()})
    return Jet(value, _scaled(u.first, slope), second)


def exp(u: Jet) -> Jet:
    """Exponential."""
    e = np.exp(u.value)
    return compose(u, e, e, e)


def log(u: Jet) -> Jet:
    """Natural logarithm."""
    inverse = 1.0 / u.value
    return compose(u, np.log(u.value), inverse, -(inverse**2))


def expm1(u: Jet) -> Jet:
    """exp(u) - 1, exact near zero."""
    e = np.exp(u.value)
    return compose(u, np.expm1(u.value), e, e)


def softplus(u: Jet) -> Jet:
    """log(1 + exp(u))."""
    s = sigmoid_of(u.value)
    return compose(u, np.logaddexp(0.0, u.value), s, s * (1 - s))


def logaddexp(a: Jet, b: Jet) -> Jet:
    """log(exp(a) + exp(b))."""
    return b + softplus(a - b)


def where(condition: Array, a: Jet, b: Jet) -> Jet:
    """Rows of ``a`` where the condition holds, of ``b`` elsewhere."""

    def pick(x: dict, y: dict) -> dict:
        return {p: np.where(condition, x.get(p, 0.0), y.get(p, 0.0)) for p in x.keys() | y.keys()}

    return Jet(np.where(condition, a.value, b.value), pick(a.first, b.first), pick(a.second, b.second))


def solve(residual: Callable[[Jet], Jet], slope: Callable[[Array], Array], root: Array) -> Jet:
    """The jet of t with residual(t) = 0, from its value ``root``.

    Each Newton step carries the derivatives one order further, so that two of them are exact to second order.
    """
    t = Jet(root, {}, {})
    inverse = 1.0 / slope(root)
    for _ in range(2):
        t = t - residual(t) * inverse
    return t


def sigmoid_of(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _scaled(terms: dict, factor: Array | float) -> dict:
    return {p: x * factor for p, x in terms.items()}


def _sum(a: dict, b: dict) -> dict:
    return {**a, **{p: a[p] + x if p in a else x for p, x in b.items()}}


def _outer(a: dict[int, Array], b: dict[int, Array]) -> dict[tuple[int, int], Array]:
    """A b^T + b a^T, lower triangle."""
    found: dict[tuple[int, int], Array] = {}
    for i in a.keys() | b.keys():
        for j in a.keys() | b.keys():
            if i < j:
                continue
            parts = [a[p] * b[q] for p, q in ((i, j), (j, i)) if p in a and q in b]
            if parts:
                found[i, j] = parts[0] + parts[1] if len(parts) == 2 else parts[0]
    return found


def _square(a: dict[int, Array]) -> dict[tuple[int, int], Array]:
    """A a^T, lower triangle."""
    return {(i, j): a[i] * a[j] for i in a for j in a if i >= j}
