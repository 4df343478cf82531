"""Where is it? Maps over the image, of a prompt or a class, against the boxes of radiologists; nothing learns boxes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from vlp_bench.errors import UserError
from vlp_bench.metrics.bootstrap import Entry
from vlp_bench.metrics.grounding import (
    box_mask,
    component_boxes,
    grounding_columns,
    grounding_entries,
    ious,
    random_point_columns,
    scaled,
)
from vlp_bench.tasks.base import Cell, Metrics, Outcome, Picture, Target, Task
from vlp_bench.tasks.class_maps import Mapper, seen
from vlp_bench.tasks.maps import KINDS, mapper
from vlp_bench.tasks.pictures import KEY, boxed, heated, side_by_side

#: Of maps that run from 0 to 1.
THRESHOLDS = np.arange(1, 20) / 20


class Items(NamedTuple):
    """N pairs of an image with a label that has boxes on it, ordered by image."""

    rows: np.ndarray
    labels: np.ndarray
    boxes: list[np.ndarray]

    def masks(self, places: np.ndarray, side: int, stored: int) -> np.ndarray:
        """The unions of the boxes at `places`, bool (n, side, side)."""
        return np.stack([box_mask(self.boxes[i] * side / stored, side, side) for i in places])


Maps = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Grounding(Task):
    """Pointing game, IoU above one threshold (of pixels, and of boxes around them) and contrast-to-noise ratio.

    The threshold is one for all images and labels, chosen on validation. The trivial answer is the better one of a
    random point (with all of the picture as the place) and of the mean of the label's boxes on validation, which are
    the same for every image.

    Args:
        primary: the metric that a table shows.
        map: `local`, scores of patches with a prompt; `attention` of [CLS], the same for every label; `cam`, class
            activation maps of a linear probe.
        prompt: of `local`, with {label}.
        labels: names of boxes; None takes the labels of the target that have boxes.

    Raises:
        UserError: another map.
    """

    def __init__(
        self, primary: str, map: str = "local", prompt: str = "{label} is observed", labels: Sequence[str] | None = None
    ) -> None:
        super().__init__(primary)
        if map not in KINDS:
            raise UserError(f"task.map={map}: expected one of {', '.join(KINDS)}.")
        self.map, self.prompt, self.labels = map, prompt, labels
        self.learns = map == "cam"

    def run(self, cell: Cell) -> Outcome:
        """Choose the threshold on validation, measure on the split.

        Raises:
            UserError: a target without boxes, encoders without such maps.
        """
        labels = boxed_labels(cell.target, cell.split, self.labels)
        val, test = (boxed_items(cell.target, split, labels) for split in ("val", cell.split))
        make, facts, asked = mapper(cell, self.map, self.prompt, labels)
        patients = cell.target.patients(test.rows)
        usual = _usual(cell, val, len(labels))
        found = {}
        for name, maps in {
            "map": lambda items: _maps(cell, items, make, asked),
            "usual place": lambda items: _same(cell, items, usual),
        }.items():
            threshold = _threshold(maps(val))
            parts = [grounding_columns(m, inside, threshold) for _, m, inside in maps(test)]
            found[name] = threshold, {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        common: dict[str, Any] = {"patients": patients, "resamples": cell.resamples}
        columns = found["map"][1]
        floors = {
            "random point": grounding_entries(random_point_columns(_shares(cell, test)), test.labels, labels, **common),
            "usual place": grounding_entries(found["usual place"][1], test.labels, labels, **common),
        }
        self.shown = test, labels, make, asked, found["map"][0]
        facts |= {
            "map": self.map,
            "threshold": found["map"][0],
            "images": len(np.unique(test.rows)),
            "items": len(test.rows),
            "floors": {name: {k: e["value"] for k, e in floor.items()} for name, floor in floors.items()},
        }
        return Outcome(
            grounding_entries(columns, test.labels, labels, **common),
            _better(*floors.values()),
            _table(cell, test, labels).assign(**{f"mean_{k}": v for k, v in columns.items()}),
            labels,
            facts,
        )

    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> list[Picture]:
        """The first test images of each label in turn, with true and predicted boxes, beside the map."""
        test, labels, make, asked, threshold = self.shown
        order = pd.Series(test.labels).groupby(test.labels).cumcount().argsort(kind="stable").to_numpy()
        chosen = np.sort(order[: max(count, 0)])
        if len(chosen) == 0:
            return []
        few = Items(test.rows[chosen], test.labels[chosen], [test.boxes[i] for i in chosen])
        iou = outcome.predictions["mean_box_iou"].to_numpy()[chosen]
        side, stored = cell.image_size, cell.target.store.size
        group = f"{cell.encoders.name}: {self.map} maps; {KEY}"
        drawn = []
        for places, maps, _ in _maps(cell, few, make, asked):
            for place, grid in zip(places, scaled(maps), strict=True):
                gray = cell.target.store.pixels(few.rows[[place]])[0]
                found = component_boxes(grid > threshold) * stored / side
                image = side_by_side(boxed(gray, few.boxes[place], found), heated(gray, grid))
                drawn.append(Picture(image, f"{labels[few.labels[place]]}: IoU of the boxes {iou[place]:.2f}", group))
        return drawn


def boxed_labels(target: Target, split: str, labels: Sequence[str] | None) -> list[str]:
    """The labels that have boxes in the split.

    Raises:
        UserError: one that was asked for has none, or there are none at all.
    """
    store = target.store
    here = np.flatnonzero(store.in_split(split) & target.viewed)
    counts = pd.Series([b["label"] for row in here for b in store.boxes(int(row))], dtype=object).value_counts()
    found = [label for label in labels or target.labels if label in counts.index]
    if not found or (labels and len(found) < len(labels)):
        lacking = ", ".join(label for label in labels or target.labels if label not in found)
        there = ", ".join(f"{name} ({n})" for name, n in counts.items()) or "none"
        raise UserError(
            f"target={target.name} has no boxes of {lacking} on its {split} images. Boxes there: {there}. "
            "Choose among them with task.labels=[...]."
        )
    return found


def boxed_items(target: Target, split: str, labels: Sequence[str]) -> Items:
    """Images of a split with the boxes of each label on them, in stored pixels.

    Raises:
        UserError: there is none.
    """
    store = target.store
    rows, numbers, boxes = [], [], []
    for row in np.flatnonzero(store.in_split(split) & target.viewed):
        there = store.boxes(int(row))
        for number, label in enumerate(labels):
            mine = [b["xyxy"] for b in there if b["label"] == label]
            if mine:
                rows.append(row)
                numbers.append(number)
                boxes.append(np.array(mine, np.float64))
    if not rows:
        raise UserError(f"target={target.name} has no {split} image with boxes of {', '.join(labels)}.")
    return Items(np.array(rows), np.array(numbers), boxes)


Batches = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]


def _maps(cell: Cell, items: Items, make: Mapper, asked: dict[str, bool]) -> Batches:
    """Places of items, their maps and masks, at the resolution of the network's input."""
    side = cell.image_size
    rows = np.unique(items.rows)
    for part, features in seen(cell, rows, **asked):
        places = np.flatnonzero(np.isin(items.rows, rows[part]))
        image = np.searchsorted(rows[part], items.rows[places])
        small = make(features, torch.from_numpy(image), torch.from_numpy(items.labels[places])).float().cpu()
        maps = F.interpolate(small[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
        yield places, maps.numpy(), items.masks(places, side, cell.target.store.size)


def _same(cell: Cell, items: Items, usual: np.ndarray) -> Batches:
    for places in cell.parts(np.arange(len(items.rows))):
        yield places, usual[items.labels[places]], items.masks(places, cell.image_size, cell.target.store.size)


def _usual(cell: Cell, items: Items, labels: int) -> np.ndarray:
    """How often each pixel lies in a box of each label, (L, S, S); without a box of it, in one of any label."""
    side = cell.image_size
    sums, counts = np.zeros((labels, side, side)), np.bincount(items.labels, minlength=labels)
    for place, label in enumerate(items.labels):
        sums[label] += items.masks(np.array([place]), side, cell.target.store.size)[0]
    sums[counts == 0] = sums.sum(0)
    return sums / np.where(counts > 0, counts, counts.sum())[:, None, None]


def _threshold(batches: Batches) -> float:
    """The one whose mean IoU is best."""
    found = np.concatenate([ious(scaled(maps), inside, THRESHOLDS) for _, maps, inside in batches])
    return float(THRESHOLDS[found.mean(0).argmax()])


def _shares(cell: Cell, items: Items) -> np.ndarray:
    """Of each picture, without the black bars beside it, the share that its boxes cover."""
    side = cell.image_size
    covered = [items.masks(np.array([i]), side, cell.target.store.size).mean() for i in range(len(items.rows))]
    sides = cell.target.store.images[["width", "height"]].to_numpy(np.float64)[items.rows]
    return np.minimum(np.array(covered) / (sides.min(1) / sides.max(1)), 1)


def _better(one: Metrics, other: Metrics) -> Metrics:
    def value(entry: Entry) -> float:
        return -np.inf if entry["value"] is None else entry["value"]

    return {name: max(one[name], other[name], key=value) for name in one}


def _table(cell: Cell, items: Items, labels: Sequence[str]) -> pd.DataFrame:
    table = cell.items(items.rows).assign(label=[labels[i] for i in items.labels])
    return table.assign(item_id=table["item_id"] + "/" + table["label"])
