"""Metrics with patient-level bootstrap intervals, in numpy alone."""

from vlp_bench.metrics.bootstrap import bootstrap_weights
from vlp_bench.metrics.classification import choose_thresholds, classification_metrics, trivial_classification
from vlp_bench.metrics.retrieval import retrieval_metrics, retrieval_ranks, trivial_retrieval

__all__ = [
    "bootstrap_weights",
    "choose_thresholds",
    "classification_metrics",
    "retrieval_metrics",
    "retrieval_ranks",
    "trivial_classification",
    "trivial_retrieval",
]
