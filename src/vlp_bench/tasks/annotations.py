"""Boxes and masks of a target: which labels have them, on which images they are known, where they lie."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlp_bench.errors import UserError
from vlp_bench.metrics.detection import Boxes
from vlp_bench.tasks.base import Target

UNKNOWN = 255
#: Share of the longer side by which a box may leave its picture, for rounding.
OVERHANG = 0.01


class Annotations:
    """The masks or boxes of a target's images.

    A label of the target is known on an image that has an annotation of it, or that is labelled not to have it; an
    image with the finding but without an annotation is unknown. What is no label of the target (such as the lungs) is
    known where it is annotated.

    Args:
        target: images and labels.
        masks: masks, boxes (as filled rectangles), or None where boxes are wanted as boxes.
        labels: names of annotations; None takes the labels of the target that are annotated in training.

    Attributes:
        labels: L names.
        missing: labels of the target that are annotated on no training image, and so are not among `labels`.
        known: (N, L) bool, by image row.
        positive: (N, L) bool.

    Raises:
        UserError: a label without any annotation in training, a box outside its picture.
    """

    def __init__(self, target: Target, masks: str | None, labels: Sequence[str] | None = None) -> None:
        if masks not in (None, "masks", "boxes"):
            raise UserError(f"task.masks={masks}: expected masks or boxes.")
        self.target, self.store = target, target.store
        self.option, self.drawn = masks is not None, masks == "masks"
        self._boxes = [self.store.boxes(row) for row in range(len(self.store.images))]
        boxed = [frozenset(str(b["label"]) for b in found) for found in self._boxes]
        self._named: dict[str, list[frozenset[str]]] = {"masks": self.store.mask_labels, "boxes": boxed}
        here = self._named["masks" if self.drawn else "boxes"]
        asked = list(labels) if labels else target.labels
        annotated = np.array([[name in found for name in asked] for found in here], np.bool_).reshape(-1, len(asked))
        kept = annotated[self._of("train")].any(0)
        self.missing = [] if labels else [name for name, any_ in zip(asked, kept, strict=True) if not any_]
        if not kept.any() or (labels and not kept.all()):
            raise UserError(self._absent([name for name, any_ in zip(asked, kept, strict=True) if not any_]))
        if not labels:
            asked, annotated = [n for n in asked if n not in self.missing], annotated[:, kept]
        self.labels, self.positive = asked, annotated
        self.known = annotated | (self._targets() == 0)
        if not self.drawn:
            self._check()

    def _targets(self) -> np.ndarray:
        """(N, L) labels; nan where the target has none of the name."""
        nothing = np.full(len(self.store.images), np.nan)
        of = {name: self.target.targets[:, i] for i, name in enumerate(self.target.labels)}
        return np.stack([of.get(name, nothing) for name in self.labels], 1)

    def _of(self, split: str) -> np.ndarray:
        return self.store.in_split(split) & self.target.viewed

    def _absent(self, names: list[str]) -> str:
        wanted, other = ("masks", "boxes") if self.drawn else ("boxes", "masks")
        counts = {kind: Counter(n for found in here for n in found) for kind, here in self._named.items()}

        def listed(kind: str) -> str:
            return ", ".join(f"{n} ({c})" for n, c in counts[kind].most_common(12)) or "nothing"

        text = (
            f"target={self.target.name} has no {wanted} of {', '.join(names)} among its training images. "
            f"It has {wanted} of: {listed(wanted)}; {other} of: {listed(other)} (images)."
        )
        if self.option and all(counts[other][n] for n in names):
            text += f" Use task.masks={other}, or other task.labels."
        elif counts[wanted]:
            text += " Choose among them with task.labels=[...]."
        return text + " What preparation had to leave out is listed in prepare_report.json of the prepared data."

    def _check(self) -> None:
        """Refuse boxes that lie outside their pictures."""
        rows = np.flatnonzero(self.target.viewed)
        table, images, size = self.boxes_of(rows), self.store.images, self.store.size
        rows = rows[table.image]
        pixels = images[["width", "height"]].to_numpy()[rows]
        scale = pixels.max(axis=1, keepdims=True, initial=1) / size
        # back from the stored square, in which the picture lies in the middle
        corners = ((table.xyxy.reshape(-1, 2, 2) - size / 2) * scale[:, None] + pixels[:, None] / 2).reshape(-1, 4)
        spare = OVERHANG * size * scale + 1
        outside = ((corners[:, :2] < -spare) | (corners[:, 2:] > pixels + spare)).any(1)
        if outside.any():
            first = np.flatnonzero(outside)[0]
            image = images.iloc[rows[first]]
            raise UserError(
                f"{outside.sum()} boxes of target={self.target.name} lie outside their pictures, the first on "
                f"{image['image_id']} ({self.labels[table.label[first]]}: left, top, right, bottom = "
                f"{', '.join(f'{v:.0f}' for v in corners[first])} on a picture of {image['width']} x "
                f"{image['height']}). "
                "Boxes are left, top, width, height in pixels of the image file: correct them and prepare anew."
            )

    def rows(self, split: str, every: bool = False) -> np.ndarray:
        """Image rows of a split on which a label is known, or each of them.

        Raises:
            UserError: there is none.
        """
        known = self.known.all(1) if every else self.known.any(1)
        rows = np.flatnonzero(self._of(split) & known)
        if len(rows) == 0:
            what = "each" if every else "any"
            raise UserError(
                f"target={self.target.name} has no {split} image on which {what} of {', '.join(self.labels)} is known."
            )
        return rows

    def require_positives(self, rows: np.ndarray, split: str) -> None:
        """Refuse images on which nothing can be found.

        Raises:
            UserError: none of the rows has an annotation.
        """
        if not self.positive[rows].any():
            raise UserError(
                f"None of the {len(rows)} {split} images of target={self.target.name} has any of "
                f"{', '.join(self.labels)}: nothing can be measured."
            )

    def facts(self, train: np.ndarray) -> dict[str, Any]:
        """What a result tells of the training rows and of the labels that are left out."""
        kind = "masks" if self.option else "boxes"
        return {
            "train_images": len(train),
            "train_positives": dict(zip(self.labels, self.positive[train].sum(0).tolist(), strict=True)),
            f"labels_without_{kind}": self.missing,
        }

    def mask(self, row: int) -> np.ndarray:
        """uint8 (L, size, size) of an image row in stored pixels: 1 inside, 0 outside, 255 where it is not known."""
        size = self.store.size
        planes = np.zeros((len(self.labels), size, size), np.uint8)
        planes[~self.known[row]] = UNKNOWN
        if self.drawn:
            for found in self.store.masks(row) if self.positive[row].any() else []:
                if found["label"] in self.labels:
                    planes[self.labels.index(found["label"])] |= found["mask"]
        else:
            for x0, y0, x1, y1, label in self.boxes(row).round().astype(int):
                planes[label, max(y0, 0) : y1, max(x0, 0) : x1] = 1
        return planes

    def boxes(self, row: int) -> np.ndarray:
        """float64 (N, 5) of an image row: left, top, right, bottom in stored pixels, number of the label."""
        found = [[*b["xyxy"], self.labels.index(b["label"])] for b in self._boxes[row] if b["label"] in self.labels]
        return np.array(found, np.float64).reshape(-1, 5)

    def boxes_of(self, rows: np.ndarray) -> Boxes:
        """The boxes of several image rows, which are numbered from 0."""
        found = [self.boxes(row) for row in rows]
        table = np.concatenate([np.zeros((0, 5)), *found])
        image = np.repeat(np.arange(len(rows)), [len(f) for f in found])
        return Boxes(image, table[:, 4].astype(np.int64), table[:, :4])


def shown(augment: str | None) -> str | None:
    """The augmentation of images of which the borders matter.

    The crop that other tasks train on is cut out at the stored scale, and what is measured is the whole image made
    smaller: training sees the whole image, too.
    """
    return None if augment == "crop" else augment
