"""The language model on a mesh: the same losses on any mesh, in any number of processes, and whatever is killed."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_examples import assert_picture, invocation, needs, numbers, run

SCRIPT = "sharded_language_model.py"
SIZES = ["--steps", "20", "--length", "32", "--width", "32", "--layers", "1", "--vocabulary", "288"]
ROWS = range(0, 21, 2)  # the steps at which the validation loss is printed, after a checkpoint
SECONDS_TO_STOP = 20  # when one of its processes is gone
SECONDS_TO_RUN = 300  # and no longer, whatever happens

pytestmark = needs("matplotlib", "optax", "orbax", "tokenizers", "tqdm")


def loopback() -> bool:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError:
        return False
    return True


needs_loopback = pytest.mark.skipif(not loopback(), reason="processes cannot reach each other on 127.0.0.1")


def options(folder: Path, mesh: str, processes: int = 1) -> list[str]:
    return [*SIZES, "--mesh", mesh, "--processes", str(processes), "--out", str(folder)]


def losses(folder: Path) -> list[float]:
    """The losses of all steps, and then the validation losses."""
    figures = json.loads((folder / "sharded_language_model.json").read_text())
    assert [step for step, _ in figures["validation"]] == list(ROWS)
    return figures["losses"] + [nats for _, nats in figures["validation"]]


class Interrupted(NamedTuple):
    """How a run ended: exit code, errors, and the numbers of its process and of those that it started."""

    status: int
    errors: str
    pids: list[int]


def interrupt(folder: Path, mesh: str, processes: int, row: int, victim: int) -> Interrupted:
    """Start a run, and kill one of its processes when it has printed a row."""
    with (
        (folder / "errors").open("w+") as errors,
        subprocess.Popen(
            **invocation(SCRIPT, *options(folder, mesh, processes)), stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        watchdog = threading.Timer(SECONDS_TO_RUN, process.kill)
        watchdog.start()
        pids, killed = [process.pid], None
        for line in process.stdout:
            if line.startswith("Processes "):
                pids += map(int, re.findall(r"\d+", line))
            elif line.startswith(f"{row:>6} "):
                os.kill(pids[victim], signal.SIGKILL)
                killed = time.monotonic()
        process.wait()
        watchdog.cancel()
        assert killed is not None
        assert time.monotonic() - killed < SECONDS_TO_STOP
        errors.seek(0)
        return Interrupted(process.returncode, errors.read(), pids)


def continued_after(printed: str) -> int:
    return int(re.search(r"^Continuing after step (\d+) of 20;", printed, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of an undisturbed run on one device: the truth for all others."""
    folder = tmp_path_factory.mktemp("one_device")
    run(SCRIPT, *options(folder, "1x1"))
    return losses(folder)


def test_another_mesh(tmp_path: Path, one_device: list[float]) -> None:
    """A run that is killed on 2 x 4 devices and ends on 4 x 2 has the losses of one device, and nothing is gathered."""
    assert interrupt(tmp_path, "2x4", processes=1, row=ROWS[5], victim=0).status == -signal.SIGKILL
    printed = run(SCRIPT, *options(tmp_path, "4x2"))
    assert continued_after(printed) >= ROWS[5]
    assert losses(tmp_path) == pytest.approx(one_device, rel=1e-5)
    assert "mesh         data 4 x model 2: 8 cpu devices in 1 process\n" in printed
    assert re.search(r"^collectives  \d+ all-reduce$", printed, re.MULTILINE)
    (memory,) = re.findall(r"^temporary .*$", printed, re.MULTILINE)
    assert numbers(memory)[0] > 0
    assert int(re.search(r"^(\d+) tokens per second$", printed, re.MULTILINE)[1]) > 0
    table = dict(re.findall(r"^(uniform guess|token frequencies|transformer) +(.*)$", printed, re.MULTILINE))
    uniform, _, transformer = (numbers(cells)[0] for cells in table.values())
    assert transformer < uniform - 1
    assert_picture(tmp_path / "sharded_language_model.png")


@needs_loopback
def test_killed_process(tmp_path: Path, one_device: list[float]) -> None:
    """When one of two processes is killed, the run says so and ends; it starts again with nothing lost."""
    for index, row in ((1, ROWS[3]), (0, ROWS[6])):
        status, errors, pids = interrupt(tmp_path, "2x4", processes=2, row=row, victim=1 + index)
        assert status == 1
        assert f"\nProcess {index} of 2 was killed by SIGKILL; the others were stopped." in errors
        assert "\nStart the run again to continue from its last checkpoint.\n" in errors
        for pid in pids[1:]:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    printed = run(SCRIPT, *options(tmp_path, "2x4", processes=2))
    assert continued_after(printed) >= ROWS[6]
    assert losses(tmp_path) == pytest.approx(one_device, rel=1e-5)
    assert "mesh         data 2 x model 4: 8 cpu devices in 2 processes\n" in printed
    assert "Gloo" not in printed


def test_refused_options(tmp_path: Path) -> None:
    for wrong, message in {
        "--mesh 2": "2 is not like 2x4",
        "--mesh 1x7": "--vocabulary must be a multiple of 7",
        "--mesh 2x4 --processes 3": "--processes must divide 8",
    }.items():
        arguments = invocation(SCRIPT, *SIZES, "--out", str(tmp_path), *wrong.split())
        refused = subprocess.run(**arguments, capture_output=True, timeout=100, check=False)
        assert refused.returncode == 2
        assert message in refused.stderr
