"""One program as several processes of this machine: joined by `jax.distributed`, watched by the one that starts them.

A collective operation waits for all processes, and when one is gone it may wait for long. So the launcher does not
leave it to the processes to miss each other: the moment one of them fails, it stops the rest. If the launcher itself
ends, they end with it, and none is left behind to write where the next run does.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

HOST = "127.0.0.1"
USAGE_ERROR = 2  # the exit code of argparse, after it has said what is wrong


def launch(count: int, arguments: Sequence[str], option: str, folder: Path) -> int:
    """Run `count` processes of this program until all have ended or one has failed.

    Args:
        count: How many processes.
        arguments: Those of the program.
        option: The name of one more, whose values are what `join` needs: the index of the process, and a port.
        folder: The folder that is given to `join`, for the message that names a log.

    Returns:
        The exit code of the whole.
    """
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, sys.argv[0], *arguments, option]
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    with ExitStack() as stack:
        processes = []
        for index in range(count):
            process = subprocess.Popen([*command, str(index), str(port)], stdin=subprocess.PIPE)
            stack.callback(stop, process)
            processes.append(process)
        for index, process in enumerate(processes):
            # A thread waits for each, so that the first one to end is the first one to be known.
            threading.Thread(target=lambda i=index, p=process: ended.put((i, p.wait())), daemon=True).start()
        print(f"Processes {', '.join(str(process.pid) for process in processes)}\n", flush=True)
        for _ in processes:
            index, status = ended.get()
            if status:
                break
    if status not in (0, USAGE_ERROR):
        print(describe_failure(index, count, status, log_path(folder, index)), file=sys.stderr)
    return 1 if status < 0 else status


def stop(process: subprocess.Popen) -> None:
    """Kill a process that has not ended yet; it has nothing to save, for a checkpoint is complete or is none."""
    process.kill()
    process.wait()
    process.stdin.close()


def describe_failure(index: int, count: int, status: int, log: Path) -> str:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    where = f" Its log is {log}." if index else ""
    return (
        f"\nProcess {index} of {count} {how}; the others were stopped.{where}\n"
        "Start the run again to continue from its last checkpoint."
    )


def log_path(folder: Path, index: int) -> Path:
    return folder / f"process-{index}.log"


def join(count: int, index: int, port: int, folder: Path) -> None:
    """Become one of the processes that `launch` has started, before JAX looks for devices.

    What the first process prints goes to the terminal. What the others print goes to their logs, and so does what the
    libraries underneath say on their own.
    """
    threading.Thread(target=end_with_launcher, daemon=True).start()
    sys.excepthook = end_with_error
    sys.stdout.flush()
    log = log_path(folder, index).open("w")
    if index == 0:
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    else:
        os.dup2(log.fileno(), 2)
    os.dup2(log.fileno(), 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"{HOST}:{port}", count, index)


def end_with_error(*error: Any) -> None:
    """Say what is wrong and end at once: an orderly exit would wait for the others, who wait for this process."""
    time.sleep(1)  # if the error is that another process is gone, the launcher is here before it is said
    sys.__excepthook__(*error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def end_with_launcher() -> None:
    """Nobody writes to the pipe that is standard input: it ends when the launcher does, in whatever way."""
    os.read(0, 1)
    os._exit(1)
