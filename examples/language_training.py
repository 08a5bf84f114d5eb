"""Training a language model: the options, a step, and a run that may be killed at any moment.

The language models of the examples share this; each brings its own loss, and says where its arrays are. The batch of a
step depends on nothing but the seed and the step, so that a run that continues from a checkpoint sees what an
undisturbed one sees.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import optax
from checkpoints import Checkpoint, Checkpoints, Record
from text_data import SMALLEST_VOCABULARY, Corpus, Texts, load_corpus, load_texts, windows
from tqdm import tqdm
from transformer import Params, init_transformer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# The options of a run: what each is, its default, and its default with --small.
OPTIONS = {
    "steps": ("updates of the parameters", 300, 150),
    "batch": ("sequences in a batch", 8, 8),
    "length": ("tokens in a sequence", 256, 64),
    "width": ("features of a token", 256, 64),
    "layers": ("layers of the transformer", 4, 2),
    "heads": ("attention heads in a layer", 4, 2),
    "vocabulary": ("tokens in the vocabulary", 32_768, 512),
}

RATE_TIMES_WIDTH = 0.4  # the best learning rate of Adam falls with the width of the layers
WARMUP = 0.1  # the share of the steps in which the learning rate rises
WEIGHT_DECAY = 0.1
LARGEST_NORM = 1.0  # a gradient whose global norm is larger is scaled down to it
Z_LOSS = 1e-4

EVALUATIONS = 10  # and as many checkpoints
EVALUATION_BATCHES = 8


class Configuration(NamedTuple):
    """All that the numbers of a run depend on; `text` is the fingerprint of what it reads."""

    head: str
    seed: int
    text: str
    steps: int
    batch: int
    length: int
    width: int
    layers: int
    heads: int
    vocabulary: int


class State(NamedTuple):
    params: Params
    optimizer: optax.OptState


class Score(NamedTuple):
    """A mean validation loss in nats per token, and how many bytes of text a token stands for."""

    nats: float
    token_bytes: float

    def __str__(self) -> str:
        bits = self.nats / math.log(2) / self.token_bytes
        return f"{self.nats:>10.3f} {math.exp(self.nats):>10.1f} {bits:>9.3f}"


# -------------------------------------------------------------------------------------------------- a step of training


def make_optimizer(steps: int, width: int) -> optax.GradientTransformation:
    """AdamW that decays the kernels and leaves the scales of the normalizations alone."""
    peak = RATE_TIMES_WIDTH / width
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.1 * peak,
        peak_value=peak,
        warmup_steps=int(WARMUP * steps),
        decay_steps=steps,
        end_value=0.1 * peak,
    )
    decayed = partial(jax.tree.map_with_path, lambda path, _: not path[-1].key.endswith("scale"))
    return optax.chain(
        optax.clip_by_global_norm(LARGEST_NORM),
        optax.adamw(schedule, b2=0.95, weight_decay=WEIGHT_DECAY, mask=decayed),
    )


def keys(configuration: Configuration) -> jax.Array:
    """Independent keys of the parameters, the batches and the drawn text."""
    return jax.random.split(jax.random.key(configuration.seed), 3)


def init_state(configuration: Configuration, key: jax.Array) -> State:
    shape = {name: getattr(configuration, name) for name in ("vocabulary", "width", "layers", "heads")}
    params = init_transformer(key, **shape)
    return State(params, make_optimizer(configuration.steps, configuration.width).init(params))


def make_step(
    configuration: Configuration, loss: Callable[[Params, jax.Array], jax.Array]
) -> Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """One update by the mean loss of sequences [B, T + 1], which the number of the step chooses from the tokens."""
    optimizer, batches_key = make_optimizer(configuration.steps, configuration.width), keys(configuration)[1]

    def step(state: State, tokens: jax.Array, number: jax.Array) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(batches_key, number)
        starts = jax.random.randint(key, (configuration.batch,), 0, len(tokens) - configuration.length)
        sequences = windows(tokens, starts, configuration.length)
        nats, gradients = jax.value_and_grad(loss)(state.params, sequences)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), optimizer_state), nats

    return step


# -------------------------------------------------------------------------------------------------------------- a run


def train(
    configuration: Configuration,
    checkpoints: Checkpoints,
    begin: Checkpoint,
    step: Callable[[State, np.int32], tuple[State, jax.Array]],
    evaluate: Callable[[Params], jax.Array],
    token_bytes: float,
) -> tuple[Params, Score]:
    """Train to the last step, print the validation loss on the way, and add what is measured to the record.

    Returns:
        The parameters, and the last validation loss.
    """
    (first, state, record), steps = begin, configuration.steps
    if first:
        print(f"Continuing after step {first} of {steps}; --fresh starts over.\n")
    else:
        record.validation.append((0, float(evaluate(state.params))))
    interval = max(1, steps // EVALUATIONS)

    def row(number: int, nats: float) -> str:
        recent = record.losses[max(0, number - interval) : number]
        mean = f"{statistics.fmean(recent):.3f}" if recent else ""
        return f"{number:>6} {mean:>10} {Score(nats, token_bytes)}"

    print(f"{'step':>6} {'training':>10} {'validation':>10} {'perplexity':>10} {'bits/byte':>9}")
    for number, nats in record.validation:
        print(row(number, nats))
    # Where several processes train together, the first one shows how far they are.
    options = {"initial": first, "total": steps, "leave": False, "disable": jax.process_index() > 0}
    progress = tqdm(range(first, steps), desc="training", unit="step", **options)
    for number in progress:
        state, loss = step(state, np.int32(number))
        record.losses.append(float(loss))
        progress.set_postfix(loss=f"{record.losses[-1]:.3f}", refresh=False)
        done = number + 1
        if done % interval == 0 or done == steps:
            nats = float(evaluate(state.params))
            record.validation.append((done, nats))
            checkpoints.save(Checkpoint(done, state, record))
            tqdm.write(row(done, nats))
    return state.params, Score(record.validation[-1][1], token_bytes)


def token_frequencies(corpus: Corpus, vocabulary: int) -> float:
    """The validation loss of a model that knows how frequent each token is, and nothing else."""
    counts = np.bincount(corpus.train, minlength=vocabulary) + 1  # a token that was never seen is not impossible
    return float((math.log(counts.sum()) - np.log(counts[corpus.validation])).mean())


# --------------------------------------------------------------------------------------------- options, table, picture


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="a small model and less text, for a quick look")
    parser.add_argument("--fresh", action="store_true", help="start over, even where a checkpoint could be continued")
    for name, (what, default, small) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=positive, help=f"{what} (default: {default}, with --small {small})")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters, the batches and the drawn text")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for pictures and checkpoints")
    return parser


def configure(parser: argparse.ArgumentParser, arguments: argparse.Namespace, head: str) -> tuple[Configuration, Texts]:
    """The configuration that the arguments ask for, checked, and the text that it is trained on."""
    options = {
        name: getattr(arguments, name) or (small if arguments.small else default)
        for name, (_, default, small) in OPTIONS.items()
    }
    texts = load_texts(arguments.small)
    configuration = Configuration(head=head, seed=arguments.seed, text=texts.fingerprint, **options)
    if configuration.width % (2 * configuration.heads):
        parser.error("--width must be an even multiple of --heads")
    if configuration.vocabulary < SMALLEST_VOCABULARY:
        parser.error(f"--vocabulary must be at least {SMALLEST_VOCABULARY}")
    return configuration, texts


def open_run(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    configuration: Configuration,
    texts: Texts,
    folder: Path,
) -> tuple[Checkpoints, Corpus]:
    """The checkpoints in the folder, which are none with --fresh, and the tokens; an error if they do not fit."""
    checkpoints = Checkpoints(folder / f"checkpoints{'-small' * arguments.small}", configuration._asdict())
    if not arguments.fresh:
        try:
            checkpoints.check_configuration()
        except ValueError as error:
            parser.error(f"{error}\nUse the options of the checkpoint, or --fresh to start over, or another --out.")
    corpus = load_corpus(texts, configuration.vocabulary, folder)
    if min(len(corpus.train), len(corpus.validation)) <= configuration.length:
        parser.error("--length is longer than the text")
    if arguments.fresh:
        checkpoints.clear()
    print(f"{len(corpus.train)} training tokens, {len(corpus.validation)} validation tokens\n")
    return checkpoints, corpus


def print_table(configuration: Configuration, frequencies: float, score: Score) -> None:
    scores = {
        "uniform guess": Score(math.log(configuration.vocabulary), score.token_bytes),
        "token frequencies": Score(frequencies, score.token_bytes),
        "transformer": score,
    }
    print(f"\n{'model':<20} {'nats/token':>10} {'perplexity':>10} {'bits/byte':>9}")
    for name, score in scores.items():
        print(f"{name:<20} {score}")


def write_results(path: Path, configuration: Configuration, record: Record, frequencies: float, **more: Any) -> None:
    """Write the picture of the learning curve, path.png, and the numbers behind it, path.json."""
    picture, figures = path.with_suffix(".png"), path.with_suffix(".json")
    plot_losses(record, frequencies, picture)
    numbers = {"configuration": configuration._asdict(), **record._asdict(), **more}
    figures.write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"Picture: {picture}; numbers: {figures}")


def plot_losses(record: Record, frequencies: float, path: Path) -> None:
    """The loss of every training step and the validation losses, below that of the token frequencies."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axis.plot(record.losses, color="#56B4E9", linewidth=0.8, label="training")
    axis.plot(*zip(*record.validation, strict=True), "o-", color="#0072B2", markersize=4, label="validation")
    axis.axhline(frequencies, color="0.5", linestyle="--", linewidth=1, label="token frequencies alone")
    axis.set(xlabel="step", ylabel="cross entropy (nats per token)")
    axis.grid(color="0.92")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
