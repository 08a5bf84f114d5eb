"""A Flax NNX classifier of handwritten digits, trained with the losses of jaxsoftmax.

    python examples/flax_model.py [--small] [--seed 0]

The model reads an image as eight rows of eight pixels, embeds each row, and pools the rows by attention. The weights of
the pooling come from `jaxsoftmax.softmax`, at a temperature that is a parameter of the model and is trained with the
rest: a temperature may be traced and differentiated.
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from digits_data import CLASSES, SIDE, Batches, Rows, load_splits, shuffled_batches
from flax import nnx
from tqdm import tqdm

import jaxsoftmax

Loss = Callable[[jax.Array, jax.Array], jax.Array]

WIDTH = 64
BATCH_SIZE = 64
LOSSES: dict[str, Loss] = {
    "cross entropy": jaxsoftmax.cross_entropy,
    "label smoothing": partial(jaxsoftmax.cross_entropy, label_smoothing=0.1),
    "focal": jaxsoftmax.focal_loss,
    "hinge": jaxsoftmax.hinge_loss,
}


class AttentionPooling(nnx.Module):
    """Averages vectors [..., T, D] with weights softmax(scores / temperature), both learned."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.score = nnx.Linear(features, 1, rngs=rngs)
        self.log_temperature = nnx.Param(jnp.zeros(()))

    def __call__(self, vectors: jax.Array) -> jax.Array:
        scores = self.score(vectors)
        weights = jaxsoftmax.softmax(scores, axis=-2, temperature=jnp.exp(self.log_temperature[...]))
        return (weights * vectors).sum(-2)


class Classifier(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.embed = nnx.Linear(SIDE, WIDTH, rngs=rngs)
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (SIDE, WIDTH)))
        self.mix = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.pool = AttentionPooling(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        rows = nnx.relu(self.embed(images.reshape(-1, SIDE, SIDE)) + self.position[...])
        return self.head(self.pool(nnx.relu(self.mix(rows))))


@partial(nnx.jit, static_argnames="loss")
def train_epoch(model: Classifier, optimizer: nnx.Optimizer, loss: Loss, train: Rows, batches: Batches) -> None:
    """Update the model and the optimizer in place, minibatch after minibatch; rows of weight 0 are padding."""

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def step(carry: tuple[Classifier, nnx.Optimizer], batch: Batches) -> tuple[Classifier, nnx.Optimizer]:
        images, labels = train.images[batch.indices], train.labels[batch.indices]

        def objective(model: Classifier) -> jax.Array:
            return jaxsoftmax.weighted_mean(loss(model(images), labels), batch.weights)

        model, optimizer = carry
        optimizer.update(model, nnx.grad(objective)(model))
        return carry

    step((model, optimizer), batches)


@nnx.jit
def evaluate(model: Classifier, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Accuracy, and mean cross entropy in nats."""
    logits = model(rows.images)
    return (logits.argmax(-1) == rows.labels).mean(), jaxsoftmax.cross_entropy(logits, rows.labels).mean()


@partial(nnx.jit, static_argnames="seed")
def create(seed: int) -> tuple[Classifier, nnx.Optimizer]:
    model = Classifier(rngs=nnx.Rngs(seed))
    return model, nnx.Optimizer(model, optax.adamw(1e-2, weight_decay=1e-2), wrt=nnx.Param)


def fit(loss: Loss, train: Rows, seed: int, epochs: int, title: str) -> Classifier:
    model, optimizer = create(seed)
    for key in tqdm(jax.random.split(jax.random.key(seed), epochs), desc=f"{title:<15}", unit="epoch", leave=False):
        train_epoch(model, optimizer, loss, train, shuffled_batches(key, train.labels.size, BATCH_SIZE))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few epochs per loss, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="of the splits, the parameters and the batches")
    arguments = parser.parse_args()

    splits = load_splits(arguments.seed)
    print(f"{'':<15} {'':>11} {'train':>18} {'validation':>18}")
    print(f"{'loss':<15} {'temperature':>11}" + 2 * f" {'accuracy':>9} {'NLL/nats':>8}")
    for name, loss in LOSSES.items():
        model = fit(loss, splits.train, arguments.seed, epochs=5 if arguments.small else 40, title=name)
        temperature = jnp.exp(model.pool.log_temperature[...])
        numbers = [evaluate(model, rows) for rows in (splits.train, splits.validation)]
        print(
            f"{name:<15} {temperature:>11.3f}" + "".join(f" {accuracy:>9.3f} {nll:>8.3f}" for accuracy, nll in numbers)
        )


if __name__ == "__main__":
    main()
