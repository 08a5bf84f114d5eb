"""Calibrate over-trained networks, compare what it does to their probabilities, and act on them.

    python examples/calibration.py [--small] [--seed 0] [--out results]

A perceptron learns a small training set by heart, wrong labels and all. It is then far too sure of itself on other
rows. Three data sets of scikit-learn show what helps, in the table of Guo et al. (On Calibration of Modern Neural
Networks, 2017): temperature, vector and matrix scaling and Dirichlet calibration, fit to calibration rows that the
network has not seen, and networks trained with label smoothing and with the focal loss instead. All numbers are those
of test rows that neither has seen, in brackets their bootstrap intervals; cross-validation among the calibration rows
chooses the calibrator marked by a star.

Calibrated probabilities are for use, and the script goes on to two uses. Conformal sets of digits hold the label as
often as they promise, over many random splits. A triage of breast tumours sends home, operates, or asks a second doctor
at a price, whichever the probabilities say costs least. From the raw network's, that is dearer than to ask about all
patients, because it hardly ever asks; from calibrated ones it is cheaper, and costs about as much as was expected.

Three pictures are written, and all numbers as JSON.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from calibration_data import SOURCES, Loss, Rows, Splits, load_splits, overtrain
from calibration_uses import COSTS, DOCTOR, conformal, print_conformal, print_triage, triage
from mlp import mlp
from tqdm import tqdm

import jaxsoftmax
from jaxsoftmax import calibration

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LOSSES: dict[str, Loss] = {
    "cross entropy": jaxsoftmax.cross_entropy,
    "label smoothing": partial(jaxsoftmax.cross_entropy, label_smoothing=0.1),
    "focal": partial(jaxsoftmax.focal_loss, gamma=2.0),
}

# The data sets of --small, those that are put to use: most of its time goes into compiling one program for each.
SMALL = ("digits", "breast cancer")

# The columns of the table: titles, alignments and widths.
COLUMNS = {
    "": "<17",
    "accuracy": ">8",
    "ECE": ">7",
    "ECE, 95 %": ">18",
    "classwise": ">10",
    "NLL/nats": ">9",
    "NLL, 95 %": ">18",
    "Brier": ">7",
}


class Measures(NamedTuple):
    """The columns of Guo's table."""

    accuracy: jax.Array
    ece: jax.Array
    classwise_ece: jax.Array
    nll: jax.Array
    brier: jax.Array


class Comparison(NamedTuple):
    """One data set: logits of the test rows by method, what they measure, and the calibrators."""

    test: Rows
    logits: dict[str, jax.Array]
    measures: dict[str, calibration.BootstrapInterval]
    choice: calibration.CalibratorChoice
    held: tuple[jax.Array, jax.Array]  # the raw logits of the calibration rows, and their labels


# ------------------------------------------------------------------------------------------------------ the comparison


def measure(logits: jax.Array, labels: jax.Array, *, weights: jax.Array) -> Measures:
    """All measures of weighted rows, which is how a bootstrap counts the rows that it draws twice."""
    error = partial(calibration.expected_calibration_error, labels, logits=logits, weights=weights)
    return Measures(
        accuracy=jaxsoftmax.weighted_mean(logits.argmax(-1) == labels, weights),
        ece=error(),
        classwise_ece=error(classwise=True),
        nll=calibration.negative_log_likelihood(labels, logits=logits, weights=weights),
        brier=calibration.brier_score(labels, logits=logits, weights=weights),
    )


def every_calibration(logits: jax.Array, choice: calibration.CalibratorChoice) -> dict[str, jax.Array]:
    """The logits under each calibrator of the choice, in the order of its names, by their names in the table."""
    return {
        "uncalibrated": logits,
        "temperature": calibration.apply_temperature(logits, choice.temperature),
        "vector": calibration.apply_vector_scaling(logits, choice.vector),
        "matrix": calibration.apply_matrix_scaling(logits, choice.matrix),
        "dirichlet": calibration.apply_dirichlet(logits, choice.dirichlet),
    }


def compare(name: str, steps: int, resamples: int, seed: int) -> Comparison:
    """Train the networks, calibrate the one of cross entropy, and measure all on the test rows."""
    splits: Splits = load_splits(name, seed)
    network_key, folds_key, bootstrap_key = jax.random.split(jax.random.key(seed), 3)
    networks = overtrain(network_key, LOSSES, SOURCES[name].classes, splits.train, steps)

    held = mlp(networks["cross entropy"], splits.calibration.inputs), splits.calibration.labels
    choice = calibration.choose_calibrator(folds_key, *held)
    raw = {loss: mlp(networks[loss], splits.test.inputs) for loss in LOSSES}
    logits = every_calibration(raw.pop("cross entropy"), choice) | raw
    # One key for all: the methods are judged by the same resamples.
    measures = {
        method: calibration.bootstrap(bootstrap_key, measure, (scores, splits.test.labels), resamples=resamples)
        for method, scores in logits.items()
    }
    return Comparison(splits.test, logits, measures, choice, held)


def print_comparison(name: str, comparison: Comparison) -> None:
    """The table of a data set, what cross-validation says, and what one temperature does."""
    choice, measures = comparison.choice, comparison.measures
    chosen = list(comparison.logits)[int(choice.best)]
    titles = " ".join(f"{title:{layout}}" for title, layout in COLUMNS.items())
    print(f"\n{name}: {len(comparison.held[1])} calibration rows, {len(comparison.test.labels)} test rows")
    print(titles, "-" * len(titles), sep="\n")
    for method, (estimate, lower, upper, _) in measures.items():
        intervals = [f"[{low:.4f}, {high:.4f}]" for low, high in zip(lower, upper, strict=True)]
        accuracy, ece, classwise, nll, brier = (f"{number:.4f}" for number in estimate)
        cells = [method + "*" * (method == chosen), accuracy, ece, intervals[1], classwise, nll, intervals[3], brier]
        print(" ".join(f"{cell:{layout}}" for cell, layout in zip(cells, COLUMNS.values(), strict=True)))

    nlls = ", ".join(f"{kind} {nll:.3f}" for kind, nll in zip(comparison.logits, choice.nlls, strict=False))
    print(f"Cross-validated NLL: {nlls}. Chosen: {chosen}.")
    before, after = measures["uncalibrated"].estimate, measures["temperature"].estimate
    ratio = float(after.ece / before.ece)
    verdict = "at most half" if ratio <= 0.5 else "more than half"
    print(f"Temperature scaling, T = {choice.temperature.temperature:.3f}:")
    print(f"  ECE {before.ece:.4f} before and {after.ece:.4f} after, {ratio:.3f} of it: {verdict}")
    same = "unchanged to the last digit" if before.accuracy == after.accuracy else "changed"
    # NumPy prints as many digits as tell a float32 from its neighbours.
    print(f"  accuracy {np.asarray(before.accuracy)!s} before and {np.asarray(after.accuracy)!s} after: {same}")


# -------------------------------------------------------------------------------------------------------- the pictures


def plot_reliability(comparison: Comparison, path: Path) -> None:
    """Reliability diagrams of the test rows, before and after the calibration by a temperature."""
    titles = {"uncalibrated": "before", "temperature": "after temperature scaling"}
    logits = {title: comparison.logits[method] for method, title in titles.items()}
    calibration.reliability_comparison(comparison.test.labels, logits=logits).savefig(path, dpi=150)


def plot_risk_coverage(comparison: Comparison, path: Path) -> None:
    """How many of the accepted rows are wrong, where rows are accepted in the order of several scores."""
    raw, scaled = comparison.logits["uncalibrated"], comparison.logits["temperature"]
    wrong = raw.argmax(-1) != comparison.test.labels
    scores = {
        "energy": calibration.energy_score(raw),
        "max. probability, before": calibration.max_probability_score(raw),
        "max. probability, after": calibration.max_probability_score(scaled),
        "entropy, after": calibration.entropy_score(scaled),
    }
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for name, score in scores.items():
        calibration.risk_coverage_plot(score, wrong, ax=axes, label=name)
    axes.set(ylabel="share of wrong labels")
    axes.grid(color="0.92")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_triage(probabilities: dict[str, jax.Array], labels: jax.Array, asking: dict[str, float], path: Path) -> None:
    """Mean cost against the threshold above which is operated; dashed, of the policy that may ask a second doctor."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, (name, probs) in enumerate(probabilities.items()):
        curve = calibration.policy_cost_curve(COSTS, labels, probs=probs)
        axes.plot(curve.threshold, curve.cost, color=f"C{number}", label=f"{name}: operate or not")
        axes.axhline(asking[name], color=f"C{number}", linestyle="--", label=f"{name}: or ask")
    threshold = float(calibration.decision_threshold(COSTS))
    axes.axvline(threshold, color="0.4", linestyle=":", label=f"threshold of the costs, {threshold:.3f}")
    axes.axhline(DOCTOR, color="0.7", linewidth=1, label="ask about all")
    axes.set(xlabel="operate where p(malignant) is above", ylabel="mean cost of a patient", xlim=(0, 1), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def record(comparison: Comparison) -> dict:
    """The numbers of a data set, for JSON."""
    measures = {
        method: {
            field: {"estimate": float(estimate), "interval": [float(low), float(high)]}
            for field, estimate, low, high in zip(
                Measures._fields, interval.estimate, interval.lower, interval.upper, strict=True
            )
        }
        for method, interval in comparison.measures.items()
    }
    return {
        "chosen": list(comparison.logits)[int(comparison.choice.best)],
        "cross-validated NLL": comparison.choice.nlls.tolist(),
        "temperature": float(comparison.choice.temperature.temperature),
        "measures": measures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--small", action="store_true", help="fewer data sets, steps, resamples and splits, for a quick look"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits, the parameters and all random draws")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the pictures and the numbers")
    arguments = parser.parse_args()
    names, steps, resamples, repeats = (SMALL, 200, 200, 50) if arguments.small else (tuple(SOURCES), 500, 1000, 200)

    comparisons = {
        name: compare(name, steps, resamples, arguments.seed)
        for name in tqdm(names, desc="data sets", unit="set", leave=False)
    }
    for name, comparison in comparisons.items():
        print_comparison(name, comparison)

    digits, tumours = comparisons["digits"], comparisons["breast cancer"]
    reports, number = conformal(
        digits.held, (digits.logits["uncalibrated"], digits.test.labels), repeats, arguments.seed
    )
    print_conformal(reports, number)

    chosen = list(tumours.logits)[int(tumours.choice.best)]
    probabilities = {kind: jaxsoftmax.softmax(tumours.logits[kind]) for kind in dict.fromkeys(("uncalibrated", chosen))}
    policies = triage(probabilities, tumours.test.labels, resamples, arguments.seed)
    print_triage(policies)

    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = [arguments.out / f"calibration_{name}.png" for name in ("reliability", "risk", "triage")]
    plot_reliability(digits, pictures[0])
    plot_risk_coverage(digits, pictures[1])
    asking = {kind: policies[f"{kind}, or ask"].cost for kind in probabilities}
    plot_triage(probabilities, tumours.test.labels, asking, pictures[2])
    numbers = {
        "seed": arguments.seed,
        "data sets": {name: record(comparison) for name, comparison in comparisons.items()},
        "conformal": {name: {k: v.tolist() for k, v in report._asdict().items()} for name, report in reports.items()},
        "triage": {name: policy._asdict() for name, policy in policies.items()},
    }
    figures = arguments.out / "calibration.json"
    figures.write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"\nPictures: {', '.join(map(str, pictures))}\nNumbers: {figures}")


if __name__ == "__main__":
    main()
