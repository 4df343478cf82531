"""Variances of AUROCs and of their differences without resampling.

DeLong, DeLong and Clarke-Pearson (Biometrics 1988) give the covariance of AUROCs measured on the same items, from how
far each item is placed among those of the other class; Obuchowski (Biometrics 1997) the same where items come in
clusters, here patients. Placements come from sorting, in O(n log n) as with the midranks of Sun and Xu (IEEE Signal
Processing Letters 2014), and ties are exact: a tied pair counts one half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike, NDArray

from vlp_bench.metrics.bootstrap import Patients
from vlp_bench.metrics.classification import checked_columns
from vlp_bench.metrics.paired import Difference, normal_difference


@dataclass(frozen=True)
class Aurocs:
    """AUROCs of K backbones on L labels with the covariance of all of them.

    Attributes:
        value: (K, L) float64; nan for a label without both classes.
        covariance: (K, L, K, L) float64; nan also for a label one of whose classes comes from a single cluster.
    """

    value: Float[ndarray, "K L"]
    covariance: Float[ndarray, "K L K L"]

    def difference(self, a: int, b: int, label: int | None = None) -> Difference:
        """Compare backbones `a` and `b` on one label, or on the macro average over the labels with both classes."""
        weights = np.zeros(self.value.shape)
        chosen = np.flatnonzero(np.isfinite(self.value[a])) if label is None else np.array([label])
        if chosen.size == 0:
            return normal_difference(np.nan, np.nan)
        weights[a, chosen] += 1 / len(chosen)
        weights[b, chosen] -= 1 / len(chosen)
        used = weights != 0
        if not used.any():  # a backbone beside itself
            return normal_difference(0.0, 0.0)
        flat = weights[used]
        variance = flat @ self.covariance[used][:, used] @ flat
        return normal_difference(float(flat @ self.value[used]), float(variance))


def delong(backbones: Sequence[Sequence[ArrayLike]], targets: ArrayLike, patients: ArrayLike | None) -> Aurocs:
    """Measure AUROCs with their covariance, all from the same items.

    Values of several runs of a backbone are averaged, and so are their placements: the covariance is that of the
    means over these very runs.

    Args:
        backbones: for each of K backbones its runs, each (N, L) or (N,) finite scores.
        targets: (N, L) or (N,) of 0, 1 or nan (unknown).
        patients: (N,) patient of every item, whose items resemble each other (Obuchowski 1997); None takes all items
            as independent (DeLong 1988). With one item a patient the two agree.

    Raises:
        ValueError: shapes differ, a score is not finite, a target is not 0, 1 or nan, or a backbone has no run.
    """
    columns = np.asarray(targets, np.float64)
    columns = columns.reshape(len(columns), -1)
    groups = Patients.of(np.arange(len(columns)) if patients is None else patients)
    if len(groups.index) != len(columns):
        raise ValueError(f"{len(groups.index)} patients for {len(columns)} items")
    if not all(len(runs) for runs in backbones):
        raise ValueError("a backbone without runs has no value")
    labels = columns.shape[1]
    value = np.full((len(backbones), labels), np.nan)
    parts = np.full((2, len(backbones), labels, groups.count), np.nan)
    for k, runs in enumerate(backbones):
        checked = [checked_columns(run, columns)[0] for run in runs]
        for i in range(labels):
            found = [_placed(scores[:, i], columns[:, i], groups) for scores in checked]
            value[k, i] = np.mean([auroc for auroc, _ in found])
            parts[:, k, i] = np.mean([sums for _, sums in found], axis=0)
    return Aurocs(value, _covariance(parts, *_corrections(columns, groups)))


def _placed(scores: NDArray, targets: NDArray, groups: Patients) -> tuple[float, NDArray]:
    """AUROC of one label, and what each patient's positives and negatives (2, P) add to its deviation."""
    positive, negative = targets == 1, targets == 0
    m, n = int(positive.sum()), int(negative.sum())
    if m == 0 or n == 0:
        return np.nan, np.full((2, groups.count), np.nan)
    of_positives = _share_below(scores[positive], scores[negative])
    of_negatives = 1 - _share_below(scores[negative], scores[positive])
    auroc = float(of_positives.mean())
    deviations = np.zeros((len(scores), 2))
    deviations[positive, 0] = (of_positives - auroc) / m
    deviations[negative, 1] = (of_negatives - auroc) / n
    return auroc, groups.sums(deviations).T


def _share_below(scores: NDArray, others: NDArray) -> NDArray:
    """Share of the other class that each score exceeds, ties as one half."""
    others = np.sort(others)
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / (2 * len(others))


def _corrections(targets: NDArray, groups: Patients) -> tuple[NDArray, NDArray]:
    """I / (I - 1) for the clusters with a positive, with a negative (2, L), and with either (L,) of each label."""
    present = np.stack([groups.sums(targets == 1), groups.sums(targets == 0)]) > 0
    counts = np.concatenate([present, present.any(axis=0, keepdims=True)]).sum(axis=1).astype(np.float64)
    factors = np.divide(counts, counts - 1, out=np.full(counts.shape, np.nan), where=counts > 1)
    return factors[:2], factors[2]


def _covariance(parts: NDArray, own: NDArray, shared: NDArray) -> NDArray:
    """Sum products of deviations over patients, (2, K, L, P) to (K, L, K, L).

    Within a label this is Obuchowski's estimate. Between labels, where an item may be positive for the one and
    negative for the other, the corrections of the two labels meet in their geometric mean.
    """
    _, backbones, labels, count = parts.shape
    flat = parts.reshape(2, backbones * labels, count)
    roots = np.sqrt(np.stack([np.tile(own[0], backbones), np.tile(own[1], backbones), np.tile(shared, backbones)]))
    total = sum((flat[c] @ flat[c].T) * np.outer(roots[c], roots[c]) for c in range(2))
    crossed = flat[0] @ flat[1].T
    total = total + (crossed + crossed.T) * np.outer(roots[2], roots[2])
    return np.asarray(total).reshape(backbones, labels, backbones, labels)
