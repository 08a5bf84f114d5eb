"""Two uses of calibrated probabilities, for the example: conformal sets of digits, and a triage of breast tumours."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoftmax
from jaxsoftmax import calibration

# How often a conformal set may miss the label. One in five is wrong: to hold nine in ten, sets would have to be large.
ALPHA = 0.25
SETS = {"LAC": {"method": "lac"}, "APS": {"method": "aps"}, "RAPS": {"method": "raps", "penalty": 0.1, "k_reg": 2}}

# What acts cost beyond what cannot be helped: the rows are to send home and to operate, the columns benign and
# malignant tumours. A cancer that is sent home is the worst; an operation in vain is bad enough.
COSTS = np.array([[0.0, 100.0], [20.0, 0.0]])
DOCTOR = 4.0  # a second doctor, who finds out

Labelled = tuple[jax.Array, jax.Array]


class Policy(NamedTuple):
    """A way to act on the test rows: its mean cost, expected and real, the shares of its acts, and cancers missed."""

    expected: float
    cost: float
    interval: tuple[float, float]
    home: float
    operated: float
    asked: float
    missed: int


# -------------------------------------------------------------------------------------------------- the conformal sets


def conformal(
    held: Labelled, test: Labelled, repeats: int, seed: int
) -> tuple[dict[str, calibration.ConformalReport], int]:
    """Measure sets over random splits into rows for the threshold and rows to judge by.

    The temperature is fit to the first half of the calibration rows, so that all of the others are exchangeable: under
    random splits of any such pool, the mean coverage is what the theorem says.

    Args:
        held: Raw logits and labels of the calibration rows.
        test: Those of the test rows.
        repeats: How many splits.
        seed: Of the splits, and of the random numbers that APS and RAPS draw.

    Returns:
        Reports with fields [repeats], by method, and the number of rows that set the threshold.
    """
    half = len(held[1]) // 2
    scaling = calibration.fit_temperature(*(array[:half] for array in held))
    raw, labels = (jnp.concatenate([ours[half:], theirs]) for ours, theirs in zip(held, test, strict=True))
    logits = calibration.apply_temperature(raw, scaling)
    number = len(held[1]) - half

    def once(key: jax.Array, options: dict) -> calibration.ConformalReport:
        order_key, *keys = jax.random.split(key, 3)
        order = jax.random.permutation(order_key, len(labels))
        known, new = order[:number], order[number:]
        # With random numbers APS and RAPS cover as much as promised, and no more; LAC has no use for them.
        for_scores, for_sets = ({} if options["method"] == "lac" else {"key": key} for key in keys)
        scores = calibration.conformal_scores(labels[known], logits=logits[known], **options, **for_scores)
        threshold = calibration.conformal_threshold(scores, alpha=ALPHA)
        sets = calibration.conformal_sets(threshold, logits=logits[new], **options, **for_sets)
        return calibration.conformal_report(sets, labels[new])

    keys = jax.random.split(jax.random.key(seed), repeats)
    return {name: jax.jit(jax.vmap(partial(once, options=options)))(keys) for name, options in SETS.items()}, number


def print_conformal(reports: dict[str, calibration.ConformalReport], number: int) -> None:
    """One row per method: means over the splits, and the coverage of all but the most extreme tenth of them."""
    print(f"\nconformal sets of digits: {number} rows set the threshold, means over {len(reports['LAC'].size)} splits")
    titles = f"{'':<6}{'coverage':>9}{'90 % of splits':>19}{'classes':>9}{'single':>8}{'empty':>8}"
    print(titles, "-" * len(titles), sep="\n")
    for method, report in reports.items():
        low, high = jnp.quantile(report.coverage, jnp.array([0.05, 0.95]))
        coverage, size, empty, single = (field.mean() for field in report)
        spread = f"[{low:.4f}, {high:.4f}]"
        print(f"{method:<6}{coverage:>9.4f}{spread:>19}{size:>9.3f}{single:>8.4f}{empty:>8.4f}")
    print(f"Promised: a mean coverage from {1 - ALPHA:.4f} to {1 - ALPHA + 1 / (number + 1):.4f}.")


# ---------------------------------------------------------------------------------------------------------- the triage


def judge(expected: jax.Array, acts: jax.Array, labels: jax.Array, resamples: int, seed: int) -> Policy:
    """What acts cost, beside the expected costs [N, 3] of all acts."""
    costs = calibration.realized_cost(COSTS, acts, labels, reject_cost=DOCTOR)
    interval = calibration.bootstrap(jax.random.key(seed), jaxsoftmax.weighted_mean, (costs,), resamples=resamples)
    home, operated, asked = (float((acts == act).mean()) for act in range(3))
    return Policy(
        expected=float(jnp.take_along_axis(expected, acts[:, None], axis=1).mean()),
        cost=float(interval.estimate),
        interval=(float(interval.lower), float(interval.upper)),
        home=home,
        operated=operated,
        asked=asked,
        missed=int(((acts == 0) & (labels == 1)).sum()),
    )


def triage(probabilities: dict[str, jax.Array], labels: jax.Array, resamples: int, seed: int) -> dict[str, Policy]:
    """For each kind of probabilities: treat the likelier class; the cheaper act; or ask where that is cheaper still."""
    policies = {}
    for kind, probs in probabilities.items():
        either = calibration.least_cost_decision(COSTS, probs=probs)
        free = calibration.least_cost_decision(COSTS, probs=probs, reject_cost=DOCTOR)
        acts = {"likelier class": probs.argmax(-1), "least cost": either.act, "or ask": free.act}
        for name, act in acts.items():
            policies[f"{kind}, {name}"] = judge(free.costs, act, labels, resamples, seed)
    return policies


def print_triage(policies: dict[str, Policy]) -> None:
    """One row per policy."""
    threshold = float(calibration.decision_threshold(COSTS))
    print("\ntriage of breast tumours, mean cost of a patient")
    titles = f"{'':<30}{'expected':>9}{'cost':>8}{'cost, 95 %':>18}{'home':>8}{'operate':>9}{'ask':>8}{'missed':>8}"
    print(titles, "-" * len(titles), sep="\n")
    for name, policy in policies.items():
        interval = "[{:.3f}, {:.3f}]".format(*policy.interval)
        shares = f"{policy.home:>8.4f}{policy.operated:>9.4f}{policy.asked:>8.4f}"
        print(f"{name:<30}{policy.expected:>9.3f}{policy.cost:>8.3f}{interval:>18}{shares}{policy.missed:>8}")
    print(f"The costs say to operate where p(malignant) is above {threshold:.4f}; to ask about all costs {DOCTOR:.3f}.")
