"""Handwritten digits for the examples: three splits and shuffled minibatches.

The images are scikit-learn's `load_digits`, 1797 of them, 8 x 8 pixels, and come with scikit-learn itself: nothing is
downloaded.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = 10
SIDE = 8
PIXELS = SIDE * SIDE


class Rows(NamedTuple):
    """Images [N, 64] in [0, 1] (float32) and their labels [N] (int32)."""

    images: jax.Array
    labels: jax.Array


class Splits(NamedTuple):
    """The same share of every class in each of the three."""

    train: Rows
    validation: Rows
    test: Rows


class Batches(NamedTuple):
    """Row indices [B, n] and their weights [B, n]: 1 for a row of the data, 0 for padding."""

    indices: jax.Array
    weights: jax.Array


def load_splits(seed: int) -> Splits:
    """Cut the digits into 1077 training, 360 validation and 360 test images."""
    digits = load_digits()
    images = (digits.data / digits.data.max()).astype(np.float32)
    labels = digits.target.astype(np.int32)
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=360, stratify=labels[rest], random_state=seed)
    return Splits(*(Rows(jnp.asarray(images[part]), jnp.asarray(labels[part])) for part in (train, validation, test)))


@partial(jax.jit, static_argnames=("rows", "batch_size"))
def shuffled_batches(key: jax.Array, rows: int, batch_size: int) -> Batches:
    """Put every row once in a batch, in random order; fill the last batch with row 0 at weight 0."""
    count = -(-rows // batch_size)
    padding = count * batch_size - rows
    indices = jnp.pad(jax.random.permutation(key, rows), (0, padding))
    weights = jnp.pad(jnp.ones(rows), (0, padding))
    return Batches(indices.reshape(count, batch_size), weights.reshape(count, batch_size))
