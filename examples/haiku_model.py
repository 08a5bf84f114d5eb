"""A Haiku classifier of handwritten digits, trained with the losses of jaxsoftmax.

    python examples/haiku_model.py [--small] [--seed 0]

The model has a discrete bottleneck: all that its last layer learns of an image is 24 codes of 8 categories each, drawn
by `jaxsoftmax.gumbel_softmax` with `hard=True`: one-hot forward, relaxed backward. A quarter of the training labels is
missing. Those rows, and the padding of the last minibatch, carry the label -1, which `ignore_label` names: their loss
and their gradient are 0.
"""

import argparse
from collections.abc import Callable
from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from digits_data import CLASSES, Batches, Rows, load_splits, shuffled_batches
from tqdm import tqdm

import jaxsoftmax

Loss = Callable[[jax.Array, jax.Array], jax.Array]
State = tuple[hk.Params, optax.OptState]

IGNORED = -1
CODES = 24
CATEGORIES = 8
BATCH_SIZE = 64
OPTIMIZER = optax.adamw(5e-3, weight_decay=1e-2)
LOSSES: dict[str, Loss] = {
    "cross entropy": partial(jaxsoftmax.cross_entropy, ignore_label=IGNORED),
    "label smoothing": partial(jaxsoftmax.cross_entropy, label_smoothing=0.1, ignore_label=IGNORED),
    "focal": partial(jaxsoftmax.focal_loss, ignore_label=IGNORED),
    "hinge": partial(jaxsoftmax.hinge_loss, ignore_label=IGNORED),
}


def bottleneck(logits: jax.Array, training: bool) -> jax.Array:
    """One-hot codes [N, K, C]: drawn with relaxed gradients in training, the most probable ones in evaluation."""
    if training:
        return jaxsoftmax.gumbel_softmax(hk.next_rng_key(), logits, hard=True)
    return jax.nn.one_hot(logits.argmax(-1), CATEGORIES)


@hk.transform
def classify(images: jax.Array, training: bool) -> jax.Array:
    hidden = jax.nn.relu(hk.Linear(128)(images))
    codes = bottleneck(hk.Linear(CODES * CATEGORIES)(hidden).reshape(-1, CODES, CATEGORIES), training)
    return hk.Linear(CLASSES)(codes.reshape(-1, CODES * CATEGORIES))


def mean_over_labelled(losses: jax.Array, labels: jax.Array) -> jax.Array:
    return jaxsoftmax.weighted_mean(losses, labels != IGNORED)


@partial(jax.jit, static_argnames="loss")
def train_epoch(state: State, key: jax.Array, loss: Loss, train: Rows, batches: Batches) -> State:
    """Update parameters and optimizer, minibatch after minibatch."""

    def step(state: State, inputs: tuple[Batches, jax.Array]) -> tuple[State, None]:
        (params, optimizer_state), (batch, key) = state, inputs
        labels = jnp.where(batch.weights > 0, train.labels[batch.indices], IGNORED)

        def objective(params: hk.Params) -> jax.Array:
            logits = classify.apply(params, key, train.images[batch.indices], training=True)
            return mean_over_labelled(loss(logits, labels), labels)

        updates, optimizer_state = OPTIMIZER.update(jax.grad(objective)(params), optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), None

    return jax.lax.scan(step, state, (batches, jax.random.split(key, len(batches.indices))))[0]


@jax.jit
def evaluate(params: hk.Params, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Accuracy, and mean cross entropy in nats, of the rows with a label."""
    logits = classify.apply(params, None, rows.images, training=False)
    nll = jaxsoftmax.cross_entropy(logits, rows.labels, ignore_label=IGNORED)
    correct = (logits.argmax(-1) == rows.labels).astype(nll.dtype)
    return mean_over_labelled(correct, rows.labels), mean_over_labelled(nll, rows.labels)


@jax.jit
def create(key: jax.Array, images: jax.Array) -> State:
    params = classify.init(key, images, training=True)
    return params, OPTIMIZER.init(params)


def fit(loss: Loss, train: Rows, seed: int, epochs: int, title: str) -> hk.Params:
    # The default generator takes seconds to compile the noise on a CPU, this one a tenth of that.
    init_key, epochs_key = jax.random.split(jax.random.key(seed, impl="rbg"))
    state = create(init_key, train.images[:1])
    for key in tqdm(jax.random.split(epochs_key, epochs), desc=f"{title:<15}", unit="epoch", leave=False):
        shuffle_key, codes_key = jax.random.split(key)
        batches = shuffled_batches(shuffle_key, train.labels.size, BATCH_SIZE)
        state = train_epoch(state, codes_key, loss, train, batches)
    return state[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few epochs per loss, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="of the splits, the parameters, the batches and the codes")
    arguments = parser.parse_args()

    splits = load_splits(arguments.seed)
    train = splits.train._replace(labels=splits.train.labels.at[::4].set(IGNORED))
    print(f"{'':<15} {'train':>18} {'validation':>18}")
    print(f"{'loss':<15}" + 2 * f" {'accuracy':>9} {'NLL/nats':>8}")
    for name, loss in LOSSES.items():
        params = fit(loss, train, arguments.seed, epochs=5 if arguments.small else 40, title=name)
        numbers = [evaluate(params, rows) for rows in (train, splits.validation)]
        print(f"{name:<15}" + "".join(f" {accuracy:>9.3f} {nll:>8.3f}" for accuracy, nll in numbers))


if __name__ == "__main__":
    main()
