"""Every example runs at its small size, prints sensible numbers, warns of nothing, and writes its pictures."""

import importlib.util
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORK_LOSSES = ("cross entropy", "label smoothing", "focal", "hinge")


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip where a module is not installed; looking for it is cheaper than importing it twice."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def invocation(script: str, *arguments: str) -> dict[str, Any]:
    """What `subprocess` needs to run an example as its readers do, on one CPU device."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # Another process may be writing the same entry of the compilation cache.
        "PYTHONWARNINGS": ",".join(
            f"ignore:Error {action} persistent compilation cache:UserWarning" for action in ("reading", "writing")
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    flags = environment.get("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "host_platform_device_count" not in flag)
    if jax.config.jax_compilation_cache_dir:
        environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, str(ROOT / "examples" / script), "--small", *arguments]
    return {"args": command, "env": environment, "text": True}


def run(script: str, *arguments: str) -> str:
    """Run an example to its end, and return what it prints."""
    finished = subprocess.run(**invocation(script, *arguments), capture_output=True, timeout=300, check=False)
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
def test_calibration(tmp_path: Path) -> None:
    printed = run("calibration.py", "--out", str(tmp_path))
    row = re.compile(
        r"^(uncalibrated|temperature|vector|matrix|dirichlet|label smoothing|focal)\*? +(0\..*)$", re.MULTILINE
    )
    for name in ("digits", "breast cancer"):
        section = printed[printed.index(f"\n{name}: ") :].split("\n\n")[0]
        table = {method: numbers(cells) for method, cells in row.findall(section)}
        assert len(table) == 7
        for accuracy, ece, lower, upper, classwise, nll, _, _, brier in table.values():
            assert accuracy > 0.5
            assert 0 < lower < upper < 1
            assert min(ece, classwise) > 0
            assert max(ece, classwise) < 0.5
            assert 0 < brier < 2 * nll
        raw, scaled = table["uncalibrated"], table["temperature"]
        assert scaled[1] <= raw[1] / 2
        assert all(table[method][5] < raw[5] for method in table if method != "uncalibrated")
        # The calibrators with more numbers do not pay for them on rows that they were not fit to.
        assert max(table[method][5] for method in ("vector", "matrix", "dirichlet")) < scaled[5] + 0.01
        before, after, ratio = numbers(re.search(r"^  ECE (.*): at most half$", section, re.MULTILINE)[1])
        assert (before, after) == (raw[1], scaled[1])
        assert ratio == pytest.approx(after / before, abs=1e-3)
        before, after = re.search(
            r"^  accuracy (\S+) before and (\S+) after: unchanged", section, re.MULTILINE
        ).groups()
        assert before == after
        assert float(before) == pytest.approx(raw[0], abs=1e-4)
        assert raw[0] == scaled[0]

    record = json.loads((tmp_path / "calibration.json").read_text())
    for name, figures in record["data sets"].items():
        accuracies = [figures["measures"][method]["accuracy"]["estimate"] for method in ("uncalibrated", "temperature")]
        assert accuracies[0] == accuracies[1], name
    # Over random splits of 1197 rows into 300 and 897, the mean coverage is 0.75 to 0.75 + 1 / 301; the band beside it
    # is four standard errors of a mean over 50 splits.
    error = (0.75 * 0.25 * (1 / 300 + 1 / 897) / 50) ** 0.5
    sets = {method: numbers(cells) for method, cells in re.findall(r"^(LAC|APS|RAPS) +(.*)$", printed, re.MULTILINE)}
    assert set(sets) == set(record["conformal"]) == {"LAC", "APS", "RAPS"}
    for coverage, _, _, size, single, empty in sets.values():
        assert 0.75 - 4 * error < coverage < 0.75 + 1 / 301 + 4 * error
        assert 1 < size < 10
        assert 0 <= single + empty <= 1
    assert sets["LAC"][3] < sets["APS"][3]  # the smallest sets, which is what LAC is for

    policies = record["triage"]
    assert len(policies) == 6
    for policy in policies.values():
        assert policy["interval"][0] <= policy["cost"] <= policy["interval"][1]
        assert policy["home"] + policy["operated"] + policy["asked"] == pytest.approx(1)
    (calibrated,) = (policy for name, policy in policies.items() if re.fullmatch(r"(?!uncalibrated).*, or ask", name))
    raw = policies["uncalibrated, or ask"]
    assert calibrated["cost"] < 4 < raw["cost"]  # 4 is the price of asking about everybody
    assert abs(calibrated["expected"] - calibrated["cost"]) < abs(raw["expected"] - raw["cost"])

    for name in ("reliability", "risk", "triage"):
        assert_picture(tmp_path / f"calibration_{name}.png")


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


@needs("matplotlib", "optax", "orbax", "tokenizers", "tqdm")
def test_language_model(tmp_path: Path) -> None:
    """A run that is killed and started again ends with the numbers of an undisturbed one, to the last bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    printed = run("language_model.py", "--out", str(whole))
    for head in ("dense", "streamed"):
        (timings,) = re.findall(rf"^{head} .*$", printed, re.MULTILINE)
        assert min(numbers(timings)) > 0
    rows = [numbers(line) for line in re.findall(r"^ +\d+ .*$", printed, re.MULTILINE)]
    assert len(rows) == 11
    for *_, nats, perplexity, bits in rows:
        assert perplexity == pytest.approx(math.exp(nats), rel=1e-3)
        assert bits / nats == pytest.approx(rows[0][-1] / rows[0][-3], rel=1e-3)
    table = dict(re.findall(r"^(uniform guess|token frequencies|transformer) +(.*)$", printed, re.MULTILINE))
    uniform, frequencies, transformer = (numbers(cells)[0] for cells in table.values())
    assert rows[0][0] == pytest.approx(uniform, abs=0.1)
    assert transformer == rows[-1][-3] < frequencies - 0.2 < uniform - 0.5
    assert_picture(whole / "language_model.png")

    with subprocess.Popen(
        **invocation("language_model.py", "--out", str(killed)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        for line in process.stdout:
            if line.startswith("    45 "):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    printed_again = run("language_model.py", "--out", str(killed))
    assert 45 <= int(re.search(r"^Continuing after step (\d+) of 150", printed_again, re.MULTILINE)[1]) < 150
    measured, measured_again = (
        text[text.index("  step  ") : text.index("Picture")] for text in (printed, printed_again)
    )
    assert measured_again == measured
    figures, figures_again = ((folder / "language_model.json").read_text() for folder in (whole, killed))
    assert figures_again == figures

    other = ("language_model.py", "--out", str(killed), "--head", "dense", "--steps", "2")
    refused = subprocess.run(**invocation(*other), capture_output=True, timeout=300, check=False)
    assert refused.returncode == 2
    for difference in ("head: streamed in the checkpoint, dense in this run", "steps: 150 in the checkpoint, 2 in"):
        assert difference in refused.stderr
    run(*other, "--fresh")
    dense = json.loads((killed / "language_model.json").read_text())
    assert dense["losses"][0] == pytest.approx(json.loads(figures)["losses"][0], rel=1e-5)
