"""Train the language model on a mesh of devices: sequences over one axis, the vocabulary over the other.

    python examples/sharded_language_model.py [--mesh 2x4] [--processes 2] [--small] [--fresh] [--steps 300] ...

The model, the data and the options are those of examples/language_model.py. By default the mesh is 2 x 4 devices that
JAX simulates on the CPU. A batch is split in two over the axis `data`; the table of embeddings [V, D], whose transpose
is the kernel of the logits, is split in four over the axis `model`, and with it its gradient and the moments of the
optimizer. The layers between are small beside it: every device has them whole.

Neither the table nor the logits of a position are ever on one device. `jaxsoftmax.sharded_linear_loss` exchanges a few
numbers per position instead, and the sum of the features' gradient. Looking up the embeddings needs no more than
indexing: XLA lets every device look up the tokens that it has, and adds. The script prints what the compiled step says
to that: its temporary memory, and its collective operations by kind.

With the same seed the losses are those of one device, whatever the mesh. They agree to float32 rounding for some fifty
steps; after that training magnifies the rounding, as it does between the two heads of examples/language_model.py.

`--processes 2` starts two processes with half of the devices each, which `jax.distributed` joins over the loopback
interface as it joins the machines of a cluster. If one of them ends, the script stops the other and says so. Started
again, a run continues from its last checkpoint: on the same mesh or another one, in any number of processes.
"""

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from checkpoints import Checkpoint, Checkpoints, Record
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
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
    positive,
    print_table,
    token_frequencies,
    train,
    write_results,
)
from processes import join, launch
from text_data import Corpus, load_vocabulary, spread_windows
from transformer import Params, transformer

import jaxsoftmax

COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


# ---------------------------------------------------------------------------------------- arrays and losses on a mesh


def state_shardings(state: State, mesh: Mesh) -> State:
    """The table of embeddings and its moments are split by rows, all other arrays are whole everywhere."""

    def sharding(path: tuple, _: jax.ShapeDtypeStruct) -> NamedSharding:
        is_table = jax.tree_util.DictKey("embedding") in path
        return NamedSharding(mesh, PartitionSpec("model") if is_table else PartitionSpec())

    return jax.tree.map_with_path(sharding, state)


def make_loss(mesh: Mesh, z_loss: float = 0.0) -> Callable[[Params, jax.Array], jax.Array]:
    objective = partial(jaxsoftmax.objectives.cross_entropy, z_loss=z_loss)
    head = jaxsoftmax.sharded_linear_loss(objective, mesh, rows="data", classes="model")

    def loss(params: Params, sequences: jax.Array) -> jax.Array:
        """The mean loss of sequences [B, T + 1], where every token but the first is a label."""
        sequences = jax.lax.with_sharding_constraint(sequences, NamedSharding(mesh, PartitionSpec("data")))
        features = transformer(params, sequences[:, :-1])
        return head(features, params["embedding"].T, sequences[:, 1:])

    return loss


def describe(compiled: Compiled, mesh: Mesh) -> None:
    """Print the mesh, and what a device holds and exchanges in a step."""
    memory = compiled.memory_analysis()
    collectives = Counter(COLLECTIVE.findall(compiled.as_text()))
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    processes = f"{jax.process_count()} process{'es' * (jax.process_count() > 1)}"
    print(f"mesh         {axes}: {mesh.size} {mesh.devices.flat[0].platform} devices in {processes}")
    print(f"arguments    {memory.argument_size_in_bytes / 2**20:.1f} MiB per device")
    print(f"temporary    {memory.temp_size_in_bytes / 2**20:.1f} MiB per device")
    print(f"collectives  {', '.join(f'{count} {kind}' for kind, count in sorted(collectives.items()))}\n")


# ------------------------------------------------------------------------------------------------------------ the run


def fit(
    configuration: Configuration, mesh: Mesh, corpus: Corpus, checkpoints: Checkpoints
) -> tuple[Record, Score, list[float]]:
    """Train from the last checkpoint, of whatever mesh, or from the start.

    Returns:
        What was measured in training, the last validation loss, and the seconds of every step.
    """
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "data"))
    windows = spread_windows(corpus.validation, EVALUATION_BATCHES, configuration.batch, configuration.length)
    tokens, validation = jax.device_put(corpus.train, whole), jax.device_put(windows, split)

    # Every array comes into being where it belongs, and is restored there.
    init, key = partial(init_state, configuration), keys(configuration)[0]
    shardings = state_shardings(jax.eval_shape(init, key), mesh)
    state = jax.jit(init, out_shardings=shardings)(key)
    begin = checkpoints.restore(state) or Checkpoint(0, state, Record([], []))

    step = jax.jit(make_step(configuration, make_loss(mesh, Z_LOSS)), out_shardings=(shardings, whole))
    compiled = step.lower(state, tokens, np.int32(0)).compile()
    describe(compiled, mesh)
    evaluate = jax.jit(lambda params, batches: jax.lax.map(partial(make_loss(mesh), params), batches).mean())
    seconds = []

    def timed_step(state: State, number: np.int32) -> tuple[State, jax.Array]:
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(state, tokens, number))
        seconds.append(time.perf_counter() - start)
        return result

    _, score = train(
        configuration,
        checkpoints,
        begin,
        timed_step,
        lambda params: evaluate(params, validation),
        corpus.bytes_per_token(np.asarray(windows[..., 1:])),
    )
    return begin.record, score, seconds


def mesh_shape(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text} is not like 2x4")
    data, model = map(int, text.split("x"))
    return data, model


def check_divisions(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, configuration: Configuration
) -> None:
    data, model = arguments.mesh
    if configuration.batch % data:
        parser.error(f"--batch must be a multiple of {data}, the devices that split it")
    if configuration.vocabulary % model:
        parser.error(f"--vocabulary must be a multiple of {model}, the devices that split it")
    if data * model % arguments.processes:
        parser.error(f"--processes must divide {data * model}, the devices of the mesh")


def main() -> None:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--mesh", type=mesh_shape, default=(2, 4), metavar="DATAxMODEL", help="devices along both axes (default: 2x4)"
    )
    parser.add_argument("--processes", type=positive, default=1, help="that have the devices (default: 1)")
    parser.add_argument("--join", type=int, nargs=2, help=argparse.SUPPRESS)  # how a process is told that it is one
    arguments = parser.parse_args()
    configuration, texts = configure(parser, arguments, head="sharded")
    check_divisions(parser, arguments, configuration)

    results = arguments.out / "sharded_language_model"
    if arguments.processes > 1 and arguments.join is None:
        load_vocabulary(texts, configuration.vocabulary, results)  # once, before there are several to train it
        sys.exit(launch(arguments.processes, sys.argv[1:], "--join", results))
    # Where there are real devices these settings go, and with them --processes: each machine runs the script once, and
    # jax.distributed.initialize() finds the others.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.mesh[0] * arguments.mesh[1] // arguments.processes)
    if arguments.join is not None:
        join(arguments.processes, *arguments.join, results)

    mesh = jax.make_mesh(arguments.mesh, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    checkpoints, corpus = open_run(parser, arguments, configuration, texts, results)
    record, score, seconds = fit(configuration, mesh, corpus, checkpoints)
    frequencies = token_frequencies(corpus, configuration.vocabulary)
    print_table(configuration, frequencies, score)
    if seconds:
        rate = configuration.batch * configuration.length / statistics.median(seconds)
        print(f"\n{rate:.0f} tokens per second")
    print()
    if jax.process_index() == 0:
        write_results(results, configuration, record, frequencies)


if __name__ == "__main__":
    main()
