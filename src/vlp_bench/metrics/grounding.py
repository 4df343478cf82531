"""Does a map over an image point at what boxes say is there?

A map has a value for each pixel, larger where the finding is thought to be; the truth is the union of the boxes of one
finding on one image. Pixels count as inside by their centre.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vlp_bench.metrics.bootstrap import Entry, entry, known_mean, mean_entries, over_patients, ratio

#: Overlaps from which a predicted place counts as right (Wang et al. 2017, ChestX-ray8, table 4, has these and others).
OVERLAPS = (0.1, 0.3, 0.5)
MACRO = "macro"


def box_mask(boxes: ArrayLike, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """The union of boxes as a mask.

    Args:
        boxes: (K, 4) left, top, right, bottom in pixels; K may be 0, and boxes may leave the image.
        height: H.
        width: W.

    >>> box_mask([[1, 0, 3, 1.4]], 2, 4).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    left, top, right, bottom = np.asarray(boxes, np.float64).reshape(-1, 4).T[..., None]
    columns, rows = (left <= x) & (x < right), (top <= y) & (y < bottom)
    return (rows[:, :, None] & columns[:, None]).any(0)


def pointing(maps: Float[np.ndarray, "N H W"], inside: Bool[np.ndarray, "N H W"]) -> Float[np.ndarray, " N"]:
    """The pointing game (Zhang et al. 2016, without their margin): is the maximum inside? Of several, which share?"""
    top = maps == maps.max((1, 2), keepdims=True)
    return (top & inside).sum((1, 2)) / top.sum((1, 2))


def scaled(maps: Float[np.ndarray, "N H W"]) -> Float[np.ndarray, "N H W"]:
    """Each map from 0 to 1; one that is the same everywhere is 0."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.where(high > low, high - low, 1)


def iou(found: Bool[np.ndarray, "N H W"], inside: Bool[np.ndarray, "N H W"]) -> Float[np.ndarray, " N"]:
    """Intersection over union of two masks; 0 where both are empty."""
    union = (found | inside).sum((1, 2))
    return (found & inside).sum((1, 2)) / np.maximum(union, 1)


def ious(
    maps: Float[np.ndarray, "N H W"], inside: Bool[np.ndarray, "N H W"], thresholds: ArrayLike
) -> Float[np.ndarray, "N T"]:
    """IoU of what lies above each threshold with the truth, for choosing one."""
    return np.stack([iou(maps > t, inside) for t in np.asarray(thresholds)], axis=1)


def contrast_to_noise(maps: Float[np.ndarray, "N H W"], inside: Bool[np.ndarray, "N H W"]) -> Float[np.ndarray, " N"]:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside); nan where either side is empty.

    As in Boecking et al. 2022 (BioViL) but with its sign: a map that avoids the boxes is below 0, a flat one is 0.
    """
    moments = []
    for where in (inside, ~inside):
        count = where.sum((1, 2))
        safe = np.maximum(count, 1)
        mean = np.where(where, maps, 0.0).sum((1, 2)) / safe
        variance = np.where(where, (maps - mean[:, None, None]) ** 2, 0.0).sum((1, 2)) / safe
        moments.append((count, mean, variance))
    (inner, mean_in, var_in), (outer, mean_out, var_out) = moments
    noise = np.sqrt(var_in + var_out)
    ratio = np.divide(mean_in - mean_out, noise, out=np.zeros_like(noise), where=noise > 0)
    return np.where((inner > 0) & (outer > 0), ratio, np.nan)


def component_boxes(found: Bool[np.ndarray, "H W"]) -> NDArray[np.int64]:
    """The bounding box (K, 4) of each connected component (8 neighbours), the largest component first."""
    numbered, _ = ndimage.label(found, np.ones((3, 3)))
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(numbered)]
    area = np.bincount(numbered.ravel())[1:]
    return np.array(boxes, np.int64).reshape(-1, 4)[np.argsort(-area, kind="stable")]


def grounding_columns(
    maps: Float[np.ndarray, "N H W"], inside: Bool[np.ndarray, "N H W"], threshold: float
) -> dict[str, Float[np.ndarray, " N"]]:
    """What is measured of each item.

    Args:
        maps: of N pairs of an image and a finding, of any range.
        inside: the union of the true boxes.
        threshold: of the maps `scaled`.

    Returns:
        `pointing`, `cnr`, `iou` of the pixels above the threshold, `box_iou` of the boxes around their connected
        components, all together, and `box_iou@X`: whether that is X or more.
    """
    height, width = maps.shape[1:]
    found = scaled(maps) > threshold
    boxes = np.stack([box_mask(component_boxes(mask), height, width) for mask in found])
    return {
        "pointing": pointing(maps, inside),
        "iou": iou(found, inside),
        "cnr": contrast_to_noise(maps, inside),
        **with_shares(iou(boxes, inside)),
    }


def with_shares(box_iou: Float[np.ndarray, " N"]) -> dict[str, Float[np.ndarray, " N"]]:
    """`box_iou`, and whether it is as much as each of OVERLAPS."""
    return {"box_iou": box_iou, **{f"box_iou@{x}": (box_iou >= x).astype(float) for x in OVERLAPS}}


def random_point_columns(share: Float[np.ndarray, " N"]) -> dict[str, Float[np.ndarray, " N"]]:
    """What a random point, and the whole picture as the place, would reach on average.

    Args:
        share: of each picture that its boxes cover.
    """
    return {"pointing": share, "iou": share, "cnr": np.zeros_like(share), **with_shares(share)}


def grounding_entries(
    columns: Mapping[str, ArrayLike],
    item_labels: ArrayLike,
    labels: Sequence[str],
    patients: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Entry]:
    """Metrics over all items, of each label (`name/label`), and as the mean of the labels (`name/macro`).

    Args:
        columns: name to its (N,) values.
        item_labels: (N,) which of `labels` an item is of, int.
        labels: L names.
        patients: (N,) patient of every item.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Raises:
        ValueError: lengths that differ.
    """
    item_labels = np.asarray(item_labels)
    split = {
        f"{name}/{label}": np.where(item_labels == i, np.asarray(values, np.float64), np.nan)
        for name, values in columns.items()
        for i, label in enumerate(labels)
    }
    found = mean_entries({**columns, **split}, patients, resamples, seed)
    for name in columns:
        parts = np.stack([split[f"{name}/{label}"] for label in labels], axis=1)
        known = ~np.isnan(parts)
        rows = np.concatenate([np.where(known, parts, 0.0), known], axis=1)
        point, resampled = over_patients(rows, patients, _macro, resamples, seed)
        found[f"{name}/{MACRO}"] = entry(float(point), resampled, int(known.sum()))
    return found


def _macro(sums: NDArray) -> NDArray:
    """Mean over the labels that have an item, from sums and numbers of items of each; nan where none has."""
    return known_mean(np.moveaxis(ratio(*np.split(sums, 2, axis=-1)), -1, 0))
