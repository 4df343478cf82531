"""Metrics with patient-level bootstrap intervals, in numpy and scipy alone."""

from vlp_bench.metrics.bootstrap import bootstrap_weights
from vlp_bench.metrics.classification import choose_thresholds, classification_metrics, trivial_classification
from vlp_bench.metrics.delong import Aurocs, delong
from vlp_bench.metrics.paired import (
    Difference,
    auroc_statistic,
    bootstrap_difference,
    bootstrap_t_difference,
    holm,
    mean_statistic,
    normal_difference,
    paired_bootstrap,
    rank_intervals,
    t_difference,
)
from vlp_bench.metrics.retrieval import retrieval_metrics, retrieval_ranks, trivial_retrieval
from vlp_bench.metrics.variance import VarianceSplit, variance_split

__all__ = [
    "Aurocs",
    "Difference",
    "VarianceSplit",
    "auroc_statistic",
    "bootstrap_difference",
    "bootstrap_t_difference",
    "bootstrap_weights",
    "choose_thresholds",
    "classification_metrics",
    "delong",
    "holm",
    "mean_statistic",
    "normal_difference",
    "paired_bootstrap",
    "rank_intervals",
    "retrieval_metrics",
    "retrieval_ranks",
    "t_difference",
    "trivial_classification",
    "trivial_retrieval",
    "variance_split",
]
