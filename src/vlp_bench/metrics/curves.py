"""Curves of scores against truths on a common grid, so that those of several labels and runs can be averaged."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike

#: Where curves are read: false alarms of a ROC curve, recall of a precision-recall curve.
GRID = np.linspace(0.0, 1.0, 51)
Curve = Float[ndarray, "51"]


def roc(scores: ArrayLike, targets: ArrayLike) -> Curve:
    """Share of positives found at each share of false alarms of GRID; the area below it is the AUROC.

    Args:
        scores: (N,) floats.
        targets: (N,) of 0, 1 or nan (unknown, left out); both classes.
    """
    from sklearn.metrics import roc_curve

    scores, targets = _known(scores, targets)
    alarms, found, _ = roc_curve(targets, scores)
    return np.interp(GRID, alarms, found)


def precision_recall(scores: ArrayLike, targets: ArrayLike) -> Curve:
    """Precision at the highest threshold that reaches each recall of GRID.

    Args:
        scores: (N,) floats.
        targets: (N,) of 0, 1 or nan (unknown, left out); a positive at least.
    """
    from sklearn.metrics import precision_recall_curve

    scores, targets = _known(scores, targets)
    precision, recall, _ = precision_recall_curve(targets, scores)
    # from the lowest recall up; the first point of recall 0 is sklearn's own, where nothing is called
    precision, recall = precision[-2::-1], recall[-2::-1]
    return precision[np.minimum(np.searchsorted(recall, GRID - 1e-9), len(recall) - 1)]


def mean_curve(curves: Iterable[Curve]) -> Curve:
    """The mean at each place of GRID."""
    return np.mean(list(curves), axis=0)


def reliability(
    scores: ArrayLike, targets: ArrayLike, bins: int = 10
) -> tuple[Float[ndarray, " B"], Float[ndarray, " B"], Float[ndarray, " B"]]:
    """What probabilities said and what was there, in `bins` bins of equal width; empty bins are left out.

    Args:
        scores: any shape, probabilities.
        targets: the same shape, of 0, 1 or nan (unknown, left out).
        bins: number of bins.

    Returns:
        Mean probability, share of positives and number of decisions of each of the B bins that hold any.
    """
    said, there = _known(np.ravel(scores), np.ravel(targets))
    place = np.minimum((said * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins).astype(float)
    sums = [np.bincount(place, weights=values, minlength=bins)[count > 0] for values in (said, there)]
    count = count[count > 0]
    return sums[0] / count, sums[1] / count, count


def calibration_error(scores: ArrayLike, targets: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al., 2015; Guo et al., 2017) of each label, averaged over labels.

    Args:
        scores: (N, L) probabilities.
        targets: (N, L) of 0, 1 or nan; a label without a known one is left out.
        bins: of equal width.
    """
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    errors = []
    for column in np.flatnonzero(~np.isnan(targets).all(axis=0)):
        said, there, count = reliability(scores[:, column], targets[:, column], bins)
        errors.append(float((count * np.abs(said - there)).sum() / count.sum()))
    return float(np.mean(errors)) if errors else float("nan")


def brier(scores: ArrayLike, targets: ArrayLike) -> Float[ndarray, " N"]:
    """Brier score of each item: the mean squared error of its known labels; nan for an item without any.

    Args:
        scores: (N, L) probabilities.
        targets: (N, L) of 0, 1 or nan.
    """
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    known = ~np.isnan(targets)
    squared = np.where(known, (scores - np.nan_to_num(targets)) ** 2, 0.0).sum(axis=1)
    return np.where(known.any(axis=1), squared / np.maximum(known.sum(axis=1), 1), np.nan)


def _known(scores: ArrayLike, targets: ArrayLike) -> tuple[ndarray, ndarray]:
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    known = ~np.isnan(targets)
    return (scores[known], targets[known]) if not known.all() else (scores, targets)
