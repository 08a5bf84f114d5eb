"""Errors of values and gradients beside jax.nn, optax and torch: `python -m benchmarks.accuracy`.

The first table has the largest error of each quantity in float32, over logits of many scales, common offsets and row
lengths. Its unit is that of the library's promise, a relative error of at most 4 eps (1 + |log of the result|), so
the promise is kept where the figure is at most 4. The second table runs inputs at which other libraries go wrong.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsoftmax
from benchmarks import harness, truth
from benchmarks.faults import fault_rows, print_faults

PROMISE = 4.0
EPS = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)
# Near the smallest normal number the terms of a sum vanish before the sum does; errors above are shown apart.

SCALES = (0.1, 1.0, 5.0, 30.0, 100.0)
OFFSETS = (0.0, 1e4, 1e6)
LENGTHS = (1, 2, 10, 1000, 100_000)
QUICK_LENGTHS = (1, 2, 10, 1000)
# A gap of 85 puts 1 - p near 1e-37, just above the smallest normal number.
LARGEST_GAP = 85.0


def rows_of(length: int) -> int:
    return 64 if length <= 1000 else 8


def audited_rows(length: int) -> int:
    """How many rows mpmath goes over again: all the short ones, a few of the middle, none of the longest."""
    return {1000: 4, 100_000: 0}.get(length, rows_of(length))


def make_inputs(scale: float, offset: float, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and a cotangent in float32.

    The label is by turns on top by chance, anywhere, on top by a planted gap, and beaten by one.
    """
    rng = np.random.default_rng([round(10 * scale), round(offset), length])
    count = rows_of(length)
    logits = scale * rng.standard_normal((count, length))
    labels = rng.integers(0, length, count)
    kind = np.arange(count) % 4

    labels = np.where(kind == 0, logits.argmax(-1), labels)
    winners = np.where(kind == 2, labels, rng.integers(0, length, count))
    gaps = np.linspace(1, LARGEST_GAP, count)
    planted = (kind >= 2)[:, None] & (winners[:, None] == np.arange(length))
    logits = np.where(planted, (logits.max(-1) + gaps)[:, None], logits)
    return (
        (logits + offset).astype(np.float32),
        labels.astype(np.int32),
        rng.standard_normal((count, length)).astype(np.float32),
    )


def jax_quantities(softmax: Callable, log_softmax: Callable, cross_entropy: Callable, focal: Callable) -> Callable:
    """A compiled function from the inputs to every quantity that is judged, in jax."""

    def quantities(logits: jax.Array, labels: jax.Array, cotangent: jax.Array) -> dict[str, jax.Array]:
        hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        results = {}
        for name, loss in (("cross_entropy", cross_entropy), ("focal_loss", focal)):
            results[name], pullback = jax.vjp(lambda x, loss=loss: loss(x, labels), logits)
            (results[f"{name}, gradient"],) = pullback(jnp.ones(labels.shape, results[name].dtype))
        for name, normalizer in (("softmax", softmax), ("log_softmax", log_softmax)):
            results[name], pullback = jax.vjp(normalizer, logits)
            (results[f"{name}, gradient, one-hot"],) = pullback(hot)
            (results[f"{name}, gradient, any"],) = pullback(cotangent)
        return results

    return jax.jit(quantities)


def plain_focal(logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (1 - jnp.exp(-losses)) ** truth.GAMMA * losses


def torch_quantities(torch: Any) -> Callable:
    """The same in torch."""

    def cross_entropy(logits: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def focal(logits: Any, labels: Any) -> Any:
        losses = cross_entropy(logits, labels)
        return (1 - torch.exp(-losses)) ** truth.GAMMA * losses

    def quantities(logits: np.ndarray, labels: np.ndarray, cotangent: np.ndarray) -> dict[str, Any]:
        x = torch.from_numpy(logits).requires_grad_()
        y = torch.from_numpy(labels).long()
        hot = torch.nn.functional.one_hot(y, logits.shape[-1]).float()
        results = {}
        for name, loss in (("cross_entropy", cross_entropy), ("focal_loss", focal)):
            value = loss(x, y)
            results[name] = value.detach()
            (results[f"{name}, gradient"],) = torch.autograd.grad(value.sum(), x)
        for name, normalizer in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
            value = normalizer(x, -1)
            results[name] = value.detach()
            (results[f"{name}, gradient, one-hot"],) = torch.autograd.grad(value, x, hot, retain_graph=True)
            (results[f"{name}, gradient, any"],) = torch.autograd.grad(value, x, torch.from_numpy(cotangent))
        return results

    return quantities


def libraries() -> dict[str, Callable]:
    """By name, the functions from the inputs to the quantities; torch only where it is installed."""
    results = {
        "jaxsoftmax": jax_quantities(
            jaxsoftmax.softmax,
            jaxsoftmax.log_softmax,
            jaxsoftmax.cross_entropy,
            lambda logits, labels: jaxsoftmax.focal_loss(logits, labels, gamma=truth.GAMMA),
        ),
        "jax.nn, optax": jax_quantities(
            jax.nn.softmax,
            jax.nn.log_softmax,
            optax.softmax_cross_entropy_with_integer_labels,
            plain_focal,
        ),
    }
    torch = harness.torch_module()
    return results if torch is None else results | {"torch": torch_quantities(torch)}


def counts(size: np.ndarray) -> np.ndarray:
    """The promise ends at the smallest normal number."""
    return size >= TINY


def units(got: Any, answer: np.ndarray, size: np.ndarray, vanishing: float) -> float:
    """The largest error in units of eps (1 + |log size|) size, beyond what vanishing exponentials may amount to.

    An entry below the smallest normal number is right when the result is about as small, and else judged as if it were
    that number.
    """
    got = np.asarray(got, np.float64)
    vanished = ~counts(size) & (np.abs(got) <= 2 * TINY)
    judged = np.maximum(size, TINY)
    unit = EPS * judged * (1 + np.abs(np.log(judged)))
    errors = np.where(vanished, 0.0, np.maximum(np.abs(got - answer) - vanishing, 0.0) / unit)
    return float(np.where(np.isnan(errors), np.inf, errors).max())


def measure_errors(lengths: Sequence[int]) -> tuple[list[dict], float]:
    """The errors of every quantity, library and input, and how far the truth itself is from mpmath."""
    records, audited = [], 0.0
    functions = libraries()
    for length in lengths:
        for scale in SCALES:
            for offset in OFFSETS:
                inputs = make_inputs(scale, offset, length)
                answers = truth.exact(*inputs)
                audited = max(audited, truth.audit(*inputs, audited_rows(length), counts))
                results = {name: function(*inputs) for name, function in functions.items()}
                for quantity, (answer, size) in answers.items():
                    place = {"quantity": quantity, "scale": scale, "offset": offset, "classes": length}
                    # An exponential below the smallest normal number counts as 0, and a cotangent multiplies it.
                    vanishing = length * TINY * (np.abs(inputs[2]).max() if quantity.endswith("any") else 1.0)
                    errors = {
                        name: units(result[quantity], answer, size, vanishing) for name, result in results.items()
                    }
                    records.append(place | {"errors": errors})
    return records, audited


def print_errors(records: Sequence[dict]) -> None:
    """Prints the largest error of each quantity per library, and the input at which this library has its own."""
    names = list(records[0]["errors"])
    rows = []
    for quantity in dict.fromkeys(record["quantity"] for record in records):
        chosen = [record for record in records if record["quantity"] == quantity]
        worst = max(chosen, key=lambda record: record["errors"]["jaxsoftmax"])
        largest = [max(record["errors"][name] for record in chosen) for name in names]
        verdict = "kept" if worst["errors"]["jaxsoftmax"] <= PROMISE else "broken"
        place = f"{worst['scale']:g}, {worst['offset']:g}, {worst['classes']}"
        rows.append((quantity, *(f"{error:.3g}" for error in largest), verdict, place))
    harness.print_table(("largest error", *names, "promise", "ours at scale, offset, V"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="without the longest rows; writes no file unless --out says so"
    )
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file")
    flags = parser.parse_args(arguments)

    records, audited = measure_errors(QUICK_LENGTHS if flags.quick else LENGTHS)
    print(
        f"\nerrors in float32, in units of eps (1 + |log of the result|) of the result; promised: at most {PROMISE:g}"
    )
    print_errors(records)
    print(f"The truth is computed in float64; against mpmath its largest relative error was {audited:.1e}.")

    faults = fault_rows()
    print("\ninputs at which other libraries go wrong; ! marks a result that is not the exact one")
    print_faults(faults)

    out = flags.out or (None if flags.quick else harness.result_path("accuracy"))
    if out:
        harness.write_json(out, {"audit": audited, "errors": records, "faults": faults})


if __name__ == "__main__":
    main()
