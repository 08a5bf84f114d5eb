"""Calibration and decisions: probabilities that can be trusted, and acts that follow from them."""

from jaxsoftmax.calibration.affine import (
    DirichletCalibration,
    MatrixScaling,
    VectorScaling,
    apply_dirichlet,
    apply_matrix_scaling,
    apply_vector_scaling,
    fit_dirichlet,
    fit_matrix_scaling,
    fit_vector_scaling,
)
from jaxsoftmax.calibration.choices import CalibratorChoice, apply_calibrator, choose_calibrator
from jaxsoftmax.calibration.conformal import (
    ConformalReport,
    conformal_report,
    conformal_scores,
    conformal_sets,
    conformal_threshold,
)
from jaxsoftmax.calibration.decisions import (
    Decision,
    PolicyCosts,
    decision_threshold,
    least_cost_decision,
    policy_cost_curve,
    realized_cost,
)
from jaxsoftmax.calibration.metrics import (
    ReliabilityCurve,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)
from jaxsoftmax.calibration.platt import PlattScaling, apply_platt, fit_platt
from jaxsoftmax.calibration.plots import reliability_comparison, reliability_diagram, risk_coverage_plot
from jaxsoftmax.calibration.resampling import BootstrapInterval, bootstrap
from jaxsoftmax.calibration.risks import SelectiveRisk, selective_risk
from jaxsoftmax.calibration.scaling import TemperatureScaling, apply_temperature, fit_temperature
from jaxsoftmax.calibration.scores import (
    energy_score,
    entropy_score,
    generalized_entropy_score,
    gini_score,
    margin_score,
    max_logit_score,
    max_probability_score,
)
from jaxsoftmax.calibration.smooth_metrics import (
    SmoothReliabilityCurve,
    smooth_calibration_error,
    smooth_reliability_curve,
)
from jaxsoftmax.calibration.summaries import CalibrationSummary, calibration_summary

__all__ = [
    "BootstrapInterval",
    "CalibrationSummary",
    "CalibratorChoice",
    "ConformalReport",
    "Decision",
    "DirichletCalibration",
    "MatrixScaling",
    "PlattScaling",
    "PolicyCosts",
    "ReliabilityCurve",
    "SelectiveRisk",
    "SmoothReliabilityCurve",
    "TemperatureScaling",
    "VectorScaling",
    "apply_calibrator",
    "apply_dirichlet",
    "apply_matrix_scaling",
    "apply_platt",
    "apply_temperature",
    "apply_vector_scaling",
    "bootstrap",
    "brier_score",
    "calibration_summary",
    "choose_calibrator",
    "conformal_report",
    "conformal_scores",
    "conformal_sets",
    "conformal_threshold",
    "decision_threshold",
    "energy_score",
    "entropy_score",
    "expected_calibration_error",
    "fit_dirichlet",
    "fit_matrix_scaling",
    "fit_platt",
    "fit_temperature",
    "fit_vector_scaling",
    "generalized_entropy_score",
    "gini_score",
    "least_cost_decision",
    "margin_score",
    "max_logit_score",
    "max_probability_score",
    "negative_log_likelihood",
    "policy_cost_curve",
    "realized_cost",
    "reliability_comparison",
    "reliability_curve",
    "reliability_diagram",
    "risk_coverage_plot",
    "selective_risk",
    "smooth_calibration_error",
    "smooth_reliability_curve",
]
