"""Mean average precision of detection, with patient-level bootstrap intervals.

pycocotools matches boxes to truth, once per label and image; average precision is then ours, so that a resample costs
a weighted cumulative sum and no second matching. With every image counted once it is pycocotools' own number. As
there, detections of equal score stand in the order of their images.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vlp_bench.metrics.bootstrap import Entry, Patients, entry, known_mean, patient_counts, ratio
from vlp_bench.metrics.paired import Statistic

#: Overlaps at which boxes are matched: .40 and .45, then those of COCO.
IOUS = np.concatenate([[0.4, 0.45], np.linspace(0.5, 0.95, 10)])
#: Which of them each metric averages over: COCO's two, and MGCA's and LoVT's .40:.05:.75.
AVERAGED = {"map": slice(2, 12), "ap50": slice(2, 3), "map_40_75": slice(0, 8)}
#: As in COCO: recalls at which precision is read, and boxes of an image that are looked at.
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100
FALSE_POSITIVES = "false_positives"
SKIPPING = "map_40_75_skipping"


@dataclass(frozen=True)
class Boxes:
    """Boxes of several images.

    Attributes:
        image: (M,) number of the image.
        label: (M,) number of the label.
        xyxy: (M, 4) left, top, right, bottom in pixels.
        score: (M,) of detections; truth has none.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    xyxy: NDArray[np.float64]
    score: NDArray[np.float64] | None = None

    @classmethod
    def none(cls) -> "Boxes":
        """No box at all."""
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, np.zeros((0, 4)), np.zeros(0))

    def of(self, chosen: NDArray) -> "Boxes":
        """The boxes at the indices, or where the mask is true."""
        score = None if self.score is None else self.score[chosen]
        return Boxes(self.image[chosen], self.label[chosen], self.xyxy[chosen], score)


@dataclass(frozen=True)
class Matched:
    """What matching left of one label.

    Attributes:
        image: (D,) image of every detection, by descending score.
        score: (D,) its score.
        hit: (T, D) whether it found a box of the truth, at each of IOUS.
        truths: (N,) boxes of the truth per image.
        known: (N,) whether the boxes of the image are known.
    """

    image: NDArray[np.int64]
    score: NDArray[np.float64]
    hit: NDArray[np.bool_]
    truths: NDArray[np.int64]
    known: NDArray[np.bool_]

    def within(self, images: NDArray[np.bool_]) -> "Matched":
        """As if there were only some of the images."""
        kept = images[self.image]
        truths = np.where(images, self.truths, 0)
        return Matched(self.image[kept], self.score[kept], self.hit[:, kept], truths, self.known & images)


Matches = dict[str, Matched]


def match(truth: Boxes, found: Boxes, images: int, labels: Sequence[str], known: ArrayLike | None = None) -> Matches:
    """Match detections to truth as COCO does: by descending score, each to the best box that is still free.

    Args:
        truth: boxes of the truth.
        found: detections; of a label and image the best 100 count.
        images: how many images there are, N.
        labels: L names.
        known: (N, L) whether the boxes are known; where they are not, neither truth nor detections count.

    Raises:
        ValueError: detections without a score, or a box without extent.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if found.score is None or not np.isfinite(found.score).all():
        raise ValueError("detections need a finite score")
    for boxes in (truth, found):
        if not (boxes.xyxy[:, 2:] > boxes.xyxy[:, :2]).all():
            raise ValueError("a box needs a right edge right of the left one, and a bottom below its top")
    seen = np.ones((images, len(labels)), bool) if known is None else np.asarray(known, bool)
    truth, found = (b.of(seen[b.image, b.label]) for b in (truth, found))
    with redirect_stdout(io.StringIO()):
        sides = []
        for boxes in (truth, found):
            side = COCO()
            side.dataset = _coco(boxes, images, len(labels))
            side.createIndex()
            sides.append(side)
        judge = COCOeval(*sides, "bbox")
        judge.params.iouThrs = IOUS
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [MOST]
        judge.evaluate()
    of_label = np.array(judge.evalImgs, object).reshape(len(labels), images)
    return {
        name: _matched([e for e in of_label[i] if e], truth.of(truth.label == i), images, seen[:, i])
        for i, name in enumerate(labels)
    }


def _coco(boxes: Boxes, images: int, labels: int) -> dict[str, Any]:
    """COCO's annotations; ids begin with 1, as 0 means no match there."""
    sizes = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]
    scores = np.zeros(len(boxes.image)) if boxes.score is None else boxes.score
    xywh = np.concatenate([boxes.xyxy[:, :2], sizes], 1).tolist()
    numbers = (boxes.image, boxes.label, sizes.prod(1), scores)
    columns = zip(*(x.tolist() for x in numbers), xywh, strict=True)
    return {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": i} for i in range(labels)],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": c, "bbox": b, "area": a, "score": s, "iscrowd": 0}
            for n, (i, c, a, s, b) in enumerate(columns)
        ],
    }


def _matched(found: list[dict[str, Any]], truth: Boxes, images: int, known: NDArray[np.bool_]) -> Matched:
    score = np.concatenate([np.zeros(0), *(np.asarray(e["dtScores"], np.float64) for e in found)])
    image = np.concatenate([np.zeros(0, np.int64), *(np.full(len(e["dtScores"]), e["image_id"]) for e in found)])
    hit = np.concatenate([np.zeros((len(IOUS), 0), bool), *(e["dtMatches"] > 0 for e in found)], axis=1)
    order = np.argsort(-score, kind="stable")
    truths = np.bincount(truth.image, minlength=images)
    return Matched(image[order], score[order], hit[:, order], truths, known)


def average_precision(matched: Matched, weights: NDArray) -> NDArray[np.float64]:
    """Average precision under R weightings of the images.

    Args:
        matched: of one label.
        weights: (R, N) whole numbers, how often each image counts.

    Returns:
        (T, R) at each of IOUS: mean over 101 recalls of the best precision at that recall or a higher one (COCO); nan
        where no box of the truth is drawn.
    """
    seen = np.cumsum(weights[:, matched.image], axis=1, dtype=np.int64)
    truths = weights.astype(np.int64) @ matched.truths
    needed = _needed(truths)
    return np.stack([_read(seen, weights, matched, hit, needed, truths) for hit in matched.hit])


def _needed(truths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(R, 101) least number of hits that reaches each recall, comparing quotients as pycocotools does."""
    many = np.maximum(truths, 1)[:, None]
    count = np.ceil(RECALLS * many).astype(np.int64)
    count -= (count > 0) & ((count - 1) / many >= RECALLS)
    return count + (count / many < RECALLS)


def _read(
    seen: NDArray[np.int64],
    weights: NDArray,
    matched: Matched,
    hit: NDArray[np.bool_],
    needed: NDArray[np.int64],
    truths: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(R,) average precision at one overlap. Only hits raise the recall, so only there precision has to be known."""
    at = np.flatnonzero(hit)
    hits = np.cumsum(weights[:, matched.image[at]], axis=1, dtype=np.int64)
    precision = hits / (seen[:, at] + np.spacing(1))
    best = np.zeros((len(seen), len(at) + 1))  # the last column: a recall that is never reached
    best[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # one search over all rows: each is lifted above the one before it
    lift = np.arange(len(seen))[:, None] * (2 * truths.max(initial=0) + 2)
    found = np.searchsorted((hits + lift).ravel(), (needed + lift).ravel(), side="left").reshape(needed.shape)
    place = found - np.arange(len(seen))[:, None] * len(at)
    values = np.take_along_axis(best, place, axis=1).mean(1)
    return np.where(truths > 0, values, np.nan)


def false_positives(matched: Matched, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Detections per image that reach the threshold, (N,), and whether it is known to lack the finding, (N,)."""
    found = np.bincount(matched.image[matched.score >= threshold], minlength=len(matched.truths)).astype(np.float64)
    return found, matched.known & (matched.truths == 0)


def choose_thresholds(matches: Matches) -> dict[str, float]:
    """Choose per label, on validation, the score with the highest F1 of boxes at an overlap of .5.

    Of equally good scores the highest; a label without any hit gets infinity: nothing is called.
    """
    chosen = {}
    for label, matched in matches.items():
        hits = np.cumsum(matched.hit[AVERAGED["ap50"].start])
        if hits.size == 0 or hits[-1] == 0:
            chosen[label] = float("inf")
            continue
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + matched.truths.sum())
        f1[:-1][matched.score[:-1] == matched.score[1:]] = -1.0  # a threshold cannot part boxes of equal score
        chosen[label] = float(matched.score[np.argmax(f1)])
    return chosen


def detection_metrics(
    matches: Matches,
    patients: ArrayLike,
    thresholds: Mapping[str, float] | None = None,
    *,
    skipping: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Entry]:
    """Measure detection, with 95 % percentile intervals from a bootstrap over patients.

    `map` is COCO's (overlaps .50:.05:.95), `ap50` that at .50, `map_40_75` the mean over .40:.05:.75 (MGCA, LoVT).
    `false_positives` is the mean number of boxes that reach the threshold in an image without the finding (the less
    the better). A label without any box of the truth has no average precision: value None, left out of the means.

    Args:
        matches: by label, of N images.
        patients: (N,) patient of every image.
        thresholds: by label; without them no `false_positives`.
        skipping: also give `map_40_75_skipping`, as MGCA's code has it: images without any detection and images
            without any truth are left out, so that false alarms on healthy chests and images where nothing was found
            cost nothing.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Returns:
        Each metric as the mean over the labels where it is defined, and per label as `map/<label>`; n counts the
        images whose boxes are known.

    Raises:
        ValueError: if `patients` does not fit the matches.
    """
    groups = Patients.of(patients)
    if any(len(m.truths) != len(groups.index) for m in matches.values()):
        raise ValueError(f"{len(groups.index)} patients for matches of another number of images")
    every = list(matches.values())
    kept = [m.within(both_sides(matches)) for m in every] if skipping else []
    alarms = [] if thresholds is None else [false_positives(m, thresholds[n]) for n, m in matches.items()]
    names = [*AVERAGED, *([SKIPPING] if skipping else []), *([FALSE_POSITIVES] if alarms else [])]

    def measure(weights: NDArray) -> NDArray[np.float64]:
        values = np.full((len(names), len(every), len(weights)), np.nan)
        for i, matched in enumerate(every):
            precision = average_precision(matched, weights)
            for m, over in enumerate(AVERAGED.values()):
                values[m, i] = precision[over].mean(0)
        for i, matched in enumerate(kept):
            values[names.index(SKIPPING), i] = average_precision(matched, weights)[AVERAGED["map_40_75"]].mean(0)
        for i, (count, negative) in enumerate(alarms):
            drawn = weights @ negative.astype(np.float64)
            total = weights @ np.where(negative, count, 0.0)
            values[-1, i] = ratio(total, drawn)
        return values

    point = measure(np.ones((1, len(groups.index)), np.int64))[..., 0]
    resampled = np.full((len(names), len(every), resamples), np.nan)
    width = max([len(groups.index), *(len(m.image) for m in every)])
    for where, drawn in patient_counts(groups.count, resamples, seed, width=width):
        resampled[..., where] = measure(drawn[:, groups.index])
    result = {}
    for m, name in enumerate(names):
        counted = [negative for _, negative in alarms] if name == FALSE_POSITIVES else [x.known for x in every]
        result[name] = entry(float(known_mean(point[m])), known_mean(resampled[m]), np.any(counted, axis=0).sum())
        for i, label in enumerate(matches):
            result[f"{name}/{label}"] = entry(point[m, i], resampled[m, i], counted[i].sum())
    return result


def precision_statistic(matches: Matches, patients: Patients, name: str = "map") -> Statistic:
    """Average precision over labels, as a function of how often each patient counts, for paired comparisons.

    Args:
        matches: by label, such as `matches_from_table` reads them.
        patients: the patients of the N images.
        name: one of AVERAGED.

    Returns:
        A function of counts (r, P) int32 giving (r,) float64, nan where no box of the truth is drawn.
    """

    def measure(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        weights = counts[:, patients.index]
        values = [average_precision(matched, weights)[AVERAGED[name]].mean(0) for matched in matches.values()]
        return known_mean(np.stack(values))

    return measure


def both_sides(matches: Matches) -> NDArray[np.bool_]:
    """(N,) images with a detection and a box of the truth, of whichever labels."""
    images = len(next(iter(matches.values())).truths)
    found, truths = np.zeros(images, bool), np.zeros(images, bool)
    for matched in matches.values():
        found[matched.image] = True
        truths |= matched.truths > 0
    return found & truths


def mean_boxes(truth: Boxes, images: int, labels: int) -> Boxes:
    """The answer that looks at no image: in each of N images one box a label, of the mean place and size, score 1.

    Args:
        truth: boxes of the training images.
        images: N.
        labels: L; a label without any box gets none.
    """
    means = [(i, truth.xyxy[truth.label == i].mean(0)) for i in range(labels) if (truth.label == i).any()]
    if not means:
        return Boxes.none()
    label = np.tile([i for i, _ in means], images)
    image = np.repeat(np.arange(images), len(means))
    return Boxes(image, label, np.tile(np.stack([box for _, box in means]), (images, 1)), np.ones(len(label)))


def trivial_detection(
    train: Boxes,
    truth: Boxes,
    known: ArrayLike,
    patients: ArrayLike,
    *,
    labels: Sequence[str],
    by: str = "map",
    skipping: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Entry], str]:
    """The better of two answers that look at no image: no box at all, or the mean box of training in every image.

    Args:
        train: boxes of the training images.
        truth: boxes of the N images.
        known: (N, L) whether they are known.
        patients: (N,) patient of every image.
        labels: L names.
        by: the metric by which one is better; on a tie it is nothing.
        skipping: as in `detection_metrics`.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        Its metrics, and which it is: `nothing` or `mean box`.
    """
    images = len(np.asarray(known))
    answers = {"nothing": Boxes.none(), "mean box": mean_boxes(train, images, len(labels))}
    thresholds = dict.fromkeys(labels, 1.0)
    best: tuple[dict[str, Entry], str] | None = None
    for name, found in answers.items():
        metrics = detection_metrics(
            match(truth, found, images, labels, known),
            patients,
            thresholds,
            skipping=skipping,
            resamples=resamples,
            seed=seed,
        )
        if best is None or (metrics[by]["value"] or 0.0) > (best[0][by]["value"] or 0.0):
            best = (metrics, name)
    assert best is not None
    return best


def matches_to_table(matches: Matches) -> pd.DataFrame:
    """One row an image, from which the matches can be read back.

    `detections_<label>` lists the scores by descending score, `hits_<label>` the overlaps at which each was a hit (bit
    t for IOUS[t]), `truths_<label>` counts the boxes of the truth, -1 where they are not known.
    """
    columns: dict[str, Any] = {}
    for label, matched in matches.items():
        bits = (matched.hit * (1 << np.arange(len(IOUS)))[:, None]).sum(0)
        order = np.argsort(matched.image, kind="stable")
        cuts = np.cumsum(np.bincount(matched.image, minlength=len(matched.truths)))[:-1]
        columns[f"detections_{label}"] = [x.tolist() for x in np.split(matched.score[order], cuts)]
        columns[f"hits_{label}"] = [x.tolist() for x in np.split(bits[order], cuts)]
        columns[f"truths_{label}"] = np.where(matched.known, matched.truths, -1)
    return pd.DataFrame(columns)


def matches_from_table(table: pd.DataFrame) -> Matches:
    """The matches that `matches_to_table` wrote, also after a row was left out or moved.

    Raises:
        ValueError: the table has no such columns.
    """
    labels = [c.removeprefix("truths_") for c in table.columns if c.startswith("truths_")]
    if not labels or any(f"{k}_{n}" not in table for n in labels for k in ("detections", "hits")):
        raise ValueError("no columns detections_<label>, hits_<label> and truths_<label>")
    matches = {}
    for label in labels:
        scores, bits = ([np.asarray(x) for x in table[f"{kind}_{label}"]] for kind in ("detections", "hits"))
        score = np.concatenate([np.zeros(0), *scores])
        image = np.repeat(np.arange(len(table)), [len(x) for x in scores])
        hit = np.concatenate([np.zeros(0, np.int64), *(x.astype(np.int64) for x in bits)])
        order = np.argsort(-score, kind="stable")
        truths = table[f"truths_{label}"].to_numpy()
        flags = (hit[order] >> np.arange(len(IOUS))[:, None]) & 1
        matches[label] = Matched(image[order], score[order], flags > 0, np.maximum(truths, 0), truths >= 0)
    return matches
