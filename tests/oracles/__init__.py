"""Truth from the formulas, in arbitrary precision, one row at a time; nothing here imports the package under test."""

from tests.oracles import exact, wide
from tests.oracles.distributions import entropy, kl_divergence, smooth_labels, soft_cross_entropy, weighted_mean
from tests.oracles.exact import Exact, Truth
from tests.oracles.losses import (
    additive_margin,
    angular_margin,
    binary_cross_entropy,
    cross_entropy,
    focal_loss,
    hinge_loss,
    poly_loss,
    sigmoid_focal_loss,
    z_loss,
)
from tests.oracles.normalizers import log_softmax, logsumexp, smooth_max, softmax
from tests.oracles.statistics import row_statistics

__all__ = [
    "Exact",
    "Truth",
    "additive_margin",
    "angular_margin",
    "binary_cross_entropy",
    "cross_entropy",
    "entropy",
    "exact",
    "focal_loss",
    "hinge_loss",
    "kl_divergence",
    "log_softmax",
    "logsumexp",
    "poly_loss",
    "row_statistics",
    "sigmoid_focal_loss",
    "smooth_labels",
    "smooth_max",
    "soft_cross_entropy",
    "softmax",
    "weighted_mean",
    "wide",
    "z_loss",
]
