"""Train classifiers of handwritten digits with the losses of jaxsoftmax, and compare them.

    python examples/digits.py [--small] [--seed 0] [--out results]

Two models, linear softmax regression and a small multilayer perceptron, are trained by cross entropy, label smoothing,
focal loss and hinge loss. Two training sets: the balanced one, and an imbalanced one, where three of the ten classes
keep five examples each; there, cross entropy with class weights joins the others. Validation and test images are the
same in both cases, and balanced.

Training stops early, on the validation cross entropy. The script prints one row per run, measured on the test images,
and writes two pictures: the learning curves, and the softmax on the three-class simplex at several temperatures.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from digits_data import CLASSES, PIXELS, Batches, Rows, load_splits, shuffled_batches
from mlp import Layers, init_mlp, mlp
from tqdm import tqdm

import jaxsoftmax

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

Loss = Callable[[jax.Array, jax.Array], jax.Array]
State = tuple[Layers, optax.OptState]

MODELS = {"linear": (PIXELS, CLASSES), "MLP": (PIXELS, 128, CLASSES)}
LEARNING_RATES = {"linear": 2e-2, "MLP": 3e-3}
MINORITY = (2, 5, 8)
MINORITY_ROWS = 5
BATCH_SIZE = 64
PATIENCE = 12
RING = 10  # in the picture of the simplex, every tenth length of the grid is drawn as a ring

# The columns of the table: titles, alignments and widths.
COLUMNS = {
    "model": "<7",
    "loss": "<16",
    "split": "<11",
    "accuracy": ">8",
    "NLL/nats": ">9",
    "NLL/bits": ">9",
    "recall": ">7",
    "epochs": ">7",
}

# Okabe and Ito's palette, which colour-blind readers can tell apart; a loss has the same colour in every picture.
COLOURS = {
    "cross entropy": "#0072B2",
    "label smoothing": "#E69F00",
    "focal": "#009E73",
    "hinge": "#CC79A7",
    "class weights": "#D55E00",
}

# The losses of --small: most of its time goes into compiling one program for each.
SMALL = ("cross entropy", "hinge", "class weights")


class Metrics(NamedTuple):
    """What is measured of a trained model: shares of the rows, and the negative log-likelihood in nats."""

    accuracy: jax.Array
    nll: jax.Array
    minority_recall: jax.Array


class Result(NamedTuple):
    """One run: what was trained, its validation cross entropy after each epoch, and the test numbers."""

    model: str
    loss: str
    split: str
    curve: list[float]
    test: Metrics


# ------------------------------------------------------------------------------------------------ data and models


def imbalance(rows: Rows, seed: int) -> Rows:
    """Keep only a few randomly chosen rows of each minority class."""
    labels = np.asarray(rows.labels)
    rng = np.random.default_rng(seed)
    keep = ~np.isin(labels, MINORITY)
    for label in MINORITY:
        keep[rng.choice(np.flatnonzero(labels == label), MINORITY_ROWS, replace=False)] = True
    return Rows(rows.images[keep], rows.labels[keep])


def inverse_frequencies(labels: jax.Array) -> jax.Array:
    """Class weights [V] under which every class counts alike; their mean over the rows is 1."""
    return labels.size / (CLASSES * jnp.bincount(labels, length=CLASSES))


def losses(train: Rows, split: str) -> dict[str, Loss]:
    """The losses to compare on a split: each takes logits [N, V] and labels [N] and returns [N]."""
    table: dict[str, Loss] = {
        "cross entropy": jaxsoftmax.cross_entropy,
        "label smoothing": partial(jaxsoftmax.cross_entropy, label_smoothing=0.1),
        "focal": partial(jaxsoftmax.focal_loss, gamma=2.0),
        "hinge": jaxsoftmax.hinge_loss,
    }
    if split == "imbalanced":
        weights = inverse_frequencies(train.labels)
        table["class weights"] = partial(jaxsoftmax.cross_entropy, class_weights=weights)
    return table


# ----------------------------------------------------------------------------------------- training and evaluation


def make_optimizer(learning_rate: float) -> optax.GradientTransformation:
    """AdamW that decays the kernels and leaves the biases alone."""
    return optax.adamw(learning_rate, weight_decay=1e-2, mask=partial(jax.tree.map, lambda leaf: leaf.ndim > 1))


def make_epoch(loss: Loss, optimizer: optax.GradientTransformation) -> Callable[[State, Rows, Batches], State]:
    """Compile one epoch of training: a scan over the minibatches."""

    def objective(params: Layers, rows: Rows, weights: jax.Array) -> jax.Array:
        # The weights take the padding of the last batch out of the mean, so that a short batch needs no second shape.
        return jaxsoftmax.weighted_mean(loss(mlp(params, rows.images), rows.labels), weights)

    @jax.jit
    def epoch(state: State, train: Rows, batches: Batches) -> State:
        def step(state: State, batch: Batches) -> tuple[State, None]:
            params, optimizer_state = state
            rows = Rows(train.images[batch.indices], train.labels[batch.indices])
            gradients = jax.grad(objective)(params, rows, batch.weights)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
            return (optax.apply_updates(params, updates), optimizer_state), None

        return jax.lax.scan(step, state, batches)[0]

    return epoch


def fit(
    key: jax.Array, model: str, loss: Loss, train: Rows, validation: Rows, epochs: int, title: str
) -> tuple[Layers, list[float]]:
    """Train until the validation cross entropy has not improved for a while.

    Returns:
        The parameters after the best epoch, and the validation cross entropy after every epoch.
    """
    optimizer = make_optimizer(LEARNING_RATES[model])
    epoch = make_epoch(loss, optimizer)
    init_key, shuffle_key = jax.random.split(key)
    best = init_mlp(init_key, MODELS[model])
    state = best, optimizer.init(best)
    curve: list[float] = []
    progress = tqdm(jax.random.split(shuffle_key, epochs), desc=f"{title:<36}", unit="epoch", leave=False)
    for epoch_key in progress:
        state = epoch(state, train, shuffled_batches(epoch_key, train.labels.size, BATCH_SIZE))
        curve.append(float(evaluate(state[0], validation).nll))
        progress.set_postfix(validation=f"{curve[-1]:.3f}", refresh=False)
        best_epoch = int(np.argmin(curve))
        if best_epoch == len(curve) - 1:
            best = state[0]
        elif len(curve) - 1 - best_epoch >= PATIENCE:
            break
    progress.close()
    return best, curve


@jax.jit
def evaluate(params: Layers, rows: Rows) -> Metrics:
    """Accuracy, mean negative log-likelihood in nats, and the recall averaged over the minority classes."""
    logits = mlp(params, rows.images)
    correct = (logits.argmax(-1) == rows.labels).astype(logits.dtype)
    nll = jaxsoftmax.cross_entropy(logits, rows.labels).mean()
    recalls = [jaxsoftmax.weighted_mean(correct, rows.labels == label) for label in MINORITY]
    return Metrics(correct.mean(), nll, jnp.stack(recalls).mean())


def run_all(seed: int, epochs: int, names: Collection[str]) -> list[Result]:
    """Train every model with the named losses on both splits; the runs of one model start from the same parameters."""
    data = load_splits(seed)
    splits = {"balanced": data.train, "imbalanced": imbalance(data.train, seed)}
    runs = [
        (model, split, name, loss)
        for split, train in splits.items()
        for model in MODELS
        for name, loss in losses(train, split).items()
        if name in names
    ]
    results = []
    for model, split, name, loss in tqdm(runs, desc="runs", unit="run"):
        title = f"{model}, {name}, {split}"
        params, curve = fit(jax.random.key(seed), model, loss, splits[split], data.validation, epochs, title)
        results.append(Result(model, name, split, curve, evaluate(params, data.test)))
    return results


# --------------------------------------------------------------------------------------------- the table, the pictures


def print_table(results: list[Result]) -> None:
    """One row per run, on the test images."""
    titles = " ".join(f"{title:{layout}}" for title, layout in COLUMNS.items())
    print(titles, "-" * len(titles), sep="\n")
    for model, loss, split, curve, (accuracy, nll, recall) in results:
        numbers = [f"{number:.3f}" for number in (accuracy, nll, nll / math.log(2), recall)]
        cells = [model, loss, split, *numbers, str(len(curve))]
        print(" ".join(f"{cell:{layout}}" for cell, layout in zip(cells, COLUMNS.values(), strict=True)))
    guess = math.log(CLASSES)
    minority = ", ".join(map(str, MINORITY))
    print("-" * len(titles))
    print(f"On the test images. A uniform guess has an NLL of {guess:.3f} nats, {guess / math.log(2):.3f} bits.")
    print(f"recall: mean over the classes {minority}, which keep {MINORITY_ROWS} images each in the imbalanced split.")


def plot_learning_curves(results: list[Result], path: Path) -> None:
    """Validation cross entropy against epochs, a panel per split and model; a dot marks the epoch that is kept."""
    splits = list(dict.fromkeys(result.split for result in results))
    figure, axes = plt.subplots(
        len(splits), len(MODELS), figsize=(9, 6.5), sharex="row", sharey="row", layout="constrained"
    )
    panels = dict(zip(itertools.product(splits, MODELS), axes.flat, strict=True))
    for result in results:
        axis, colour, best = panels[result.split, result.model], COLOURS[result.loss], int(np.argmin(result.curve))
        axis.plot(np.arange(1, len(result.curve) + 1), result.curve, color=colour, label=result.loss)
        axis.plot(best + 1, result.curve[best], "o", color=colour, markeredgecolor="white", zorder=3)
    for (split, model), axis in panels.items():
        axis.set(title=f"{model}, {split}", yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    for axis in axes[:, 0]:
        axis.set_ylabel("validation cross entropy (nats)")
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_simplex(path: Path) -> None:
    """Where softmax lays the same three-class logits, a polar grid around 0, on the simplex at four temperatures."""
    # Adding a constant to the logits changes no probability, so the plane of logits that sum to 0 shows everything.
    plane = np.array([[-1, -1, 2], [-1, 1, 0]]) / np.sqrt([[6], [2]])
    angles = np.linspace(0, 2 * np.pi, 361)
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=-1) @ plane
    lengths = np.linspace(0, 4, 81)
    grid = jnp.asarray(lengths[:, None, None] * directions)

    ringed = lengths[RING::RING]
    colours = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, len(ringed)))
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.3), layout="constrained")
    for axis, temperature in zip(axes, (0.5, 1.0, 2.0, 4.0), strict=True):
        draw_simplex(axis, np.asarray(jaxsoftmax.softmax(grid, temperature=temperature)), colours)
        axis.set_title(f"T = {temperature:g}", pad=20)
    rings = [Line2D([], [], color=colour, label=f"{ring:g}") for ring, colour in zip(ringed, colours, strict=True)]
    figure.legend(handles=rings[::-1], title="length of\nthe logits", loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_simplex(axis: Axes, grid: np.ndarray, colours: np.ndarray) -> None:
    """A triangle with a polar grid of distributions [lengths, angles, 3]: some rings, and a ray every 30 degrees."""
    corners = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])
    axis.fill(*corners.T, facecolor="0.97", edgecolor="0.3", linewidth=1)
    points = grid @ corners
    for ray in points[:, :-1:30].swapaxes(0, 1):
        axis.plot(*ray.T, color="0.75", linewidth=0.8)
    for ring, colour in zip(points[RING::RING], colours, strict=True):
        axis.plot(*ring.T, color=colour, linewidth=1.5)
    for number, (x, y) in enumerate(corners, start=1):
        axis.annotate(
            f"class {number}",
            (x, y),
            (0, 6 if y else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if y else "top",
        )
    axis.set(aspect="equal", xlim=(-0.15, 1.15))
    axis.set_axis_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer losses and epochs, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="of the splits, the parameters and the batches")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the pictures")
    arguments = parser.parse_args()

    epochs, names = (8, SMALL) if arguments.small else (120, tuple(COLOURS))
    results = run_all(arguments.seed, epochs, names)
    print_table(results)
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot_learning_curves(results, arguments.out / "learning_curves.png")
    plot_simplex(arguments.out / "simplex.png")
    print(f"Pictures: {arguments.out / 'learning_curves.png'}, {arguments.out / 'simplex.png'}")


if __name__ == "__main__":
    main()
