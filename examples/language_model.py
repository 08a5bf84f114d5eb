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

import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from checkpoints import Checkpoint, Checkpoints, Record
from jax.stages import Compiled
from language_training import (
    EVALUATION_BATCHES,
    Z_LOSS,
    Configuration,
    Score,
    State,
    configure,
    init_state,
    keys,
    make_parser,
    make_step,
    open_run,
    print_table,
    token_frequencies,
    train,
    write_results,
)
from text_data import END_OF_FILE, Corpus, spread_windows
from transformer import Params, continuation, transformer

import jaxsoftmax

Head = Callable[..., jax.Array]

TIMED_STEPS = 5
# A word begins with the space before it in this vocabulary, so a prompt ends without one.
PROMPT = "\n\ndef"
TEMPERATURE = 0.8


# ---------------------------------------------------------------------------------------- the loss, a step of training


def dense_cross_entropy(features: jax.Array, kernel: jax.Array, labels: jax.Array, *, z_loss: float = 0.0) -> jax.Array:
    return jaxsoftmax.weighted_mean(jaxsoftmax.cross_entropy(features @ kernel, labels, z_loss=z_loss))


# Each takes features [..., D], a kernel [D, V] and labels [...], and returns the mean loss.
HEADS: dict[str, Head] = {"dense": dense_cross_entropy, "streamed": jaxsoftmax.linear_cross_entropy}


def sequence_loss(params: Params, sequences: jax.Array, head: str, z_loss: float = 0.0) -> jax.Array:
    """The mean loss of sequences [B, T + 1], where every token but the first is a label."""
    features = transformer(params, sequences[:, :-1])
    return HEADS[head](features, params["embedding"].T, sequences[:, 1:], z_loss=z_loss)


def compile_step(configuration: Configuration, state: State, tokens: jax.Array) -> Compiled:
    step = make_step(configuration, partial(sequence_loss, head=configuration.head, z_loss=Z_LOSS))
    return jax.jit(step).lower(state, tokens, np.int32(0)).compile()


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
    """Train from the last checkpoint, or from the start, after a comparison of the heads.

    Returns:
        The parameters, what was measured in training, and the last validation loss.
    """
    head = configuration.head
    tokens = jnp.asarray(corpus.train)
    validation = spread_windows(corpus.validation, EVALUATION_BATCHES, configuration.batch, configuration.length)
    state = jax.jit(partial(init_state, configuration))(keys(configuration)[0])

    restored = checkpoints.restore(state)
    names = HEADS if restored is None else (head,)
    compiled = {name: compile_step(configuration._replace(head=name), state, tokens) for name in names}
    if restored is None:
        compare_heads(compiled, state, tokens)
    begin = restored or Checkpoint(0, state, Record([], []))
    params, score = train(
        configuration,
        checkpoints,
        begin,
        step=lambda state, number: compiled[head](state, tokens, number),
        evaluate=lambda params: evaluate(params, validation, head),
        token_bytes=corpus.bytes_per_token(np.asarray(validation[..., 1:])),
    )
    return params, begin.record, score


def draw_text(configuration: Configuration, params: Params, corpus: Corpus) -> str:
    """A continuation of the prompt up to the length of a sequence, or to the end of the file."""
    prompt = corpus.tokenizer.encode(PROMPT).ids[: configuration.length]
    tokens = jnp.zeros(configuration.length, jnp.int32).at[: len(prompt)].set(jnp.array(prompt))
    drawn = continuation(params, keys(configuration)[2], tokens, len(prompt), TEMPERATURE)
    text = corpus.tokenizer.decode(np.asarray(drawn).tolist(), skip_special_tokens=False)
    return text.split(END_OF_FILE)[0].strip()


def main() -> None:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--head", choices=HEADS, default="streamed", help="how the loss treats the logits")
    arguments = parser.parse_args()
    configuration, texts = configure(parser, arguments, arguments.head)
    checkpoints, corpus = open_run(parser, arguments, configuration, texts, arguments.out / "language_model")

    params, record, score = fit(configuration, corpus, checkpoints)
    frequencies = token_frequencies(corpus, configuration.vocabulary)
    print_table(configuration, frequencies, score)
    print(f"\nDrawn from the model at temperature {TEMPERATURE}:\n\n{draw_text(configuration, params, corpus)}\n")
    write_results(arguments.out / "language_model", configuration, record, frequencies)


if __name__ == "__main__":
    main()
