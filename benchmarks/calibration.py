"""Temperature scaling: the time of a thousand fits, and the optimum they find: `python -m benchmarks.calibration`.

The peer is scikit-learn's temperature scaling, which fits one model a call. Calls are timed a few at a time, in turn
with ours, and their time is scaled to the number of models. The truth is scipy's bracketed search in float64 on the
derivative of the loss. It ends with the targets that the library sets itself and whether they are met.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax

from benchmarks import harness
from jaxsoftmax.calibration import fit_temperature

SHAPE, QUICK_SHAPE = (1000, 2000, 10), (50, 500, 10)  # models, rows, classes
CALLS = 20
# Arguments of `harness.sample`.
EFFORT = {"least_rounds": 9, "budget_s": 10.0}
QUICK_EFFORT = {"least_rounds": 3, "budget_s": 0.1}
SCALES = (0.05, 1.0, 5.0, 100.0)
SIZES = ((5, 10), (2000, 10), (2000, 1000))
QUICK_SIZES = ((5, 10), (200, 10))
OURS, OF_SKLEARN = "jaxsoftmax, all at once", "scikit-learn, one a call"


@dataclasses.dataclass(frozen=True)
class Optimum:
    """One fit: the temperature by the float64 search, relative errors, and |mean NLL - mean entropy| at ours."""

    rows: int
    classes: int
    scale: float
    exact: float
    error: float
    error_of_sklearn: float | None
    gap: float

    @property
    def place(self) -> str:
        return f"{harness.shape_text((self.rows, self.classes))} times {self.scale:g}"


def sklearn_model() -> type | None:
    """The class, which has no public name yet, or None where it is not installed."""
    try:
        from sklearn.calibration import _TemperatureScaling
    except ImportError:
        return None
    return _TemperatureScaling


def overconfident(shape: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [..., N, V] that are too large by a factor from 1 to 4 for each model, and labels [..., N]."""
    rng = np.random.default_rng(seed)
    logits = 2.0 * rng.standard_normal(shape, np.float32)
    labels = np.argmax(logits + rng.gumbel(size=shape).astype(np.float32), axis=-1)
    factors = rng.uniform(1.0, 4.0, (*shape[:-2], 1, 1)).astype(np.float32)
    return factors * logits, labels.astype(np.int32)


def exact_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The root of the derivative of the mean loss by 1 / T, in float64."""
    d = logits.astype(np.float64)
    d -= d.max(axis=1, keepdims=True)
    unit = -d.min()
    d /= unit
    target = d[np.arange(len(labels)), labels].mean()

    def slope(log_inverse: float) -> float:
        terms = np.exp(np.exp(log_inverse) * d)
        return ((terms * d).sum(1) / terms.sum(1)).mean() - target

    return float(unit * np.exp(-brentq(slope, -20.0, 40.0, xtol=1e-13)))


def optimum(rows: int, classes: int, scale: float) -> Optimum:
    """Fits the same labels, with logits of this scale."""
    logits, labels = overconfident((rows, classes), seed=rows)
    logits = np.float32(scale) * logits
    exact = exact_temperature(logits, labels)
    found = float(fit_temperature(logits, labels).temperature)
    model = sklearn_model()
    theirs = None if model is None else float(1.0 / model().fit(logits.astype(np.float64), labels).beta_)
    log_p = log_softmax(logits.astype(np.float64) / found, axis=1)
    nll, entropy = -log_p[np.arange(rows), labels].mean(), -(np.exp(log_p) * log_p).sum(1).mean()
    return Optimum(
        rows,
        classes,
        scale,
        exact,
        abs(found / exact - 1.0),
        None if theirs is None else abs(theirs / exact - 1.0),
        float(abs(nll - entropy)),
    )


def race(shape: tuple[int, int, int], effort: dict) -> dict[str, harness.Measurement]:
    """Our fits of all models in one program, and scikit-learn's of a few, scaled to all."""
    logits, labels = overconfident(shape, seed=0)
    candidates = {OURS: harness.compiled(jax.vmap(fit_temperature), jnp.asarray(logits), jnp.asarray(labels))}
    model, calls = sklearn_model(), min(CALLS, shape[0])
    if model is not None:
        # As its classifiers hand it logits: float64, and contiguous.
        some = [(logits[n].astype(np.float64), labels[n]) for n in range(calls)]
        candidates[OF_SKLEARN] = harness.Candidate(lambda: [model().fit(z, y) for z, y in some])
    times = harness.sample(candidates, **effort)
    if OF_SKLEARN in times:
        times[OF_SKLEARN] = [seconds * shape[0] / calls for seconds in times[OF_SKLEARN]]
    return harness.summarize(candidates, times, OF_SKLEARN if OF_SKLEARN in times else OURS)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller fits, few rounds")
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file; default for full runs")
    flags = parser.parse_args(arguments)
    # A hurried run must not overwrite the figures of a full one.
    if flags.out is None and not flags.quick:
        flags.out = harness.result_path("calibration")
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    if sklearn_model() is None:
        print("\nleft out, because it is not installed: scikit-learn")

    shape = QUICK_SHAPE if flags.quick else SHAPE
    measured = race(shape, QUICK_EFFORT if flags.quick else EFFORT)
    print(f"\n{shape[0]} temperatures, each from logits {harness.shape_text(shape[1:])}")
    print(f"(scikit-learn: {min(CALLS, shape[0])} calls a round, scaled to {shape[0]})")
    harness.print_table(
        ("fit", "ms", "ratio", "quartiles", "MB"),
        [
            (
                name,
                f"{m.median_s * 1e3:.1f}",
                f"{m.ratio:.3f}",
                f"{m.lower:.3f}-{m.upper:.3f}",
                harness.megabytes(m.temp_bytes),
            )
            for name, m in measured.items()
        ],
    )

    sizes = QUICK_SIZES if flags.quick else SIZES
    optima = [optimum(*size, scale) for size in sizes for scale in SCALES]
    print("\nthe optimum, against a bracketed search in float64")
    harness.print_table(
        ("logits", "T", "relative error", "of scikit-learn", "|NLL - entropy|"),
        [
            (
                o.place,
                f"{o.exact:.6g}",
                f"{o.error:.1e}",
                "-" if o.error_of_sklearn is None else f"{o.error_of_sklearn:.1e}",
                f"{o.gap:.1e}",
            )
            for o in optima
        ],
    )

    speed = [(measured[OURS].ratio, harness.shape_text(shape))] if OF_SKLEARN in measured else []
    results = [
        *harness.worst_of("time of all fits at once, ratio to scikit-learn's calls", 1 / 20, speed),
        *harness.worst_of("relative error of the temperature", 1e-4, ((o.error, o.place) for o in optima)),
        *harness.worst_of("|mean NLL - mean entropy| at the optimum", 1e-4, ((o.gap, o.place) for o in optima)),
    ]
    print("\ntargets")
    harness.print_targets(results)

    if flags.out is not None:
        harness.write_json(
            flags.out,
            {
                "targets": [dataclasses.asdict(t) | {"met": bool(t.met)} for t in results],
                "shape": shape,
                "times": {name: dataclasses.asdict(m) for name, m in measured.items()},
                "optima": [dataclasses.asdict(o) for o in optima],
            },
        )


if __name__ == "__main__":
    main()
