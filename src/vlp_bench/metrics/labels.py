"""What generated reports say against what the true reports say: label metrics, with patient-level bootstrap intervals.

Both sides are labelled by the same labeler (`metrics/labeler.py`) with 1 affirmed, 0 denied, -1 uncertain and nan not
mentioned. Only an affirmed finding counts as positive: a report that says nothing of a finding does not claim it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_bench.metrics.bootstrap import Entry, entry, over_patients, ratio

MACRO = ("label_accuracy", "label_precision", "label_recall", "label_f1")
MICRO = ("label_precision_micro", "label_recall_micro", "label_f1_micro")


def label_metrics(
    generated: ArrayLike, true: ArrayLike, patients: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Entry]:
    """Accuracy, precision, recall and F1 of the findings that generated reports affirm.

    Macro values are means over the labels that a true report affirms; precision is 0 for one of them that no generated
    report affirms. Micro values are of all labels together.

    Args:
        generated: (N, L) labels of the generated reports: 1, 0, -1 or nan.
        true: (N, L) labels of the true reports.
        patients: (N,) patient of every report.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Returns:
        `label_accuracy`, `label_precision`, `label_recall`, `label_f1` (macro) and `label_precision_micro`,
        `label_recall_micro`, `label_f1_micro`, each as `{"value", "low", "high", "n"}`; undefined where no true report
        affirms anything.

    Raises:
        ValueError: shapes do not fit, or a label is none of 1, 0, -1 and nan.
    """
    called, truth = (_checked(x) == 1 for x in (generated, true))
    if called.shape != truth.shape:
        raise ValueError(f"labels of shape {called.shape} for true labels of shape {truth.shape}")
    rows = np.concatenate([called & truth, called, truth, called == truth, np.ones((len(truth), 1))], axis=1)

    def measure(sums: NDArray) -> NDArray:
        hits, said, there, right = np.split(sums[..., :-1], 4, axis=-1)
        macro = [_mean(m, there > 0) for m in (right / sums[..., -1:], *_scores(hits, said, there))]
        return np.stack([*macro, *_scores(hits.sum(-1), said.sum(-1), there.sum(-1))], axis=-1)

    values, resampled = over_patients(rows, patients, measure, resamples, seed)
    return {n: entry(float(values[i]), resampled[:, i], len(truth)) for i, n in enumerate((*MACRO, *MICRO))}


def published_label_metrics(generated: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """Label metrics as the code that MedViLL's authors released computes them.

    Each of 1, 0, -1 and nan is a value of its own: accuracy is the share of equal ones, two that are not mentioned
    included; precision is the share of the generated mentions that are equal, recall that of the true ones. Means are
    over categories, each leaving out those where it is undefined.

    Args:
        generated: (N, L) labels of the generated reports: 1, 0, -1 or nan.
        true: (N, L) labels of the true reports.

    Returns:
        `accuracy`, `precision`, `recall` and `f1`; nan where no category defines one.
    """
    generated, true = _checked(generated), _checked(true)
    equal = (generated == true).sum(axis=0)
    said, there = ((~np.isnan(x)).sum(axis=0) for x in (generated, true))
    both_silent = (np.isnan(generated) & np.isnan(true)).sum(axis=0)
    precision, recall = ratio(equal, said), ratio(equal, there)
    values = {
        "accuracy": (equal + both_silent) / len(true),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
    }
    return {name: float(_mean(v, ~np.isnan(v))) for name, v in values.items()}


def _scores(hits: NDArray, said: NDArray, there: NDArray) -> list[NDArray]:
    """Precision, recall and F1; 0 where nothing was said, nan where nothing is there."""
    precision = np.where(said > 0, ratio(hits, said), 0.0)
    recall, f1 = ratio(hits, there), ratio(2 * hits, said + there)
    return [np.where(there > 0, x, np.nan) for x in (precision, recall, f1)]


def _mean(values: NDArray, counted: NDArray) -> NDArray[np.float64]:
    return ratio(np.where(counted, values, 0.0).sum(axis=-1), counted.sum(axis=-1))


def _checked(labels: ArrayLike) -> NDArray[np.float64]:
    labels = np.asarray(labels, np.float64)
    if labels.ndim != 2 or not np.isin(labels[~np.isnan(labels)], (1.0, 0.0, -1.0)).all():
        raise ValueError(f"labels of shape {labels.shape}: expected (N, L) of 1, 0, -1 and nan")
    return labels
