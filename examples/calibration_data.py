"""Small data and over-trained networks, for the example of calibration.

The data come with scikit-learn: nothing is downloaded. Each set is cut in three: few rows for training, some to
calibrate with, and the others to judge by. Wrong labels are spread over all three alike, as where annotators err: what
the test rows are asked for is the label as it comes, and a calibrated probability knows how often that is wrong.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mlp import Layers, init_mlp, mlp
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

Loss = Callable[[jax.Array, jax.Array], jax.Array]
State = tuple[dict[str, Layers], optax.OptState]

HIDDEN = 128
LEARNING_RATE = 3e-3


class Rows(NamedTuple):
    """Inputs [N, D], standardized (float32), and labels [N] (int32)."""

    inputs: jax.Array
    labels: jax.Array


class Splits(NamedTuple):
    """Random rows each, so that those of calibration and test are exchangeable."""

    train: Rows
    calibration: Rows
    test: Rows


class Source(NamedTuple):
    """A data set of scikit-learn, and what is made of it; all rows that are not counted here are for the test."""

    load: Callable[..., Any]
    classes: int
    train: int
    calibration: int
    wrong: float  # the share of labels that are another class
    columns: tuple[int, ...] | None = None


def load_thirds(return_X_y: bool) -> tuple[np.ndarray, np.ndarray]:
    """How far diabetes has come a year later, in three classes of equal size: little, some and much."""
    inputs, progression = load_diabetes(return_X_y=return_X_y)
    return inputs, np.searchsorted(np.quantile(progression, [1 / 3, 2 / 3]), progression)


SOURCES = {
    "digits": Source(load_digits, 10, train=300, calibration=600, wrong=0.2),
    # texture, smoothness, symmetry and fractal dimension, on average and at worst: without the size of the nuclei,
    # which nearly decides, some cases stay in doubt
    "breast cancer": Source(
        load_breast_cancer, 2, train=100, calibration=200, wrong=0.0, columns=(1, 4, 8, 9, 21, 24, 28, 29)
    ),
    "diabetes": Source(load_thirds, 3, train=100, calibration=150, wrong=0.0),
}


def load_splits(name: str, seed: int) -> Splits:
    """Shuffle and cut a set, draw the wrong labels, and standardize by the training rows."""
    source = SOURCES[name]
    inputs, labels = source.load(return_X_y=True)
    if source.columns:
        inputs = inputs[:, source.columns]
    if name == "breast cancer":
        labels = 1 - labels  # scikit-learn has 1 for benign; here class 1 is what the triage looks for
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(labels)) < source.wrong
    labels = (labels + wrong * rng.integers(1, source.classes, len(labels))) % source.classes
    order = rng.permutation(len(labels))
    train, calibration, test = np.split(order, [source.train, source.train + source.calibration])
    mean, deviation = inputs[train].mean(axis=0), inputs[train].std(axis=0)
    inputs = (inputs - mean) / np.where(deviation == 0, 1.0, deviation)

    def rows(part: np.ndarray) -> Rows:
        return Rows(jnp.asarray(inputs[part], jnp.float32), jnp.asarray(labels[part], jnp.int32))

    return Splits(rows(train), rows(calibration), rows(test))


def overtrain(key: jax.Array, losses: dict[str, Loss], classes: int, train: Rows, steps: int) -> dict[str, Layers]:
    """Fit a perceptron for each loss, by Adam on all rows at once, with nothing to keep it from learning by heart.

    All start from the same parameters. They are trained in one program, as one model whose loss is the sum of theirs:
    no gradient mixes them, and Adam treats each number by itself.
    """
    optimizer = optax.adam(LEARNING_RATE)
    start = jax.jit(init_mlp, static_argnums=1)(key, (train.inputs.shape[1], HIDDEN, HIDDEN, classes))

    def objective(networks: dict[str, Layers]) -> jax.Array:
        return sum(loss(mlp(networks[name], train.inputs), train.labels).mean() for name, loss in losses.items())

    @jax.jit
    def fit(networks: dict[str, Layers]) -> dict[str, Layers]:
        def step(state: State, _: None) -> tuple[State, None]:
            networks, optimizer_state = state
            updates, optimizer_state = optimizer.update(jax.grad(objective)(networks), optimizer_state)
            return (optax.apply_updates(networks, updates), optimizer_state), None

        return jax.lax.scan(step, (networks, optimizer.init(networks)), length=steps)[0][0]

    return fit(dict.fromkeys(losses, start))
