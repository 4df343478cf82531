"""Segmentation metrics from three counts per image and label, with patient-level bootstrap intervals.

The Dice of the literature (GLoRIA, MGCA and who followed) averages over all images and calls an empty prediction on an
image without the finding perfect, so that predicting nothing at all scores the share of such images. Beside it stand
the Dice of the images that have the finding, the pooled IoU, and how often something is drawn where nothing is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_bench.metrics.bootstrap import Entry, Patients, entry, known_mean, patient_counts, ratio

#: Those by which a threshold can be chosen, and all; of `false_positive_rate` less is better.
CHOOSING = ("dice", "dice_positive", "iou")
NAMES = ("dice", "dice_positive", "iou", "false_positive_rate")


@dataclass(frozen=True)
class Counts:
    """Pixels of N images and L labels; nan in all three where the mask is not known.

    Attributes:
        overlap: (..., N, L) float64, predicted and true.
        predicted: (..., N, L) float64.
        true: (N, L) float64.
    """

    overlap: NDArray[np.float64]
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]

    def __getitem__(self, index: int) -> "Counts":
        """The counts at one of several thresholds."""
        return Counts(self.overlap[index], self.predicted[index], self.true)

    def at(self, thresholds: NDArray[np.intp]) -> "Counts":
        """The counts of each label at its own threshold, (L,) indices into the first axis."""
        labels = np.arange(self.true.shape[1])
        return Counts(self.overlap[thresholds, :, labels].T, self.predicted[thresholds, :, labels].T, self.true)

    @property
    def nothing(self) -> "Counts":
        """The counts of predicting nothing on these images."""
        zero = np.where(np.isnan(self.true), np.nan, 0.0)
        return Counts(zero, zero, self.true)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N, L) where the mask is known."""
        return ~np.isnan(self.true)


def count_pixels(predicted: ArrayLike, masks: ArrayLike, known: ArrayLike | None = None) -> Counts:
    """Count pixels.

    Args:
        predicted: (N, L, H, W) bool.
        masks: (N, L, H, W) bool.
        known: (N, L) bool; all by default.

    Raises:
        ValueError: if shapes differ.
    """
    predicted, masks = np.asarray(predicted, bool), np.asarray(masks, bool)
    if predicted.shape != masks.shape or masks.ndim != 4:
        raise ValueError(f"predicted of shape {predicted.shape} for masks of shape {masks.shape}")
    unknown = np.zeros(masks.shape[:2], bool) if known is None else ~np.asarray(known, bool)
    sums = [np.where(unknown, np.nan, x.sum((2, 3))) for x in (predicted & masks, predicted, masks)]
    return Counts(*sums)


def image_dice(counts: Counts) -> NDArray[np.float64]:
    """Dice of every image, (..., N, L): 1 where nothing is and nothing was predicted; nan where not known."""
    total = counts.predicted + counts.true
    return np.where(total == 0, 1.0, 2 * counts.overlap / np.where(total == 0, 1.0, total))


def segmentation_metrics(
    counts: Counts, patients: ArrayLike, *, labels: Sequence[str], resamples: int = 1000, seed: int = 0
) -> dict[str, Entry]:
    """Measure segmentation, with 95 % percentile intervals from a bootstrap over patients.

    `dice` is the published one: mean over all images of the Dice of the image, 1 where an image without the finding
    has nothing predicted (and 0 where it has). `dice_positive` is the mean over the images with the finding, `iou` the
    intersection of all images over their union, `false_positive_rate` the share of the images without the finding where
    anything is predicted (the less the better).

    Args:
        counts: of N images and L labels.
        patients: (N,) patient of every image.
        labels: L names.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Returns:
        Each metric as the mean over the labels where it is defined, and per label as `dice/<label>`; n counts the
        images behind it.

    Raises:
        ValueError: if shapes do not fit.
    """
    groups = Patients.of(patients)
    if counts.overlap.shape != counts.true.shape or counts.true.shape != (len(groups.index), len(labels)):
        raise ValueError(f"counts of shape {counts.overlap.shape} for {len(groups.index)} images, {len(labels)} labels")
    tops, bottoms = _fractions(counts)
    images = [counts.known, counts.known & (counts.true > 0), counts.known, counts.known & (counts.true == 0)]
    # per patient: what the metrics add up, and what they divide by
    sums = groups.sums(np.concatenate([*tops, *bottoms], axis=1))
    shape = (2, len(NAMES), len(labels))

    def measure(weights: NDArray) -> NDArray[np.float64]:
        return ratio(*(weights @ sums).T.reshape(*shape, -1))

    point = measure(np.ones((1, groups.count)))[..., 0]
    resampled = np.full((len(NAMES), len(labels), resamples), np.nan)
    for where, drawn in patient_counts(groups.count, resamples, seed):
        resampled[..., where] = measure(drawn)
    result = {}
    for m, name in enumerate(NAMES):
        result[name] = entry(float(known_mean(point[m])), known_mean(resampled[m]), images[m].any(1).sum())
        for i, label in enumerate(labels):
            result[f"{name}/{label}"] = entry(point[m, i], resampled[m, i], images[m][:, i].sum())
    return result


def trivial_segmentation(
    counts: Counts, patients: ArrayLike, *, labels: Sequence[str], resamples: int = 1000, seed: int = 0
) -> dict[str, Entry]:
    """The metrics of predicting nothing on the same images: what a method has to beat.

    Takes and gives what `segmentation_metrics` does; of the counts only the true pixels matter.
    """
    return segmentation_metrics(counts.nothing, patients, labels=labels, resamples=resamples, seed=seed)


def choose_thresholds(counts: Counts, name: str = "dice") -> NDArray[np.intp]:
    """Choose for each label, on validation, the threshold at which a metric is best.

    Args:
        counts: (T, N, L) overlap and predicted pixels at T ascending thresholds.
        name: dice, dice_positive or iou.

    Returns:
        (L,) index of the threshold; of equally good ones the middle one. A label for which the metric is not defined
        gets the middle threshold.

    Raises:
        ValueError: another metric.
    """
    if name not in CHOOSING:
        raise ValueError(f"a threshold is chosen by {', '.join(CHOOSING)}, not {name!r}")
    tops, bottoms = _fractions(counts)
    top, bottom = tops[NAMES.index(name)].sum(-2), bottoms[NAMES.index(name)].sum(-2)
    values = np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)
    best = values >= values.max(0) - 1e-12
    return np.array([np.flatnonzero(column)[column.sum() // 2] for column in best.T], np.intp)


def per_image(counts: Counts, labels: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Columns (N,) whose means are the metrics, for paired comparisons: `mean_dice`, `mean_dice/<label>` and so on.

    nan where an image does not count. For the mean over the labels an image weighs more for a label that few images
    have, so that the mean of the column is the mean over the labels. The pooled IoU is no mean over images; for it
    there are the pixels themselves, as `overlap_<label>`, `predicted_<label>` and `true_<label>`.
    """
    columns = {}
    for name, top, bottom in zip(NAMES, *_fractions(counts), strict=True):
        if name == "iou":
            continue
        counted = bottom > 0
        weight = counted.any(1).sum() / np.maximum(counted.sum(0), 1) / max(counted.any(0).sum(), 1)
        columns[f"mean_{name}"] = np.where(counted.any(1), (top * weight).sum(1), np.nan)
        for i, label in enumerate(labels):
            columns[f"mean_{name}/{label}"] = np.where(counted[:, i], top[:, i], np.nan)
    for name in ("overlap", "predicted", "true"):
        columns |= {f"{name}_{label}": getattr(counts, name)[:, i] for i, label in enumerate(labels)}
    return columns


def _fractions(counts: Counts) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Per image and label, what each metric adds up above and below; zeros where it does not count."""
    known = counts.known
    positive, negative = known & (counts.true > 0), known & (counts.true == 0)
    dice, union = image_dice(counts), counts.predicted + counts.true - counts.overlap
    tops = [(known, dice), (positive, dice), (known, counts.overlap), (negative, (counts.predicted > 0) * 1.0)]
    bottoms = [(known, known * 1.0), (positive, positive * 1.0), (known, union), (negative, negative * 1.0)]
    zeroed = [[np.where(where, value, 0.0) for where, value in pairs] for pairs in (tops, bottoms)]
    shape = counts.overlap.shape
    return [np.broadcast_to(x, shape) for x in zeroed[0]], [np.broadcast_to(x, shape) for x in zeroed[1]]
