"""Boxes around findings: YOLOv3 or Faster R-CNN on the pyramid of a backbone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlp_bench.data.datamodule import BatchKey
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.metrics.detection import (
    AVERAGED,
    SKIPPING,
    Boxes,
    choose_thresholds,
    detection_metrics,
    match,
    matches_to_table,
    trivial_detection,
)
from vlp_bench.tasks.annotations import Annotations, shown
from vlp_bench.tasks.base import Cell, Outcome, Picture, Task
from vlp_bench.tasks.detection_heads import DetectionHead, FasterRCNNHead, YoloHead
from vlp_bench.tasks.pictures import KEY, boxed, show_first
from vlp_bench.tasks.training import Adapted, TargetImages, fit, predict
from vlp_bench.types import LabelledBatch

HEADS = ("yolo", "faster_rcnn")
#: From which score on MGCA's code looks at a box.
PUBLISHED_MIN_SCORE = 0.5
Found = tuple[Tensor, Tensor]


class Detection(Task):
    """Mean average precision of boxes, and false alarms on images without the finding.

    Args:
        primary: the metric that a table shows.
        head: yolo (MGCA) or faster_rcnn (PRIOR).
        labels: names of boxes; None takes the labels of the target that have any in training.
        width: factor on the channels of the head.
        min_score: boxes below it are never looked at.
        published: with yolo, as MGCA's code has it: see `YoloHead`; only boxes of a score of .5 or more, and also
            `map_40_75_skipping`, which leaves out images without any box found and images without any of the truth.

    Raises:
        UserError: an option that there is not.
    """

    def __init__(
        self,
        primary: str,
        head: str = "yolo",
        labels: Sequence[str] | None = None,
        width: float = 1.0,
        min_score: float = 0.05,
        published: bool = False,
    ) -> None:
        super().__init__(primary)
        if head not in HEADS:
            raise UserError(f"task.head={head}: expected {' or '.join(HEADS)}.")
        if published and head != "yolo":
            raise UserError("task.published=true is a way of YOLO: choose task.head=yolo.")
        if primary not in AVERAGED and (primary, published) != (SKIPPING, True):
            also = f", or {SKIPPING} with task.published=true"
            raise UserError(f"task.primary={primary}: expected one of {', '.join(AVERAGED)}{also}.")
        if not width > 0 or not 0 <= min_score < 1:
            raise UserError(f"task.width={width}, task.min_score={min_score}: expected > 0, and from 0 to below 1.")
        self.head, self.labels, self.width, self.published = head, labels, width, published
        self.min_score = PUBLISHED_MIN_SCORE if published else min_score

    def run(self, cell: Cell) -> Outcome:
        """Train, choose, measure.

        Raises:
            UserError: labels without boxes, boxes outside their pictures, a split without images, nothing measurable.
        """
        truth = Annotations(cell.target, None, self.labels)
        # the loss takes what is not annotated for background: all labels of the image have to be known
        train, val = cell.train_rows(truth.rows("train", every=True)), truth.rows("val", every=True)
        test = truth.rows(cell.split)
        truth.require_positives(test, cell.split)
        vision = cell.encoders.vision
        head = self._head(vision, len(truth.labels))
        model = Detector(vision, head, truth.labels, self.primary, self.published, cell.adaptation)

        def data(rows: np.ndarray, augment: str | None = None) -> TargetImages:
            return TargetImages(cell.target, rows, cell.image_size, cell.seed, shown(augment), boxes=truth.boxes)

        facts = fit(cell, model, data(train, cell.adaptation["augment"]), data(val))
        thresholds = choose_thresholds(match(*_boxes(predict(cell, model, data(val))), len(val), truth.labels))
        true, found = _boxes(predict(cell, model, data(test)))
        known, patients = truth.known[test], cell.target.patients(test)
        matches = match(true, found, len(test), truth.labels, known)
        common: dict[str, Any] = {"skipping": self.published, "resamples": cell.resamples}
        trivial, answer = trivial_detection(
            _scaled(truth.boxes_of(train), cell.image_size / cell.target.store.size),
            true, known, patients, labels=truth.labels, by=self.primary, **common,
        )  # fmt: skip
        self._made = (model, truth, data(test), thresholds)
        return Outcome(
            detection_metrics(matches, patients, thresholds, **common),
            trivial,
            pd.concat([cell.items(test), matches_to_table(matches)], axis=1),
            truth.labels,
            facts
            | truth.facts(train)
            | {"thresholds": {k: v if np.isfinite(v) else None for k, v in thresholds.items()}, "trivial": answer},
        )

    def _head(self, vision: VisionBackbone, labels: int) -> DetectionHead:
        size, channels = vision.spec.image_size, vision.spec.pyramid_channels
        if self.head == "yolo":
            return YoloHead(channels, labels, size, self.width, self.min_score, self.published)
        return FasterRCNNHead(channels, labels, size, self.width, self.min_score)

    @torch.inference_mode()
    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> Iterable[Picture]:
        """Boxes that were found, above the thresholds, and those of the truth; images with a finding first."""
        model, truth, data, thresholds = self._made
        chosen = show_first(truth.positive[data.rows].any(1), count)
        if not len(chosen):
            return
        batch = data[BatchKey(0, 0, chosen)]
        limits = np.array([thresholds[name] for name in truth.labels])
        for place, image, found, true in zip(
            chosen, batch.image[:, 0].numpy(), *(x.numpy() for x in model.eval().predict(batch)), strict=True
        ):
            present = ", ".join(np.array(truth.labels)[truth.positive[data.rows[place]]]) or "nothing"
            found = found[found[:, 5] >= 0]
            called = found[found[:, 4] >= limits[found[:, 5].astype(int)]]
            drawn = boxed(image, true[true[:, 4] >= 0, :4], called[:, :4])
            group = f"{cell.encoders.name}: {KEY}"
            yield Picture(drawn, f"truth: {present}; {len(called)} found", group)


class Detector(Adapted):
    """A backbone with a head that finds boxes.

    Args:
        backbone: the image encoder; reads the image at its own size, not enlarged.
        head: on its pyramid.
        labels: L names.
        primary: the metric that chooses the epoch, where the score does.
        published: whether that is the published one.
        adaptation: see Adapted.
    """

    def __init__(
        self,
        backbone: VisionBackbone,
        head: DetectionHead,
        labels: Sequence[str],
        primary: str,
        published: bool,
        adaptation: Mapping[str, Any],
    ) -> None:
        backbone.upsample_to = None
        super().__init__({"vision": backbone}, head, adaptation)
        self.labels, self.chosen_by, self.published = labels, SKIPPING if published else primary, published

    def _maps(self, batch: LabelledBatch) -> tuple[Tensor, ...]:
        return self.parts["vision"](batch.image, pyramid=True).pyramid

    def loss(self, batch: LabelledBatch) -> Float[Tensor, ""]:
        """The head's loss."""
        assert batch.boxes is not None
        return self.head.loss(self._maps(batch), batch.boxes)  # type: ignore[operator]

    def predict(self, batch: LabelledBatch) -> Found:
        """What was found (B, 100, 6), and the truth (B, N, 5)."""
        assert batch.boxes is not None
        return self.head.detect(self._maps(batch)), batch.boxes  # type: ignore[operator]

    def score(self, predictions: list[Found]) -> float:
        """The mean average precision of validation; 0 where there is no box."""
        images = sum(len(found) for found, _ in predictions)
        matches = match(*_boxes(predictions), images, self.labels)
        metrics = detection_metrics(matches, np.arange(images), skipping=self.published, resamples=0)
        return metrics[self.chosen_by]["value"] or 0.0


def _boxes(predictions: list[Found]) -> tuple[Boxes, Boxes]:
    """The truth and what was found, in pixels of the network's input; images are numbered through."""
    starts = np.cumsum([0, *(len(found) for found, _ in predictions)])[:-1]
    sides: list[list[tuple[np.ndarray, np.ndarray]]] = [[], []]
    for start, (found, true) in zip(starts, predictions, strict=True):
        for side, table in zip(sides, (true.numpy(), found.numpy()), strict=True):
            image, place = np.nonzero(table[..., -1] >= 0)
            side.append((image + start, table[image, place].astype(np.float64)))
    out = []
    for side in sides:
        image, rows = (np.concatenate(part) for part in zip(*side, strict=True))
        score = rows[:, 4] if rows.shape[1] == 6 else None
        out.append(Boxes(image, rows[:, -1].astype(np.int64), rows[:, :4], score))
    return out[0], out[1]


def _scaled(boxes: Boxes, factor: float) -> Boxes:
    return Boxes(boxes.image, boxes.label, boxes.xyxy * factor, boxes.score)
