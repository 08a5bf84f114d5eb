"""Train a transformer language model on Python's standard library, with a loss that never holds all logits.

    python examples/language_model.py [--small] [--fresh] [--head streamed] [--steps 300] [--seed 0] [--out results] ...

With 32 768 tokens in the vocabulary, the logits of one batch outweigh the whole model.
`jaxsoftmax.linear_cross_entropy` takes the features and the kernel instead, and holds the logits of a few positions at
a time; `--head dense` computes all of them and calls `jaxsoftmax.cross_entropy`. The script first prints the time of a
training step and the temporary memory of both.

The run keeps its last two checkpoints. Killed at any moment and started again, it continues from the last one and, on a
CPU, ends with the same numbers to the last bit: the batch of a step depends on nothing but the seed and the step. A
checkpoint is never continued with other options; `--fresh` starts over.

The script prints the validation loss on the way (in nats per token, as perplexity, and in bits per byte of text, which
does not depend on the vocabulary) and a piece of code drawn from the model, and writes a picture of the learning curve
and, as JSON, the numbers behind it.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from checkpoints import Checkpoint, Checkpoints, Record
from jax.stages import Compiled
from text_data import END_OF_FILE, SMALLEST_VOCABULARY, Corpus, load_corpus, load_texts, spread_windows, windows
from tqdm import tqdm
from transformer import Params, continuation, init_transformer, transformer

import jaxsoftmax

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Head = Callable[..., jax.Array]

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
TIMED_STEPS = 5
# A word begins with the space before it in this vocabulary, so a prompt ends without one.
PROMPT = "\n\ndef"
TEMPERATURE = 0.8


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


# ---------------------------------------------------------------------------------------- the loss, a step of training


def dense_cross_entropy(features: jax.Array, kernel: jax.Array, labels: jax.Array, *, z_loss: float = 0.0) -> jax.Array:
    return jaxsoftmax.weighted_mean(jaxsoftmax.cross_entropy(features @ kernel, labels, z_loss=z_loss))


# Each takes features [..., D], a kernel [D, V] and labels [...], and returns the mean loss.
HEADS: dict[str, Head] = {"dense": dense_cross_entropy, "streamed": jaxsoftmax.linear_cross_entropy}


def sequence_loss(params: Params, sequences: jax.Array, head: str, z_loss: float = 0.0) -> jax.Array:
    """The mean loss of sequences [B, T + 1], where every token but the first is a label."""
    features = transformer(params, sequences[:, :-1])
    return HEADS[head](features, params["embedding"].T, sequences[:, 1:], z_loss=z_loss)


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


def init(configuration: Configuration) -> State:
    @jax.jit
    def start(key: jax.Array) -> State:
        shape = {name: getattr(configuration, name) for name in ("vocabulary", "width", "layers", "heads")}
        params = init_transformer(key, **shape)
        return State(params, make_optimizer(configuration.steps, configuration.width).init(params))

    return start(keys(configuration)[0])


def compile_step(configuration: Configuration, state: State, tokens: jax.Array) -> Compiled:
    """Compile one update on a batch that is a function of the seed and the number of the step alone."""
    optimizer, batches_key = make_optimizer(configuration.steps, configuration.width), keys(configuration)[1]

    @jax.jit
    def step(state: State, tokens: jax.Array, number: jax.Array) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(batches_key, number)
        starts = jax.random.randint(key, (configuration.batch,), 0, len(tokens) - configuration.length)
        sequences = windows(tokens, starts, configuration.length)
        loss, gradients = jax.value_and_grad(sequence_loss)(state.params, sequences, configuration.head, Z_LOSS)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), optimizer_state), loss

    return step.lower(state, tokens, np.int32(0)).compile()


@partial(jax.jit, static_argnames="head")
def evaluate(params: Params, batches: jax.Array, head: str) -> jax.Array:
    """The mean cross entropy of batches [N, B, T + 1], in nats per token."""
    return jax.lax.map(lambda sequences: sequence_loss(params, sequences, head), batches).mean()


def compare_heads(compiled: dict[str, Compiled], state: State, tokens: jax.Array) -> None:
    """Print the time of a training step with each head, and the memory that it takes beside arguments and results."""
    print(f"{'head':<10} {'step/ms':>9} {'temporary/MiB':>14}")
    for head, step in compiled.items():
        times = []
        for number in range(TIMED_STEPS + 1):
            start = time.perf_counter()
            jax.block_until_ready(step(state, tokens, np.int32(number)))
            times.append(1e3 * (time.perf_counter() - start))
        # The first step also loads what later ones find in memory.
        mebibytes = step.memory_analysis().temp_size_in_bytes / 2**20
        print(f"{head:<10} {statistics.median(times[1:]):>9.1f} {mebibytes:>14.1f}")
    print()


# ---------------------------------------------------------------------------------------------------------- the run


def fit(configuration: Configuration, corpus: Corpus, checkpoints: Checkpoints) -> tuple[Params, Record, Score]:
    """Train from the last checkpoint, or from the start, and print the validation loss on the way.

    Returns:
        The parameters, what was measured in training, and the last validation loss.
    """
    steps, head = configuration.steps, configuration.head
    tokens = jnp.asarray(corpus.train)
    validation = spread_windows(corpus.validation, EVALUATION_BATCHES, configuration.batch, configuration.length)
    token_bytes = corpus.bytes_per_token(np.asarray(validation[..., 1:]))
    state, record, first = init(configuration), Record([], []), 0

    restored = checkpoints.restore(state)
    names = HEADS if restored is None else (head,)
    compiled = {name: compile_step(configuration._replace(head=name), state, tokens) for name in names}
    if restored is None:
        compare_heads(compiled, state, tokens)
        record.validation.append((0, float(evaluate(state.params, validation, head))))
    else:
        first, state, record = restored
        print(f"Continuing after step {first} of {steps}; --fresh starts over.\n")

    interval = max(1, steps // EVALUATIONS)

    def row(number: int, nats: float) -> str:
        recent = record.losses[max(0, number - interval) : number]
        mean = f"{statistics.fmean(recent):.3f}" if recent else ""
        return f"{number:>6} {mean:>10} {Score(nats, token_bytes)}"

    print(f"{'step':>6} {'training':>10} {'validation':>10} {'perplexity':>10} {'bits/byte':>9}")
    for number, nats in record.validation:
        print(row(number, nats))
    progress = tqdm(range(first, steps), desc="training", unit="step", initial=first, total=steps, leave=False)
    for number in progress:
        state, loss = compiled[head](state, tokens, np.int32(number))
        record.losses.append(float(loss))
        progress.set_postfix(loss=f"{record.losses[-1]:.3f}", refresh=False)
        done = number + 1
        if done % interval == 0 or done == steps:
            nats = float(evaluate(state.params, validation, head))
            record.validation.append((done, nats))
            checkpoints.save(Checkpoint(done, state, record))
            tqdm.write(row(done, nats))
    return state.params, record, Score(record.validation[-1][1], token_bytes)


def token_frequencies(corpus: Corpus, vocabulary: int) -> float:
    """The validation loss of a model that knows how frequent each token is, and nothing else."""
    counts = np.bincount(corpus.train, minlength=vocabulary) + 1  # a token that was never seen is not impossible
    return float((math.log(counts.sum()) - np.log(counts[corpus.validation])).mean())


def draw_text(configuration: Configuration, params: Params, corpus: Corpus) -> str:
    """A continuation of the prompt up to the length of a sequence, or to the end of the file."""
    prompt = corpus.tokenizer.encode(PROMPT).ids[: configuration.length]
    tokens = jnp.zeros(configuration.length, jnp.int32).at[: len(prompt)].set(jnp.array(prompt))
    drawn = continuation(params, keys(configuration)[2], tokens, len(prompt), TEMPERATURE)
    text = corpus.tokenizer.decode(np.asarray(drawn).tolist(), skip_special_tokens=False)
    return text.split(END_OF_FILE)[0].strip()


# ------------------------------------------------------------------------------------------------ table, picture, main


def print_table(scores: dict[str, Score]) -> None:
    print(f"\n{'model':<20} {'nats/token':>10} {'perplexity':>10} {'bits/byte':>9}")
    for name, score in scores.items():
        print(f"{name:<20} {score}")


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


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model and less text, for a quick look")
    parser.add_argument("--fresh", action="store_true", help="start over, even where a checkpoint could be continued")
    parser.add_argument("--head", choices=HEADS, default="streamed", help="how the loss treats the logits")
    for name, (what, default, small) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=positive, help=f"{what} (default: {default}, with --small {small})")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters, the batches and the drawn text")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for pictures and checkpoints")
    arguments = parser.parse_args()

    options = {
        name: getattr(arguments, name) or (small if arguments.small else default)
        for name, (_, default, small) in OPTIONS.items()
    }
    texts = load_texts(arguments.small)
    configuration = Configuration(head=arguments.head, seed=arguments.seed, text=texts.fingerprint, **options)
    if configuration.width % (2 * configuration.heads):
        parser.error("--width must be an even multiple of --heads")
    if configuration.vocabulary < SMALLEST_VOCABULARY:
        parser.error(f"--vocabulary must be at least {SMALLEST_VOCABULARY}")

    folder = arguments.out / "language_model"
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
    params, record, score = fit(configuration, corpus, checkpoints)
    frequencies = token_frequencies(corpus, configuration.vocabulary)
    scores = {
        "uniform guess": Score(math.log(configuration.vocabulary), score.token_bytes),
        "token frequencies": Score(frequencies, score.token_bytes),
        "transformer": score,
    }
    print_table(scores)
    print(f"\nDrawn from the model at temperature {TEMPERATURE}:\n\n{draw_text(configuration, params, corpus)}\n")
    picture, figures = arguments.out / "language_model.png", arguments.out / "language_model.json"
    plot_losses(record, frequencies, picture)
    figures.write_text(json.dumps({"configuration": configuration._asdict(), **record._asdict()}, indent=1) + "\n")
    print(f"Picture: {picture}; numbers: {figures}")


if __name__ == "__main__":
    main()
