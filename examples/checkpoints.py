"""Checkpoints of a training run by orbax: whenever the run is killed, there is one that is complete."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

KEPT = 2

# By default orbax cuts every replicated array between its replicas, and compiles a program for each piece: it is worth
# its while where an array is large.
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**24), override=True
)


class Record(NamedTuple):
    """What a run has measured so far: the loss of every step, and pairs of a step and its validation loss."""

    losses: list[float]
    validation: list[tuple[int, float]]


class Checkpoint(NamedTuple):
    """A run after some steps: its state is a pytree of arrays, for instance parameters and the optimizer's state."""

    step: int
    state: Any
    record: Record


class Checkpoints:
    """The last few checkpoints of one run, in a folder.

    Each is written under a temporary name and renamed when it is complete, and carries the configuration of its run,
    so that no other run continues it.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]):
        self._folder, self._configuration = folder, configuration
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(KEPT),
            cleanup_tmp_directories=True,  # what a killed run has left
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def check_configuration(self) -> None:
        """Raise ValueError if there is a checkpoint, and it is of another configuration."""
        step = self._manager.latest_step()
        if step is None:
            return
        saved = self._notes(step)["configuration"]
        names = saved | self._configuration
        differences = [
            f"  {name}: {saved.get(name)} in the checkpoint, {self._configuration.get(name)} in this run"
            for name in names
            if saved.get(name) != self._configuration.get(name)
        ]
        if differences:
            lines = [f"the checkpoint of step {step} in {self._folder} is of another configuration:", *differences]
            raise ValueError("\n".join(lines))

    def clear(self) -> None:
        for step in self._manager.all_steps():
            self._manager.delete(step)

    def restore(self, like: Any) -> Checkpoint | None:
        """The last checkpoint, if there is one, with its state in the structure and on the devices of another."""
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        notes = self._notes(step)
        return Checkpoint(step, restored.state, Record(notes["losses"], [tuple(pair) for pair in notes["validation"]]))

    def save(self, checkpoint: Checkpoint) -> None:
        step, state, record = checkpoint
        notes = record._asdict() | {"configuration": self._configuration}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
        )

    def _notes(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes
