"""A variational autoencoder of handwritten digits with categorical latents, by the Gumbel-softmax relaxation.

    python examples/gumbel_vae.py [--small] [--seed 0] [--out results]

The encoder gives the logits of 20 independent latents of 10 categories each. In training, the latents are relaxed
samples from `jaxsoftmax.gumbel_softmax`, whose temperature falls from 0.5 to 0.2: first smoother gradients, then
samples that are nearly one-hot. The images are binarized at half of their range. In evaluation the samples are truly
one-hot, so that the ELBO printed is a lower bound of the log-likelihood of the discrete model,

    ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z)),    p(z) uniform,

in nats per image. The picture shows test images, their reconstructions, and samples from the prior.

Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from digits_data import PIXELS, SIDE, Batches, load_splits, shuffled_batches
from mlp import Layers, init_mlp, mlp
from tqdm import tqdm

import jaxsoftmax

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LATENTS = 20
CATEGORIES = 10
CODE = LATENTS * CATEGORIES
HIDDEN = 256
BATCH_SIZE = 64
START_TEMPERATURE, END_TEMPERATURE = 0.5, 0.2
EVALUATION_SAMPLES = 16
OPTIMIZER = optax.adamw(2e-3, weight_decay=0.1)


class Params(NamedTuple):
    encoder: Layers
    decoder: Layers


State = tuple[Params, optax.OptState]


class Bound(NamedTuple):
    """The two terms of the ELBO, in nats: the expected log-likelihood, and the divergence that is subtracted."""

    likelihood: jax.Array
    divergence: jax.Array

    @property
    def elbo(self) -> jax.Array:
        return self.likelihood - self.divergence


def init(key: jax.Array) -> Params:
    encoder_key, decoder_key = jax.random.split(key)
    return Params(init_mlp(encoder_key, (PIXELS, HIDDEN, CODE)), init_mlp(decoder_key, (CODE, HIDDEN, PIXELS)))


def encode(params: Params, images: jax.Array) -> jax.Array:
    """Logits [N, LATENTS, CATEGORIES] of q(z | x)."""
    return mlp(params.encoder, images).reshape(-1, LATENTS, CATEGORIES)


def decode(params: Params, codes: jax.Array) -> jax.Array:
    """Logits [N, PIXELS] of p(x | z), for codes [N, LATENTS, CATEGORIES]."""
    return mlp(params.decoder, codes.reshape(-1, CODE))


def bound(params: Params, key: jax.Array, images: jax.Array, temperature: jax.Array | float, hard: bool) -> Bound:
    """Both terms for each image, [N], with one sample of the latents."""
    logits = encode(params, images)
    codes = jaxsoftmax.gumbel_softmax(key, logits, temperature=temperature, hard=hard)
    likelihood = -jaxsoftmax.binary_cross_entropy(decode(params, codes), images).sum(-1)
    # Equal logits are the uniform prior. In exact arithmetic this is log(CATEGORIES) - entropy(logits), a difference
    # that cancels when a latent is close to the prior.
    divergence = jaxsoftmax.kl_divergence(jnp.zeros_like(logits), logits).sum(-1)
    return Bound(likelihood, divergence)


def anneal(progress: float) -> float:
    """The temperature after a share of the training: it falls geometrically."""
    return START_TEMPERATURE * (END_TEMPERATURE / START_TEMPERATURE) ** progress


@jax.jit
def train_epoch(state: State, key: jax.Array, images: jax.Array, temperature: float) -> State:
    """Update parameters and optimizer, minibatch after minibatch; the temperature is traced, not compiled in."""
    shuffle_key, codes_key = jax.random.split(key)
    batches = shuffled_batches(shuffle_key, len(images), BATCH_SIZE)

    def step(state: State, inputs: tuple[Batches, jax.Array]) -> tuple[State, None]:
        (params, optimizer_state), (batch, key) = state, inputs

        def objective(params: Params) -> jax.Array:
            elbos = bound(params, key, images[batch.indices], temperature, hard=False).elbo
            return -jaxsoftmax.weighted_mean(elbos, batch.weights)

        updates, optimizer_state = OPTIMIZER.update(jax.grad(objective)(params), optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), None

    return jax.lax.scan(step, state, (batches, jax.random.split(codes_key, len(batches.indices))))[0]


@jax.jit
def evaluate(params: Params, key: jax.Array, images: jax.Array) -> Bound:
    """Means over the images and over several one-hot samples of the latents."""
    keys = jax.random.split(key, EVALUATION_SAMPLES)
    # The largest of the noisy logits, and so a hard sample, is the same at every temperature.
    terms = jax.lax.map(lambda key: bound(params, key, images, temperature=1.0, hard=True), keys)
    return jax.tree.map(jnp.mean, terms)


def fit(key: jax.Array, images: jax.Array, validation: jax.Array, epochs: int) -> Params:
    """Train, and print the terms of the bound on the validation images on the way."""
    init_key, epochs_key, evaluation_key = jax.random.split(key, 3)
    params = init(init_key)
    state = params, OPTIMIZER.init(params)
    print(f"{'epoch':>5} {'temperature':>12} {'log p(x|z)':>11} {'KL':>8} {'ELBO':>8}   (validation, nats per image)")
    for epoch, epoch_key in enumerate(tqdm(jax.random.split(epochs_key, epochs), unit="epoch", leave=False)):
        temperature = anneal(epoch / epochs)
        if epoch % (epochs // 5) == 0:
            tqdm.write(f"{epoch:>5} {temperature:>12.3f} {describe(evaluate(state[0], evaluation_key, validation))}")
        state = train_epoch(state, epoch_key, images, temperature)
    print(f"{epochs:>5} {END_TEMPERATURE:>12.3f} {describe(evaluate(state[0], evaluation_key, validation))}")
    return state[0]


def describe(terms: Bound) -> str:
    return f"{terms.likelihood:>11.2f} {terms.divergence:>8.2f} {terms.elbo:>8.2f}"


def plot_images(params: Params, key: jax.Array, images: jax.Array, path: Path) -> None:
    """Images above their reconstructions from one-hot samples, and samples from the prior; a dark pixel is a 1."""
    posterior_key, prior_key = jax.random.split(key)
    columns = len(images)
    uniform = jnp.zeros((4 * columns, LATENTS, CATEGORIES))
    codes = jaxsoftmax.gumbel_softmax(posterior_key, encode(params, images), hard=True)
    reconstructions = jax.nn.sigmoid(decode(params, codes))
    samples = jax.nn.sigmoid(decode(params, jaxsoftmax.gumbel_softmax(prior_key, uniform, hard=True)))

    figure, axes = plt.subplots(2, 1, figsize=(9, 4.2), height_ratios=(2, 4), layout="constrained")
    panels = {
        "test images (above) and their reconstructions": jnp.concatenate([images, reconstructions]),
        "samples from the prior": samples,
    }
    for axis, (title, pictures) in zip(axes, panels.items(), strict=True):
        axis.imshow(tile(np.asarray(pictures), columns), cmap="Blues", vmin=0, vmax=1)
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def tile(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Lay pictures [R * columns, PIXELS] on a grid, with empty pixels between them (NaN is not drawn)."""
    cells = pictures.reshape(-1, columns, SIDE, SIDE)
    cells = np.pad(cells, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    return cells.swapaxes(1, 2).reshape(-1, columns * (SIDE + 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few epochs, for a quick look")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the splits, the parameters, the batches and the samples"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the picture")
    arguments = parser.parse_args()

    splits = load_splits(arguments.seed)
    train, validation, test = ((rows.images > 0.5).astype(jnp.float32) for rows in splits)
    # The default generator takes seconds to compile for each shape of noise on a CPU, this one a tenth of that.
    fit_key, test_key, plot_key = jax.random.split(jax.random.key(arguments.seed, impl="rbg"), 3)
    params = fit(fit_key, train, validation, epochs=10 if arguments.small else 200)
    print(f"{'test images':>18} {describe(evaluate(params, test_key, test))}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "gumbel_vae.png"
    plot_images(params, plot_key, test[:16], path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
