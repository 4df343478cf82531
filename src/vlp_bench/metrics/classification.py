"""Classification metrics with patient-level bootstrap intervals.

AUROC and AUPRC of all resamples come from one sort per label: a resample only changes how often each item counts,
so its ranking metrics are cumulative sums of weights along the same order. Ties are exact: a tied pair counts one
half in the AUROC, and the AUPRC is the average precision over distinct thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_bench.metrics.bootstrap import Entry, Patients, entry, known_mean, patient_counts, ratio

KINDS = ("multilabel", "binary", "multiclass")
NAMES = ("auroc", "auprc", "f1", "accuracy")


def classification_metrics(
    scores: ArrayLike,
    targets: ArrayLike,
    patients: ArrayLike,
    thresholds: ArrayLike | None,
    *,
    labels: Sequence[str],
    kind: str,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Entry]:
    """Score predictions, with 95 % percentile intervals from a bootstrap over patients.

    A label without a known positive or without a known negative has no ranking: it is left out of every macro
    average and reported with value None. In a resample that happens to miss one class of a label, the macro
    average is taken over the other labels.

    Args:
        scores: (N, L) or, for one label, (N,) finite floats; higher means more likely.
        targets: (N, L) floats 0, 1 or nan (unknown); for `multiclass` also (N,) class indices with nan unknown,
            and an item with any nan is unknown as a whole.
        patients: (N,) patient of every item.
        thresholds: (L,) floats; an item is called positive when its score reaches the threshold. Not used (and
            may be None) for `multiclass`, where the highest score decides.
        labels: L names.
        kind: `multilabel`, `binary` (one label) or `multiclass` (one-vs-rest ranking, argmax decisions).
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Returns:
        `auroc`, `auprc`, `f1` and `accuracy` (macro averages; the accuracy of `multiclass` is that of the argmax)
        and the same per label as `auroc/<label>`; `multiclass` has no accuracy per label. Each value is
        `{"value", "low", "high", "n"}`, where n counts the items with a known target.

    Raises:
        ValueError: if shapes, the kind, a score or a target value do not fit the description above.
    """
    scores, targets = _checked(scores, targets, labels, kind)
    if kind == "multiclass":
        called = _one_hot(np.argmax(scores, axis=1), scores.shape[1]).astype(bool)
    else:
        limits = np.full(len(labels), np.nan) if thresholds is None else np.asarray(thresholds, np.float64).reshape(-1)
        if limits.shape != (len(labels),) or np.isnan(limits).any():
            raise ValueError(f"thresholds must be {len(labels)} numbers, one per label")
        called = scores >= limits
    return _evaluate(scores, called, called, targets, patients, labels, kind, resamples, seed)


def trivial_classification(
    train_targets: ArrayLike,
    test_targets: ArrayLike,
    patients: ArrayLike,
    *,
    labels: Sequence[str],
    kind: str,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Entry]:
    """Score what needs no image: the floor that a method has to beat.

    The ranking metrics are those of a constant score (AUROC one half, AUPRC the prevalence). F1 is that of calling
    everything positive, and accuracy that of each label's majority class in the training targets (ties: negative).
    For `multiclass` both come from always naming the majority class of the training targets.

    Args:
        train_targets: (M, L), or (M,) class indices for `multiclass`; nan unknown.
        test_targets: as `train_targets`, for the N test items.
        patients: (N,) patient of every test item.
        labels: L names.
        kind: as in `classification_metrics`.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        The same structure as `classification_metrics`.

    Raises:
        ValueError: as `classification_metrics`.
    """
    train = _checked_targets(train_targets, len(labels), kind)
    test = _checked_targets(test_targets, len(labels), kind)
    positives, known = np.nansum(train, axis=0), np.sum(~np.isnan(train), axis=0)
    if kind == "multiclass":
        majority = _one_hot(np.array([np.argmax(positives)]), len(labels))[0].astype(bool)
        call_f1 = call_accuracy = np.broadcast_to(majority, test.shape)
    else:
        call_f1 = np.ones(test.shape, bool)
        call_accuracy = np.broadcast_to(2 * positives > known, test.shape)
    constant = np.zeros(test.shape)
    return _evaluate(constant, call_f1, call_accuracy, test, patients, labels, kind, resamples, seed)


def macro_auroc(scores: ArrayLike, targets: ArrayLike) -> float:
    """Mean AUROC over the labels that have both classes; nan where none has.

    Args:
        scores: (N, L) finite floats.
        targets: (N, L) floats 0, 1 or nan (unknown).

    Raises:
        ValueError: as `classification_metrics`.
    """
    scores, targets = checked_columns(scores, targets)
    valid = (np.nansum(targets, axis=0) > 0) & (np.nansum(1 - targets, axis=0) > 0)
    everyone = np.zeros(len(targets), np.intp)
    once = np.ones((1, 1), np.int32)
    found = [Ranking.of(scores[:, i], targets[:, i], everyone).auroc(once)[0] for i in np.flatnonzero(valid)]
    return float(np.mean(found)) if found else float("nan")


def choose_thresholds(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Choose, per label, the score from which calling an item positive gives the highest F1.

    Args:
        scores: (N, L) or (N,) finite floats of the validation data.
        targets: same shape; 0, 1 or nan (unknown).

    Returns:
        (L,) float64 thresholds, each a score that occurs; of equally good ones the highest. A label without a
        known positive gets the number just above its highest score, a label without any known target 0.5.

    Raises:
        ValueError: if the shapes differ, a score is not finite or a target is not 0, 1 or nan.
    """
    scores, targets = checked_columns(scores, targets)
    return np.array([_best_threshold(s, t) for s, t in zip(scores.T, targets.T, strict=True)])


def _best_threshold(scores: NDArray, targets: NDArray) -> float:
    """Find the F1-maximising threshold of one label; see `choose_thresholds`."""
    known = ~np.isnan(targets)
    scores, targets = scores[known], targets[known]
    if scores.size == 0:
        return 0.5
    if targets.sum() == 0:
        return float(np.nextafter(scores.max(), np.inf))
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(targets[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    f1[:-1][scores[:-1] == scores[1:]] = -1.0  # a threshold cannot part items with equal scores
    return float(scores[np.argmax(f1)])


@dataclass(frozen=True)
class Ranking:
    """One label's known items in descending order of score, reduced to what a weighted ranking needs.

    Positives are indexed by their rank among positives. For positive j, `first[j]` and `last[j]` delimit the items
    that share its score, and `pos_first[j]`, `pos_last[j]` the positives among them.
    """

    patients: NDArray[np.intp]  # (n,) patient of every item
    positives: NDArray[np.intp]  # (p,) patient of every positive
    negatives: NDArray[np.intp]  # (n - p,) patient of every negative
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    pos_first: NDArray[np.intp]
    pos_last: NDArray[np.intp]

    @classmethod
    def of(cls, scores: NDArray, targets: NDArray, patients: NDArray[np.intp]) -> "Ranking":
        """Sort the known items of one label: scores (N,), targets (N,) of 0, 1 and nan, patients (N,)."""
        known = np.flatnonzero(~np.isnan(targets))
        order = known[np.argsort(-scores[known], kind="stable")]
        ascending = -scores[order]
        positive = targets[order] == 1
        values = ascending[positive]
        return cls(
            patients[order],
            patients[order[positive]],
            patients[order[~positive]],
            np.searchsorted(ascending, values, "left"),
            np.searchsorted(ascending, values, "right"),
            np.searchsorted(values, values, "left"),
            np.searchsorted(values, values, "right"),
        )

    def auroc(self, counts: NDArray[np.int32]) -> NDArray[np.float64]:
        """Compute the AUROC under patient counts (r, P): (r,) float64, nan where undefined."""
        ahead = _running(np.take(counts, self.negatives, axis=1))
        weight = np.take(counts, self.positives, axis=1)
        passed = np.take(ahead, self.first - self.pos_first, axis=1)
        passed += np.take(ahead, self.last - self.pos_last, axis=1)
        return _auroc(weight, passed, weight.sum(axis=1), ahead[:, -1])

    def measure(self, counts: NDArray[np.int32]) -> tuple[NDArray, NDArray]:
        """Compute AUROC and AUPRC under patient counts (r, P): two (r,) float64 arrays, nan where undefined."""
        above = _running(np.take(counts, self.patients, axis=1))
        weight = np.take(counts, self.positives, axis=1)
        hits = _running(weight)
        total, negatives = hits[:, -1], above[:, -1] - hits[:, -1]
        upto, hits_upto = np.take(above, self.last, axis=1), np.take(hits, self.pos_last, axis=1)
        passed = upto - hits_upto
        passed += np.take(above, self.first, axis=1)
        passed -= np.take(hits, self.pos_first, axis=1)
        gains = np.einsum("rp,rp->r", weight, hits_upto / np.maximum(upto, 1))
        precision = np.where(negatives > 0, ratio(gains, total), np.nan)
        return _auroc(weight, passed, total, negatives), precision


def _auroc(weight: NDArray, passed: NDArray, total: NDArray, negatives: NDArray) -> NDArray[np.float64]:
    """AUROC from twice the negatives ahead of each positive (r, p), ties counting once; every sum is exact."""
    pairs = negatives.astype(np.float64) * total
    return ratio(pairs - 0.5 * np.einsum("rp,rp->r", weight, passed, dtype=np.float64), pairs)


def _evaluate(
    scores: NDArray,
    call_f1: NDArray,
    call_accuracy: NDArray,
    targets: NDArray,
    patients: ArrayLike,
    labels: Sequence[str],
    kind: str,
    resamples: int,
    seed: int,
) -> dict[str, Entry]:
    """Measure scores (N, L) and decisions (N, L) against targets (N, L), with intervals."""
    groups = Patients.of(patients)
    if len(groups.index) != len(targets):
        raise ValueError(f"{len(groups.index)} patients for {len(targets)} items")
    valid = (np.nansum(targets, axis=0) > 0) & (np.nansum(1 - targets, axis=0) > 0)
    rankings = {i: Ranking.of(scores[:, i], targets[:, i], groups.index) for i in np.flatnonzero(valid)}
    outcomes = groups.sums(_outcomes(call_f1, call_accuracy, targets, kind))

    def measure(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        values = np.full((len(NAMES), len(labels), len(counts)), np.nan)
        for i, ranking in rankings.items():
            values[0, i], values[1, i] = ranking.measure(counts)
        hits, called_or_true, right, known = np.split((counts @ outcomes).T, 4)
        values[2, valid] = ratio(2 * hits, called_or_true)[valid]
        values[3, valid] = ratio(right, known)[valid]
        return values

    point = measure(np.ones((1, groups.count), np.int32))[..., 0]
    resampled = np.full((len(NAMES), len(labels), resamples), np.nan)
    for rows, counts in patient_counts(groups.count, resamples, seed, width=len(targets)):
        resampled[..., rows] = measure(counts)
    return _described(point, resampled, valid, targets, labels, kind)


def _described(
    point: NDArray, resampled: NDArray, valid: NDArray, targets: NDArray, labels: Sequence[str], kind: str
) -> dict[str, Entry]:
    """Name the values (4, L) and resamples (4, L, R) of `_evaluate`, macro averages first."""
    known = np.sum(~np.isnan(targets), axis=0)
    anywhere = int(np.sum(~np.isnan(targets).all(axis=1)))
    result = {
        name: entry(float(known_mean(point[m, valid])), known_mean(resampled[m, valid]), anywhere)
        for m, name in enumerate(NAMES)
    }
    for m, name in enumerate(NAMES):
        if name == "accuracy" and kind == "multiclass":
            continue  # the accuracy of a single class would only repeat the number of all
        for i, label in enumerate(labels):
            result[f"{name}/{label}"] = entry(point[m, i], resampled[m, i], known[i])
    return result


def _outcomes(call_f1: NDArray, call_accuracy: NDArray, targets: NDArray, kind: str) -> NDArray[np.float64]:
    """List per item what F1 and accuracy add up: (N, 4L) hits, called + true, right decisions, known targets."""
    known = ~np.isnan(targets)
    truth = known & (targets == 1)
    right = known & (call_accuracy == truth)
    if kind == "multiclass":
        right = known & right.all(axis=1, keepdims=True)
    called = known & call_f1
    return np.concatenate([called & truth, called.astype(int) + truth, right, known], axis=1).astype(np.float64)


def checked_columns(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bring scores and targets, (N, L) or (N,), into (N, L) float64.

    Raises:
        ValueError: the shapes differ, a score is not finite or a target is not 0, 1 or nan.
    """
    scores = np.asarray(scores, np.float64)
    columns = scores.reshape(len(scores), -1)
    return _checked(columns, targets, [str(i) for i in range(columns.shape[1])], "multilabel")


def _checked(scores: ArrayLike, targets: ArrayLike, labels: Sequence[str], kind: str) -> tuple[NDArray, NDArray]:
    """Bring scores and targets into (N, L) float64, or say what does not fit."""
    scores = np.asarray(scores, np.float64)
    scores = scores[:, None] if scores.ndim == 1 else scores
    targets = _checked_targets(targets, len(labels), kind)
    if scores.shape != (len(targets), len(labels)):
        raise ValueError(f"scores of shape {scores.shape} for {len(targets)} items and {len(labels)} labels")
    bad = ~np.isfinite(scores).all(axis=0)
    if bad.any():
        raise ValueError(f"scores of {', '.join(np.asarray(labels)[bad])} are not all finite")
    return scores, targets


def _checked_targets(targets: ArrayLike, width: int, kind: str) -> NDArray[np.float64]:
    """Bring targets into (N, width) float64 of 0, 1 and nan, or say what does not fit."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if kind == "binary" and width != 1:
        raise ValueError(f"kind binary has one label, not {width}")
    targets = np.asarray(targets, np.float64)
    if targets.ndim == 1:
        targets = _one_hot(targets, width) if kind == "multiclass" else targets[:, None]
    if targets.ndim != 2 or targets.shape[1] != width:
        raise ValueError(f"targets of shape {targets.shape} do not fit {width} labels")
    if not np.isin(targets[~np.isnan(targets)], (0.0, 1.0)).all():
        raise ValueError("targets must be 0, 1 or nan")
    if kind == "multiclass":
        targets = np.where(np.isnan(targets).any(axis=1, keepdims=True), np.nan, targets)
        if not np.isin(targets.sum(axis=1)[~np.isnan(targets[:, 0])], (1.0,)).all():
            raise ValueError("every multiclass item must have exactly one class")
    return targets


def _one_hot(classes: NDArray, width: int) -> NDArray[np.float64]:
    """Turn class indices (N,) into (N, width) zeros and ones; a nan index gives a row of nan."""
    classes = np.asarray(classes, np.float64)
    known = classes[~np.isnan(classes)]
    if ((known < 0) | (known >= width) | (known != np.floor(known))).any():
        raise ValueError(f"class indices must be whole numbers from 0 to {width - 1}")
    hot = (classes[:, None] == np.arange(width)).astype(np.float64)
    hot[np.isnan(classes)] = np.nan
    return hot


def _running(weights: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sum along rows with a leading zero: (r, n) to (r, n + 1). Sums stay below 2**31, so int32 is exact."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1), np.int32)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def averaged_scores(probabilities: ArrayLike, targets: ArrayLike, threshold: float = 0.5) -> dict[str, float]:
    """Micro and macro AUROC and F1 at one threshold for all labels, as MedViLL's code measures classification.

    Args:
        probabilities: (N, L).
        targets: (N, L) of 0 and 1, each label with both.
        threshold: from which a label is called.

    Returns:
        `auroc_micro` and `f1_micro` of all decisions together, `auroc_macro` and `f1_macro` the means over labels (0
        for a label that is neither called nor there).
    """
    from sklearn.metrics import f1_score, roc_auc_score

    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets).astype(int)
    called = (probabilities >= threshold).astype(int)
    return {
        f"{name}_{average}": float(value)
        for average in ("micro", "macro")
        for name, value in (
            ("auroc", roc_auc_score(targets, probabilities, average=average)),
            ("f1", f1_score(targets, called, average=average, zero_division=0)),
        )
    }


def agreement(scores: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """What PRIOR reports beside accuracy and F1: macro precision and recall (0 for a class never named), and kappa.

    Args:
        scores: (N, C), of which the highest names the class.
        targets: (N, C) of 0 and 1, exactly one class each.
    """
    from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

    true, named = np.argmax(targets, axis=1), np.argmax(scores, axis=1)
    precision, recall, _, _ = precision_recall_fscore_support(true, named, average="macro", zero_division=0)
    return {"precision": float(precision), "recall": float(recall), "kappa": float(cohen_kappa_score(true, named))}
