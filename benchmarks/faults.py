"""Inputs at which other libraries go wrong: one small reproduction each, run in every library that has the function.

"jax" means jax.nn, optax, or the expression that is commonly written with them where neither has a function.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsoftmax
from benchmarks import harness

__all__ = ["fault_rows", "print_faults"]

INF = math.inf
FLOAT32 = 1e-6


@dataclasses.dataclass(frozen=True)
class Fault:
    """One input, its exact result, and how to run it.

    Attributes:
        what: the input and the quantity.
        exact: the number or numbers that are right, or `ValueError` where only refusing is right.
        ours: runs it here.
        jax: runs it in jax.nn, in optax or as the common expression; None where neither has a like.
        torch: runs it in torch, the module being the argument; None where torch has no like.
        tolerance: relative, or absolute where the exact result is 0.
    """

    what: str
    exact: Any
    ours: Callable[[], Any]
    jax: Callable[[], Any] | None
    torch: Callable[[Any], Any] | None
    tolerance: float = FLOAT32


def tensor(torch: Any, values: Any, dtype: str = "float32") -> Any:
    return torch.tensor(values, dtype=getattr(torch, dtype))


def torch_gradient(torch: Any, function: Callable, values: Any, cotangent: Any = None, dtype: str = "float32") -> Any:
    x = tensor(torch, values, dtype).requires_grad_()
    seed = None if cotangent is None else tensor(torch, cotangent, dtype)
    return torch.autograd.grad(function(x), x, seed)[0]


def pulled_back(function: Callable, logits: jax.Array, cotangent: jax.Array) -> jax.Array:
    return jax.vjp(function, logits)[1](cotangent)[0]


def tail_losses() -> list[Fault]:
    """Confident rows, where 1 - p is far below eps."""
    logits, label = [17.0, 0.0], 0
    exact = math.log1p(math.exp(-17))
    return [
        Fault(
            "cross entropy, z = [17, 0], label 0",
            exact,
            lambda: jaxsoftmax.cross_entropy(jnp.array(logits), label),
            lambda: optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), jnp.array(label)),
            lambda torch: torch.nn.functional.cross_entropy(tensor(torch, logits), torch.tensor(label)),
        )
    ]


def tail_gradient() -> list[Fault]:
    logits, cotangent = [37.43, 0.0], [1.0, 0.0]
    tail = math.exp(-37.43)
    slope = tail / (1 + tail) ** 2

    def run(softmax: Callable) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(pulled_back(softmax, jnp.array(logits), jnp.array(cotangent)))

    return [
        Fault(
            "softmax gradient, z = [37.43, 0], cotangent [1, 0], float64",
            [slope, -slope],
            lambda: run(jaxsoftmax.softmax),
            lambda: run(jax.nn.softmax),
            lambda torch: torch_gradient(torch, lambda x: torch.softmax(x, -1), logits, cotangent, "float64"),
            tolerance=1e-13,
        )
    ]


def absent_classes() -> list[Fault]:
    """Logits of -inf, the usual way to take a class out."""
    empty, some, targets = [-INF] * 3, [0.0, 0.0, -INF], [0.5, 0.5, 0.0]
    model, teacher = [1.0, 0.0, -INF], [0.0, 0.0, -INF]
    kl = -math.log(2) - 0.5 * sum(math.log(1 / (1 + math.exp(sign))) for sign in (-1, 1))
    smoothing = 0.1

    def torch_kl(torch: Any) -> Any:
        log_probs, log_targets = (torch.log_softmax(tensor(torch, x), -1) for x in (model, teacher))
        return torch.nn.functional.kl_div(log_probs, log_targets, reduction="sum", log_target=True)

    return [
        Fault(
            "softmax of a row of -inf",
            [0.0] * 3,
            lambda: jaxsoftmax.softmax(jnp.array(empty)),
            lambda: jax.nn.softmax(jnp.array(empty)),
            lambda torch: torch.softmax(tensor(torch, empty), -1),
        ),
        Fault(
            "logsumexp gradient, a row of -inf",
            [0.0] * 3,
            lambda: jax.grad(jaxsoftmax.logsumexp)(jnp.array(empty)),
            lambda: jax.grad(jax.nn.logsumexp)(jnp.array(empty)),
            lambda torch: torch_gradient(torch, lambda x: torch.logsumexp(x, -1), empty),
        ),
        Fault(
            "soft cross entropy, target 0 at a logit of -inf",
            math.log(2),
            lambda: jaxsoftmax.soft_cross_entropy(jnp.array(some), jnp.array(targets)),
            lambda: optax.softmax_cross_entropy(jnp.array(some), jnp.array(targets)),
            lambda torch: torch.nn.functional.cross_entropy(tensor(torch, some), tensor(torch, targets)),
        ),
        Fault(
            "KL divergence, -inf in both rows of logits",
            kl,
            lambda: jaxsoftmax.kl_divergence(jnp.array(model), jnp.array(teacher)),
            lambda: optax.kl_divergence(jax.nn.log_softmax(jnp.array(model)), jax.nn.softmax(jnp.array(teacher))),
            torch_kl,
        ),
        Fault(
            "label smoothing 0.1, another class at -inf",
            math.log(2),
            lambda: jaxsoftmax.cross_entropy(jnp.array(some), 0, label_smoothing=smoothing),
            lambda: optax.softmax_cross_entropy(jnp.array(some), optax.smooth_labels(jax.nn.one_hot(0, 3), smoothing)),
            lambda torch: torch.nn.functional.cross_entropy(
                tensor(torch, some), torch.tensor(0), label_smoothing=smoothing
            ),
        ),
        *masks(smoothing),
    ]


def masks(smoothing: float) -> list[Fault]:
    """Classes taken out with `where=`."""
    hot = [1.0, 0.0, 0.0]
    without_last, without_label = [True, True, False], [True, False, True]
    logits, label = [1.0, 5.0, 0.0], 1
    return [
        Fault(
            "smooth_labels of [1, 0, 0] by 0.1, where = [1, 1, 0]",
            [0.95, 0.05, 0.0],
            lambda: jaxsoftmax.smooth_labels(jnp.array(hot), smoothing, where=jnp.array(without_last)),
            lambda: optax.smooth_labels(jnp.array(hot), smoothing, where=jnp.array(without_last)),
            None,
        ),
        Fault(
            "cross entropy, where leaves out the label's class",
            INF,
            lambda: jaxsoftmax.cross_entropy(jnp.array(logits), label, where=jnp.array(without_label)),
            lambda: optax.softmax_cross_entropy_with_integer_labels(
                jnp.array(logits), jnp.array(label), where=jnp.array(without_label)
            ),
            None,
        ),
    ]


def temperature() -> list[Fault]:
    logits, low = [3e9, 2.9e9], 0.3
    return [
        Fault(
            "softmax at x / T = 1e10, T = 0.3, jit",
            [1.0, 0.0],
            lambda: jax.jit(lambda x, t: jaxsoftmax.softmax(x, temperature=t))(jnp.array(logits), low),
            lambda: jax.jit(lambda x, t: jax.nn.softmax(x / t))(jnp.array(logits), low),
            lambda torch: torch.softmax(tensor(torch, logits) / low, -1),
        )
    ]


def few_digits() -> list[Fault]:
    """Sums of more terms than float16 can count."""
    count = 70_000
    zeros = jnp.zeros(count, jnp.float16)
    hot = zeros.at[0].set(1)

    def log_softmax_slope(torch: Any) -> Any:
        slopes = torch_gradient(torch, lambda x: torch.log_softmax(x, -1), np.zeros(count), np.asarray(hot), "float16")
        return slopes[:2]

    return [
        Fault(
            "logsumexp of 70 000 zeros, float16",
            math.log(count),
            lambda: jaxsoftmax.logsumexp(zeros),
            lambda: jax.nn.logsumexp(zeros),
            lambda torch: torch.logsumexp(tensor(torch, np.zeros(count), "float16"), -1),
            tolerance=2.0**-11,
        ),
        Fault(
            "log_softmax gradient, the same, cotangent [1, 0, ...]",
            [1 - 1 / count, -1 / count],
            lambda: pulled_back(jaxsoftmax.log_softmax, zeros, hot)[:2],
            lambda: pulled_back(jax.nn.log_softmax, zeros, hot)[:2],
            log_softmax_slope,
            # 1 / 70 000 lies among the subnormal numbers of float16, where one step is 0.4 % of it.
            tolerance=4e-3,
        ),
    ]


def many_classes() -> list[Fault]:
    """The size of a vocabulary in bfloat16, over 64 rows."""
    logits = (3 * jax.random.normal(jax.random.key(0), (64, 32_000))).astype(jnp.bfloat16)
    wide = np.asarray(logits, np.float64)
    log_normalizers = np.log(np.exp(wide).sum(-1))
    nearest = np.asarray(jnp.asarray(log_normalizers, jnp.bfloat16), np.float64)

    def in_torch(torch: Any) -> Any:
        return tensor(torch, wide, "bfloat16")

    def off(results: Any) -> int:
        return int((as_float64(results) != nearest).sum())

    def farthest_sum(probs: Any) -> float:
        sums = as_float64(probs).sum(-1)
        return float(sums[np.abs(sums - 1).argmax()])

    return [
        Fault(
            "logsumexp [64, 32000], bfloat16: rows that are not the nearest number",
            0,
            lambda: off(jaxsoftmax.logsumexp(logits)),
            lambda: off(jax.nn.logsumexp(logits, axis=-1)),
            lambda torch: off(torch.logsumexp(in_torch(torch), -1)),
        ),
        Fault(
            "softmax of a third of the same: the row sum farthest from 1",
            1.0,
            lambda: farthest_sum(jaxsoftmax.softmax(logits / 3)),
            lambda: farthest_sum(jax.nn.softmax(logits / 3)),
            lambda torch: farthest_sum(torch.softmax(in_torch(torch) / 3, -1)),
            # The entries are rounded to 8 bits each, and the errors of so many nearly cancel.
            tolerance=5e-4,
        ),
        Fault(
            "cross entropy of its first row, label 0",
            log_normalizers[0] - wide[0, 0],
            lambda: jaxsoftmax.cross_entropy(logits[0], 0),
            lambda: optax.softmax_cross_entropy_with_integer_labels(logits[0], jnp.array(0)),
            lambda torch: torch.nn.functional.cross_entropy(in_torch(torch)[0], torch.tensor(0)),
        ),
    ]


def focal() -> list[Fault]:
    """gamma < 1: the slope of (1 - p)**gamma has no bound at p = 1."""
    logits, label, gamma = [40.0, 0.0], 0, 0.5
    wrong = math.exp(-40) / (1 + math.exp(-40))
    loss = math.log1p(math.exp(-40))
    slope = gamma * wrong**gamma * (1 - wrong) * loss + wrong ** (gamma + 1)

    def ours(x: jax.Array) -> jax.Array:
        return jaxsoftmax.focal_loss(x, label, gamma=gamma)

    def expression(x: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(x, jnp.array(label))
        return (1 - jnp.exp(-losses)) ** gamma * losses

    def in_torch(torch: Any, x: Any) -> Any:
        losses = torch.nn.functional.cross_entropy(x, torch.tensor(label))
        return (1 - torch.exp(-losses)) ** gamma * losses

    return [
        Fault(
            "focal loss, gamma 0.5, z = [40, 0], label 0",
            wrong**gamma * loss,
            lambda: ours(jnp.array(logits)),
            lambda: expression(jnp.array(logits)),
            lambda torch: in_torch(torch, tensor(torch, logits)),
            tolerance=4e-6,
        ),
        Fault(
            "its gradient",
            [-slope, slope],
            lambda: jax.grad(ours)(jnp.array(logits)),
            lambda: jax.grad(expression)(jnp.array(logits)),
            lambda torch: torch_gradient(torch, functools.partial(in_torch, torch), logits),
            tolerance=4e-6,
        ),
    ]


def wrong_arguments() -> list[Fault]:
    logits, label = [0.0, 1.0, 2.0], -1
    few, many = jnp.zeros((2, 3)), jnp.ones((5, 1, 3)) / 3
    return [
        Fault(
            "cross entropy, label -1 (NaN, or an error)",
            math.nan,
            lambda: jaxsoftmax.cross_entropy(jnp.array(logits), label),
            lambda: optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), jnp.array(label)),
            lambda torch: torch.nn.functional.cross_entropy(tensor(torch, logits), torch.tensor(label)),
        ),
        Fault(
            "soft cross entropy, logits [2, 3], targets [5, 1, 3]",
            ValueError,
            lambda: jaxsoftmax.soft_cross_entropy(few, many),
            lambda: optax.softmax_cross_entropy(few, many),
            lambda torch: torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.ones(5, 1, 3) / 3),
        ),
    ]


def relaxed_choices() -> list[Fault]:
    """Gumbel-softmax, counted over many rows."""
    key, rows = jax.random.key(0), 1000

    def expression(key: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
        soft = jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape, logits.dtype)) / temperature)
        hard = (soft == soft.max(-1, keepdims=True)).astype(soft.dtype)
        return hard - jax.lax.stop_gradient(soft) + soft

    def ours(key: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
        return jaxsoftmax.gumbel_softmax(key, logits, temperature=temperature, hard=True)

    def in_torch(torch: Any, classes: int, temperature: float, dtype: str) -> Any:
        torch.manual_seed(0)
        logits = torch.zeros(rows, classes, dtype=getattr(torch, dtype))
        return torch.nn.functional.gumbel_softmax(logits, tau=temperature, hard=True).float().numpy()

    def one_hot_rows(samples: Any) -> int:
        samples = np.asarray(samples, np.float32)
        return int((((samples == 0) | (samples == 1)).all(-1) & (samples.sum(-1) == 1)).sum())

    def first_tenth(samples: Any) -> float:
        samples = np.asarray(samples, np.float32)
        return float((samples.argmax(-1) < samples.shape[-1] // 10).mean())

    def fault(
        what: str, exact: float, count: Callable, classes: int, temperature: float, dtype: str, **more: float
    ) -> Fault:
        logits = jnp.zeros((rows, classes), dtype)
        return Fault(
            what,
            exact,
            lambda: count(jax.jit(ours)(key, logits, temperature)),
            lambda: count(jax.jit(expression)(key, logits, temperature)),
            lambda torch: count(in_torch(torch, classes, temperature, dtype)),
            **more,
        )

    return [
        fault(
            "hard Gumbel-softmax, 100 classes, bfloat16, jit: one-hot rows of 1 000",
            rows,
            one_hot_rows,
            100,
            0.7,
            "bfloat16",
        ),
        fault("the same with 10 classes, float32, temperature 0", rows, one_hot_rows, 10, 0.0, "float32"),
        # A thousand draws of a chance of 0.1 are within 0.03 of it in all but one run of five hundred.
        fault(
            "share of the first tenth of 1 000 equal classes, bfloat16",
            0.1,
            first_tenth,
            1000,
            0.7,
            "bfloat16",
            tolerance=0.3,
        ),
    ]


def collect() -> list[Fault]:
    groups = (
        tail_losses,
        tail_gradient,
        focal,
        absent_classes,
        temperature,
        few_digits,
        many_classes,
        wrong_arguments,
        relaxed_choices,
    )
    return [fault for group in groups for fault in group()]


def run(function: Callable, *args: Any) -> Any:
    """The result, or the exception where the library refuses: a refusal is an answer here."""
    try:
        return function(*args)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        return error


def is_right(result: Any, fault: Fault) -> bool:
    """Whether a result is the exact one; where that is NaN or a refusal, any refusal is."""
    if isinstance(result, Exception):
        return fault.exact is ValueError or (isinstance(fault.exact, float) and math.isnan(fault.exact))
    if fault.exact is ValueError:
        return False
    return np.allclose(as_float64(result), fault.exact, rtol=fault.tolerance, atol=0, equal_nan=True)


def as_float64(result: Any) -> np.ndarray:
    if hasattr(result, "detach"):
        result = result.detach().double().numpy()
    return np.asarray(result, np.float64)


def text(result: Any) -> str:
    """A number or a few, with the dtype where it is half; the shape of anything larger; the name of an exception."""
    if result is ValueError or isinstance(result, Exception):
        return "an error"
    values = as_float64(result)
    if values.ndim > 1:
        return f"an array {list(values.shape)}"
    numbers = ", ".join(f"{value:.8g}" if values.ndim == 0 else f"{value:.3g}" for value in np.atleast_1d(values))
    dtype = str(getattr(result, "dtype", "")).removeprefix("torch.")
    return (f"[{numbers}]" if values.ndim else numbers) + (f" {dtype}" if dtype in ("bfloat16", "float16") else "")


def fault_rows() -> list[dict]:
    """Runs everything: what each library gives, as text, and whether it is right."""
    torch = harness.torch_module()
    rows = []
    for fault in collect():
        results = {"jaxsoftmax": run(fault.ours)}
        if fault.jax is not None:
            results["jax.nn, optax"] = run(fault.jax)
        if torch is not None and fault.torch is not None:
            results["torch"] = run(fault.torch, torch)
        given = {name: {"text": text(result), "right": is_right(result, fault)} for name, result in results.items()}
        rows.append({"what": fault.what, "exact": text(fault.exact), "given": given})
    return rows


def print_faults(rows: Sequence[dict]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["given"]))

    def cell(row: dict, name: str) -> str:
        given = row["given"].get(name)
        return "-" if given is None else given["text"] + ("  " if given["right"] else " !")

    harness.print_table(
        ("input", "exact", *names),
        [(row["what"], row["exact"], *(cell(row, name) for name in names)) for row in rows],
    )
