"""Numbers that remember the magnitude of the terms they were summed from, and rows of logits in arbitrary precision.

Every formula is evaluated by mpmath with so many digits that even the naive form (the logarithm of a probability that
is 1 - 1e-38) is right far beyond the precision of the arrays under test, and is rounded to float64 once, at the end.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mpmath
import numpy as np
from mpmath import mp, mpf

DIGITS = 110  # for inputs of up to float32: 1 - 1e-38 keeps 70 digits
DIGITS_WIDE = 420  # for inputs of float64: 1 - 1e-308 keeps 110


@dataclass(frozen=True, slots=True)
class Exact:
    """A sum, and the sum of the magnitudes of its terms: what rounding errors are measured by where signs are mixed."""

    value: mpf
    magnitude: mpf

    def __add__(self, other: "Exact") -> "Exact":
        return Exact(self.value + other.value, self.magnitude + other.magnitude)

    def __sub__(self, other: "Exact") -> "Exact":
        return Exact(self.value - other.value, self.magnitude + other.magnitude)

    def __neg__(self) -> "Exact":
        return Exact(-self.value, self.magnitude)

    def __mul__(self, factor: Any) -> "Exact":
        factor = factor if isinstance(factor, Exact) else term(factor)
        return Exact(self.value * factor.value, self.magnitude * factor.magnitude)

    __rmul__ = __mul__

    def stretched(self, factor: Any) -> "Exact":
        """The same value, computed through a step that multiplies rounding errors by this factor."""
        return Exact(self.value, self.magnitude * factor)


def term(value: Any) -> Exact:
    """One term, right to the last digit."""
    value = mpmath.mpmathify(value)
    return Exact(value, abs(value))


def total(terms: Iterable[Exact]) -> Exact:
    """The sum of the terms."""
    return functools.reduce(Exact.__add__, terms, ZERO)


ZERO = Exact(mpf(0), mpf(0))
NAN = Exact(mpf("nan"), mpf(0))
INF = Exact(mpf("inf"), mpf(0))


class Truth(NamedTuple):
    """Exact numbers as float64 arrays, each rounded once."""

    value: np.ndarray
    magnitude: np.ndarray

    @classmethod
    def of(cls, nested: Any) -> "Truth":
        """From (lists of) lists of `Exact`."""
        if isinstance(nested, Exact):
            return cls(np.float64(nested.value), np.float64(nested.magnitude))
        parts = [cls.of(item) for item in nested]
        return cls(np.array([part.value for part in parts]), np.array([part.magnitude for part in parts]))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Truth":
        """Both arrays reshaped, transposed or summed alike."""
        return Truth(function(self.value), function(self.magnitude))


def precise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluates with digits enough for the dtype of the first argument."""

    @functools.wraps(function)
    def wrapped(first: Any, *args: Any, **options: Any) -> Any:
        with mp.workdps(DIGITS_WIDE if np.asarray(first).dtype == np.float64 else DIGITS):
            return function(first, *args, **options)

    return wrapped


def per_row(value: Any, rows: int) -> list[mpf | None]:
    """A scalar or [N] as a list of N numbers; None for every row."""
    if value is None:
        return [None] * rows
    return [mpf(float(v)) for v in np.broadcast_to(np.asarray(value, np.float64).reshape(-1), rows)]


def per_class(value: Any, shape: tuple[int, int]) -> np.ndarray | None:
    """[V] or [N, V] as [N, V]."""
    return None if value is None else np.broadcast_to(np.asarray(value), shape)


class Row:
    """The classes present in one row and their effective logits, z = cap tanh(x / cap) / T.

    T = 0 is the limit: only the largest logits are present, at equal height, and every derivative is 0.

    Everything depends on differences of z. Those of uncapped logits are exact or nearly so; capped ones come rounded,
    and the error of their difference is relative to their sum. `stretch` says by how much that may multiply errors.
    """

    def __init__(self, logits: Any, where: Any = None, temperature: mpf | None = None, logit_cap: float | None = None):
        self.size = len(logits)
        allowed = [True] * self.size if where is None else [bool(w) for w in where]
        values = [mpf(float(x)) for x in logits]
        self.present = [j for j in range(self.size) if allowed[j] and values[j] != -mp.inf]
        self.temperature = mpf(1) if temperature is None else temperature
        self.slope = {j: mpf(1) for j in self.present}
        self.stretch = mpf(1)
        if logit_cap is not None:
            cap = mpf(float(logit_cap))
            self.slope = {j: mp.sech(values[j] / cap) ** 2 for j in self.present}
            values = [cap * mp.tanh(x / cap) if j in self.slope else x for j, x in enumerate(values)]
            if self.present and self.temperature != 0:
                self.stretch += 2 * max(abs(values[j]) for j in self.present) / self.temperature
        self.z: dict[int, mpf] = {j: values[j] for j in self.present}
        self.top = max(self.z.values(), default=-mp.inf)
        if self.temperature == 0:
            self.z = {j: mpf(0) for j, value in self.z.items() if value == self.top}
            self.present = list(self.z)
            self.top = mpf(0)
        else:
            self.z = {j: value / self.temperature for j, value in self.z.items()}
            self.top = self.top / self.temperature

    @functools.cached_property
    def terms(self) -> dict[int, mpf]:
        """exp(z - max z) of the classes present."""
        return {j: mp.exp(value - self.top) for j, value in self.z.items()}

    @functools.cached_property
    def sum(self) -> mpf:
        """The sum of exp(z - max z); 0 where no class is present."""
        return mp.fsum(self.terms.values())

    @functools.cached_property
    def p(self) -> dict[int, mpf]:
        """The probabilities of the classes present."""
        return {j: e / self.sum for j, e in self.terms.items()}

    @functools.cached_property
    def log_p(self) -> dict[int, mpf]:
        """Their logarithms."""
        log_sum = mp.log(self.sum) if self.present else mpf(0)
        return {j: value - self.top - log_sum for j, value in self.z.items()}

    @property
    def log_normalizer(self) -> Exact:
        """log sum exp z, from the largest logit and the logarithm of a sum."""
        if not self.present:
            return -INF
        return term(self.top) + term(mp.log(self.sum))

    def by_logits(self, dz: dict[int, Exact]) -> list[Exact]:
        """From the gradient with respect to z to that with respect to the logits x; 0 where a class is absent."""
        if self.temperature == 0:
            return [ZERO] * self.size
        factors = {j: slope / self.temperature for j, slope in self.slope.items()}
        return [(dz[j] * factors[j]).stretched(self.stretch) if j in dz else ZERO for j in range(self.size)]

    def by_temperature(self, dz: dict[int, Exact]) -> Exact:
        """The gradient with respect to T: -1 / T times the sum of dz z, taken relative to the largest z."""
        if self.temperature == 0 or not self.present:
            return ZERO
        dz = {j: g for j, g in dz.items() if j in self.z}
        moment = total(g * term(self.z[j] - self.top) for j, g in dz.items())
        common = term(self.top * mp.fsum(g.value for g in dz.values()))
        return ((moment + common) * (-1 / self.temperature)).stretched(self.stretch)
