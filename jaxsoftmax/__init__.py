"""Softmax, its losses and its relaxations for JAX, exact to the last digit and open to every transformation."""

import importlib
import types
import typing

from jaxsoftmax import objectives
from jaxsoftmax._core.rules import forward_mode
from jaxsoftmax.binary_losses import binary_cross_entropy, sigmoid_focal_loss
from jaxsoftmax.divergences import kl_divergence, soft_cross_entropy
from jaxsoftmax.entropies import entropy
from jaxsoftmax.hinges import hinge_loss
from jaxsoftmax.linear import linear_cross_entropy, linear_loss, linear_statistics
from jaxsoftmax.linear_distributions import linear_entropy, linear_kl_divergence, linear_log_probs
from jaxsoftmax.linear_ranks import TopClasses, linear_accuracy, linear_top_k
from jaxsoftmax.losses import cross_entropy, focal_loss, poly_loss, smooth_labels, weighted_mean
from jaxsoftmax.normalizers import log_softmax, logsumexp, smooth_max, softmax
from jaxsoftmax.relaxations import gumbel_softmax, straight_through
from jaxsoftmax.sharding import sharded_linear_loss, sharded_linear_statistics
from jaxsoftmax.statistics import RowStatistics, row_statistics

if typing.TYPE_CHECKING:
    from jaxsoftmax import calibration

__version__ = "0.1.0"

__all__ = [
    "RowStatistics",
    "TopClasses",
    "binary_cross_entropy",
    "calibration",
    "cross_entropy",
    "entropy",
    "focal_loss",
    "forward_mode",
    "gumbel_softmax",
    "hinge_loss",
    "kl_divergence",
    "linear_accuracy",
    "linear_cross_entropy",
    "linear_entropy",
    "linear_kl_divergence",
    "linear_log_probs",
    "linear_loss",
    "linear_statistics",
    "linear_top_k",
    "log_softmax",
    "logsumexp",
    "objectives",
    "poly_loss",
    "row_statistics",
    "sharded_linear_loss",
    "sharded_linear_statistics",
    "sigmoid_focal_loss",
    "smooth_labels",
    "smooth_max",
    "soft_cross_entropy",
    "softmax",
    "straight_through",
    "weighted_mean",
]


def __getattr__(name: str) -> types.ModuleType:
    """`calibration`, which no training step needs, is imported on first use: the rest then takes half the time."""
    if name != "calibration":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """What is public, imported or not."""
    return sorted({*globals(), *__all__})
