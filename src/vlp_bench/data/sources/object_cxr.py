"""Object-CXR (JF Healthcare): foreign objects as rectangles, ellipses and polygons.

Expected under the raw directory, as downloaded (or one folder below it):

    train.csv, dev.csv    image_name,annotation
    test.csv              image_path,annotation (or image_name), in the copy on Kaggle
    train/*.jpg, dev/*.jpg, test/*.jpg

An annotation is `type x1 y1 x2 y2 ...`, several joined by `;`: 0 a rectangle, 1 an ellipse in its bounding box, 2 a
polygon. An empty one means that there is no object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vlp_bench.data.divisions import by_hash, parts, shuffled
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._tables import find, images, table
from vlp_bench.data.study import Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

ORIGIN = "It comes with the images of the challenge object-CXR (on Kaggle: raddar/foreign-objects-in-chest-xrays)."
LABEL = "Foreign Object"
POINTS = 64  # of a polygon that stands for an ellipse
VAL = 0.1  # share of train that becomes val where dev is test
SPLIT_OF = {"train": "train", "dev": "val", "test": "test"}
Shape = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a csv; `image_id` is empty where it cannot be used."""

    image_id: str
    path: str
    annotation: str
    where: str


def read(raw_dir: Path, lists: str | None = None) -> Source:
    """Index the data set. Patients are not known: each image counts as one.

    Where test.csv has annotations, the three published parts are the split; else dev is test, and val is drawn from
    train.

    Args:
        raw_dir: holds train.csv and dev.csv.
        lists: a folder with published train, val and test lists.

    Raises:
        UserError: no csv, or not its columns, or no image; lists that name none of them.
    """
    base = find(raw_dir, "train.csv", "*/train.csv")
    if base is None:
        raise UserError(f"No train.csv in {raw_dir}. {ORIGIN}")
    problems: list[Problem] = []
    files = {part: base.with_name(f"{part}.csv") for part in ("train", "dev", "test")}
    rows = {
        part: _rows(raw_dir, path, part, problems) for part, path in files.items() if part != "test" or path.is_file()
    }
    if "test" in rows and not any(row.annotation for row in rows["test"]):
        reason = "its images have no annotations: left out, dev is test"
        problems.append(Problem("no annotations", "test.csv", reason, lost=False))
        del rows["test"]
    known = {part: [row for row in some if row.image_id] for part, some in rows.items()}
    if not any(known.values()):
        raise UserError(f"No image that train.csv and dev.csv name is in {raw_dir}. {ORIGIN}")
    splits = _splits({part: [row.image_id for row in some] for part, some in known.items()})
    studies = []
    for row in (row for some in known.values() for row in some):
        boxes, masks = _shapes(row, problems)
        labels = {LABEL: float(bool(row.annotation))}
        image = ImageRef(row.image_id, row.path, "FRONTAL", labels, boxes=boxes, masks=masks)
        studies.append(Study(row.image_id, row.image_id, splits[row.image_id], (image,)))
    ways = _divisions({part: [row.image_id for row in some] for part, some in rows.items()})
    if lists:
        names = {row.image_id: row.image_id for some in known.values() for row in some}
        ways.append(_lists.read(Path(lists), names))
    return Source("object_cxr", raw_dir, tuple(studies), (LABEL,), tuple(problems), tuple(ways))


def _rows(raw_dir: Path, path: Path, part: str, problems: list[Problem]) -> list[Row]:
    """Every row of a csv, also those that cannot be used: published divisions count them."""
    listed = table(path, ["annotation"], ORIGIN)
    column = next((c for c in ("image_name", "image_path") if c in listed), None)
    if column is None:
        raise UserError(f"{path} lacks the column image_name (it has {', '.join(listed.columns[:8])}). {ORIGIN}")
    folder = find(raw_dir, part, f"*/{part}")
    there = images(raw_dir, str(folder.relative_to(raw_dir))) if folder else {}
    found: list[Row] = []
    seen: set[str] = set()
    for n, (name, annotation) in enumerate(zip(listed[column], listed["annotation"], strict=True), 2):
        stem, where = PurePosixPath(name.strip()).stem, f"{path.name} row {n}"
        reason = (
            "no image is named" if not stem
            else "the image has a row already; the first counts" if stem in seen
            else f"no such image: {name}" if stem not in there
            else None
        )  # fmt: skip
        seen.add(stem)
        if reason:
            problems.append(Problem("image_name", where, reason))
        found.append(Row("", "", "", where) if reason else Row(stem, there[stem], annotation.strip(), where))
    return found


def _splits(ids: dict[str, list[str]]) -> dict[str, str]:
    """Split of each image, see `read`."""
    if "test" in ids:
        return {i: SPLIT_OF[part] for part, some in ids.items() for i in some}
    return by_hash(ids["train"], {"train": 1 - VAL, "val": VAL, "test": 0.0}) | dict.fromkeys(ids["dev"], "test")


def _divisions(ids: dict[str, list[str]]) -> list[Division]:
    def named(name: str, train: list[str], val: list[str], test: list[str], origin: str) -> Division:
        found = parts(train, val, test)
        found.pop("", None)  # the rows that cannot be used
        return Division(name, found, origin)

    train, val = shuffled(ids["train"], 0, 0.1)
    origin = "MGCA's code: dev is test, a tenth of train.csv (train_test_split, random_state 0) is val"
    found = [named("mgca", train, val, ids["dev"], origin)]
    if "test" in ids:
        origin = "BenchX's lists: train, dev and test as published"
        found.append(named("benchx", ids["train"], ids["dev"], ids["test"], origin))
    return found


def _shapes(row: Row, problems: list[Problem]) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """A box and a mask of each shape of an annotation."""
    boxes: list[Shape] = []
    masks: list[Shape] = []
    for shape in filter(None, map(str.strip, row.annotation.split(";"))):
        try:
            points = _points(shape)
        except ValueError:
            reason = f"not `type x1 y1 x2 y2 ...`, type one of 0, 1, 2: {shape[:60]}"
            problems.append(Problem("annotation", row.where, reason, lost=False))
            continue
        corner, size = points.min(0), np.ptp(points, 0)
        boxes.append({"label": LABEL, "xywh": [*corner.tolist(), *size.tolist()]})
        masks.append({"label": LABEL, "polygon": points.round(2).ravel().tolist()})
    return tuple(boxes), tuple(masks)


def _points(shape: str) -> np.ndarray:
    """Corners (N, 2) of a shape; an ellipse has 64, four of them at its ends.

    Raises:
        ValueError: not a shape.
    """
    kind, *numbers = map(float, shape.split())
    points = np.array(numbers).reshape(-1, 2)
    if (
        not np.isfinite(points).all()
        or len(points) < 2
        or (kind in (0, 1)) != (len(points) == 2)
        or kind not in (0, 1, 2)
    ):
        raise ValueError(shape)
    if kind == 2:
        return points
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    if kind == 0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    angle = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    return points.mean(0) + (points.max(0) - points.min(0)) / 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
