"""Every example runs at its small size, prints sensible numbers, warns of nothing, and writes its pictures."""

import importlib.util
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORK_LOSSES = ("cross entropy", "label smoothing", "focal", "hinge")


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip where a module is not installed; looking for it is cheaper than importing it twice."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(script: str, *arguments: str) -> str:
    """Run an example as its readers do, on one CPU device, and return what it prints."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # Another process may be writing the same entry of the compilation cache.
        "PYTHONWARNINGS": ",".join(
            f"ignore:Error {action} persistent compilation cache:UserWarning" for action in ("reading", "writing")
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment.pop("XLA_FLAGS", None)
    if jax.config.jax_compilation_cache_dir:
        environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, str(ROOT / "examples" / script), "--small", *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr, finished.stderr
    return finished.stdout


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line)]


def assert_picture(path: Path) -> None:
    """A PNG of some width and height that is not blank: white alone compresses to a few kilobytes."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert min(width, height) > 300
    assert len(content) > 20_000


@needs("matplotlib", "optax", "sklearn", "tqdm")
def test_digits(tmp_path: Path) -> None:
    printed = run("digits.py", "--out", str(tmp_path))
    row = re.compile(r"^(linear|MLP)\s+(\D+?)\s+(balanced|imbalanced)\s(.*)$", re.MULTILINE)
    table = {(model, loss, split): numbers(rest) for model, loss, split, rest in row.findall(printed)}
    assert len(table) == 10

    for accuracy, nats, bits, recall in table.values():
        assert 0 <= recall <= 1
        assert accuracy > 0.5
        assert nats < math.log(10)
        assert bits == pytest.approx(nats / math.log(2), abs=2e-3)
    for model in ("linear", "MLP"):
        accuracies = [
            accuracy for (name, _, split), (accuracy, *_) in table.items() if (name, split) == (model, "balanced")
        ]
        assert min(accuracies) > 0.8
        *_, recall_balanced = table[model, "cross entropy", "balanced"]
        *_, recall_imbalanced = table[model, "cross entropy", "imbalanced"]
        *_, recall_weighted = table[model, "class weights", "imbalanced"]
        assert recall_imbalanced < recall_weighted < recall_balanced

    assert_picture(tmp_path / "learning_curves.png")
    assert_picture(tmp_path / "simplex.png")


@needs("matplotlib", "optax", "sklearn", "tqdm")
def test_gumbel_vae(tmp_path: Path) -> None:
    printed = run("gumbel_vae.py", "--out", str(tmp_path))
    rows = re.findall(r"^ +(?:\d+|test images) .*$", printed, re.MULTILINE)
    assert len(rows) == 7
    for *_, likelihood, divergence, elbo in map(numbers, rows):
        assert divergence >= 0
        assert elbo == pytest.approx(likelihood - divergence, abs=0.02)
    first, *_, last, test = (numbers(line)[-1] for line in rows)
    assert last > first + 26
    assert test == pytest.approx(last, abs=2)
    assert_picture(tmp_path / "gumbel_vae.png")


@pytest.mark.parametrize(
    "framework",
    [pytest.param("flax", marks=needs("flax")), pytest.param("haiku", marks=needs("haiku"))],
)
@needs("optax", "sklearn", "tqdm")
def test_framework(framework: str) -> None:
    printed = run(f"{framework}_model.py")
    table = {line[:15].rstrip(): numbers(line) for line in printed.splitlines()[2:]}
    assert tuple(table) == FRAMEWORK_LOSSES
    for *_, train_accuracy, train_nll, accuracy, nll in table.values():
        assert min(train_accuracy, accuracy) > 0.7
        assert max(train_nll, nll) < math.log(10)
