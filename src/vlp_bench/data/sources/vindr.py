"""VinDr-CXR: 18,000 frontal DICOM with boxes and labels; three radiologists each in train, their consensus in test.

Expected under the raw directory, as downloaded from PhysioNet (or where wget puts it, physionet.org/files/...):

    train/*.dicom, test/*.dicom
    annotations/image_labels_train.csv   image_id, rad_id and 28 labels, a row for each radiologist
    annotations/image_labels_test.csv    image_id and the labels
    annotations/annotations_train.csv    image_id, rad_id, class_name, x_min, y_min, x_max, y_max
    annotations/annotations_test.csv     the same without rad_id

or the challenge VinBigData on Kaggle, which is the train part with 14 of the findings:

    train/*.dicom (or png or jpg, as others released them again, often smaller)
    train.csv         image_id, class_name, class_id, rad_id, x_min, y_min, x_max, y_max; perhaps width and height
    train_meta.csv    image_id, dim0, dim1: height and width of the DICOM, in some of the smaller releases

Its test images have no labels and are left out.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vlp_bench.data.divisions import by_hash, parts, shuffled
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._recipes import enlarged, stratified
from vlp_bench.data.sources._tables import find, images, table
from vlp_bench.data.study import Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

ORIGIN = (
    "VinDr-CXR is at https://physionet.org/content/vindr-cxr/, the challenge on Kaggle is "
    "vinbigdata-chest-xray-abnormalities-detection."
)
NO_FINDING = "No finding"
#: In the order of image_labels_train.csv: findings with boxes, diagnoses, nothing.
LABELS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation",
    "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst",
    "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis",
    "Other diseases", NO_FINDING,
)  # fmt: skip
#: Those of the challenge.
CHALLENGE = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration",
    "Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", NO_FINDING,
)  # fmt: skip
SPELT = {name.lower(): name for name in LABELS} | {"other disease": "Other diseases", "nodule-mass": "Nodule/Mass"}
CORNERS = ["x_min", "y_min", "x_max", "y_max"]
#: Where downloads put a file.
PLACES = ("", "annotations/", "*/", "*/annotations/", "*/*/*/*/", "*/*/*/*/annotations/")
BOXES = ("fused", "all")
OVERLAP = 0.4  # intersection over union from which two radiologists mean the same; the challenge counts hits from it
VAL = 0.1  # share of train that becomes val where test is there
ANEW = {"train": 0.7, "val": 0.1, "test": 0.2}
Box = dict[str, Any]


@dataclass(slots=True)
class Part:
    """What the csv files say of train or of test.

    Attributes:
        votes: radiologists by label by image; those of test are one consensus.
        readers: all radiologists of each image.
        boxes: (label, radiologist, xywh) by image.
        named: classes of the csv of boxes, as it writes them, by image.
        sizes: width and height by image, where a csv has them.
        labels: that the files can have.
    """

    votes: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    boxes: dict[str, list[tuple[str, str, list[float]]]] = field(default_factory=lambda: defaultdict(list))
    named: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)
    labels: tuple[str, ...] = LABELS


def read(raw_dir: Path, agree: int = 2, boxes: str = "fused", lists: str | None = None) -> Source:
    """Index the data set. Patients are not published: each image counts as one.

    Args:
        raw_dir: holds the csv files and the folders of images.
        agree: how many of the three radiologists must name a label in train.
        boxes: `fused` keeps the boxes of the labels that an image has, one where several radiologists mean the same,
            so that train looks as test does; `all` keeps every box of every radiologist.
        lists: a folder with published train, val and test lists, or one file of them.

    Raises:
        UserError: no csv, or not its columns, or no image; an unknown option; lists that name no image.
    """
    if agree not in (1, 2, 3) or boxes not in BOXES:
        raise UserError(f"agree={agree}, boxes={boxes}: agree is 1, 2 or 3, boxes one of {', '.join(BOXES)}.")
    problems: list[Problem] = []
    found = {"train": _part(raw_dir, "train", problems), "test": _part(raw_dir, "test", problems)}
    there = {name: _images(raw_dir, name) for name in found}
    known = {name: _known(name, part, there[name], problems) for name, part in found.items()}
    if both := set(known["train"]) & set(known["test"]):
        reason = f"{len(both)} images (first: {min(both)}) are in the csv of train and of test: they are test"
        problems.append(Problem("in two parts", "train", reason, lost=False))
        known["train"] = [i for i in known["train"] if i not in both]
    if not known["train"]:
        raise UserError(f"No image that the csv of train names is in {raw_dir}/train. {ORIGIN}")
    splits = _splits(known, problems)
    studies = []
    for name, part in found.items():
        placed = _placed(raw_dir, part, {i: there[name][i] for i in known[name]}, problems)
        for i in known[name]:
            labels = _labels(part, i, agree)
            kept = placed.get(i, [])
            shown = (
                [{"label": label, "xywh": xywh} for label, _, xywh in kept] if boxes == "all" else fused(kept, labels)
            )
            image = ImageRef(i, there[name][i], "PA", labels, boxes=tuple(shown))
            studies.append(Study(i, i, splits[i], (image,)))
    ways = _divisions(found, {*known["train"], *known["test"]})
    if lists:
        ways.append(_lists.read(Path(lists), {i: i for i in splits}))
    return Source("vindr", raw_dir, tuple(studies), found["train"].labels, tuple(problems), tuple(ways))


def _csv(raw_dir: Path, name: str) -> Path | None:
    return find(raw_dir, *(f"{place}{name}" for place in PLACES))


def _images(raw_dir: Path, name: str) -> dict[str, str]:
    folder = find(raw_dir, *(f"{place}{name}" for place in PLACES if "annotations" not in place))
    return images(raw_dir, str(folder.relative_to(raw_dir))) if folder else {}


def _part(raw_dir: Path, name: str, problems: list[Problem]) -> Part:
    wide, long = _csv(raw_dir, f"image_labels_{name}.csv"), _csv(raw_dir, f"annotations_{name}.csv")
    part = Part()
    if wide is None and long is None and name == "train":
        long = _csv(raw_dir, "train.csv")
        if long is None:
            raise UserError(f"No image_labels_train.csv, annotations_train.csv or train.csv in {raw_dir}. {ORIGIN}")
        part.labels = CHALLENGE
    readers = ["rad_id"] if name == "train" else []
    if wide is not None:
        _vote(table(wide, ["image_id", *readers], ORIGIN), part, wide.name, problems)
    if long is not None:
        rows = table(long, ["image_id", *readers, "class_name", *CORNERS], ORIGIN)
        _box(rows, part, long.name, problems, vote=wide is None)
    elif wide is not None:
        reason = f"not there: no boxes in {name}. {ORIGIN}"
        problems.append(Problem("no boxes", f"annotations_{name}.csv", reason, lost=False))
    if (meta := _csv(raw_dir, f"{name}_meta.csv")) is not None:
        _measure(table(meta, ["image_id"], ORIGIN), part)
    return part


def _vote(rows: pd.DataFrame, part: Part, where: str, problems: list[Problem]) -> None:
    """Labels from a csv with a column for each."""
    columns = {c: SPELT[c.strip().lower()] for c in rows.columns if c.strip().lower() in SPELT}
    if missing := sorted(set(LABELS) - set(columns.values())):
        raise UserError(f"{where} lacks the column {missing[0]} (it has {', '.join(rows.columns[:8])}). {ORIGIN}")
    for n, row in enumerate(rows.to_dict("records"), 2):
        image, reader = row["image_id"].strip(), str(row.get("rad_id", "")).strip()
        votes = part.votes.setdefault(image, defaultdict(set))
        if reader in part.readers[image]:
            problems.append(Problem("duplicate", f"{where} row {n}", f"{image} has a row of {reader or 'it'} already"))
            continue
        part.readers[image].add(reader)
        for column, label in columns.items():
            try:
                value = float(row[column])
            except ValueError:
                value = -1.0
            if value == 1:
                votes[label].add(reader)
            elif value:
                reason = f"{column} is {row[column]!r}, not 0 or 1: taken as 0"
                problems.append(Problem("label", f"{where} row {n}", reason, lost=False))


def _box(rows: pd.DataFrame, part: Part, where: str, problems: list[Problem], vote: bool) -> None:
    """Boxes from a csv with a row for each; and the labels, where no other csv has them."""
    _measure(rows, part)
    for n, row in enumerate(rows.to_dict("records"), 2):
        image, reader = row["image_id"].strip(), str(row.get("rad_id", "")).strip()
        label = SPELT.get(row["class_name"].strip().lower())
        part.named[image].add(row["class_name"])
        if vote:
            part.readers[image].add(reader)
            part.votes.setdefault(image, defaultdict(set))
        if label is None:
            reason = f"not one of the labels: {row['class_name']}"
            problems.append(Problem("label", f"{where} row {n}", reason, lost=False))
            continue
        if vote:
            part.votes[image][label].add(reader)
        corners = [str(row[c]).strip() for c in CORNERS]
        if label == NO_FINDING or not any(corners):
            continue
        try:
            x0, y0, x1, y1 = map(float, corners)
        except ValueError:
            x0 = y0 = x1 = y1 = 0.0
        if x1 > x0 and y1 > y0:
            part.boxes[image].append((label, reader, [x0, y0, x1 - x0, y1 - y0]))
        else:
            problems.append(Problem("box", f"{where} row {n}", f"no box: {', '.join(corners)}", lost=False))


def _measure(rows: pd.DataFrame, part: Part) -> None:
    """Width and height, where there are columns of them."""
    named = next((c for c in (("width", "height"), ("dim1", "dim0")) if set(c) <= set(rows.columns)), None)
    if named is None:
        return
    sizes = rows.drop_duplicates("image_id")
    numbers = sizes[list(named)].apply(lambda column: pd.to_numeric(column, errors="coerce"))
    for image, width, height in zip(sizes["image_id"], *(numbers[c] for c in named), strict=True):
        if width > 0 and height > 0:
            part.sizes[image.strip()] = (float(width), float(height))


def _known(name: str, part: Part, there: Mapping[str, str], problems: list[Problem]) -> list[str]:
    """Images of a part that can be used, in the order of their ids."""
    for image in part.votes:
        if image not in there:
            problems.append(Problem("no image", f"{name}/{image}", "a csv names it, the file is not there"))
    if name == "train" and (few := [i for i, readers in part.readers.items() if len(readers) != 3]):
        reason = f"{len(few)} images (first: {few[0]}) have not three radiologists: of fewer, all must agree"
        problems.append(Problem("radiologists", name, reason, lost=False))
    if strange := sorted(set(part.boxes) - set(part.votes)):
        reason = f"{len(strange)} images (first: {strange[0]}) have boxes and no labels: left out"
        problems.append(Problem("no labels", name, reason, lost=False))
    if without := sorted(set(there) - set(part.votes)):
        reason = f"{len(without)} images (first: {without[0]}) have no row in a csv: left out"
        problems.append(Problem("no labels", name, reason, lost=False))
    return sorted(set(part.votes) & set(there))


def _labels(part: Part, image: str, agree: int) -> dict[str, float]:
    needed = min(agree, len(part.readers[image]))
    return {label: float(len(part.votes[image].get(label, ())) >= needed) for label in part.labels}


def _splits(known: Mapping[str, list[str]], problems: list[Problem]) -> dict[str, str]:
    if known["test"]:
        drawn = by_hash(known["train"], {"train": 1 - VAL, "val": VAL, "test": 0.0})
        return drawn | dict.fromkeys(known["test"], "test")
    shares = ", ".join(f"{share:.0%} {part}" for part, share in ANEW.items())
    reason = f"no labelled test is there: train is split by image ({shares}). {ORIGIN}"
    problems.append(Problem("no official split", "test", reason, lost=False))
    return by_hash(known["train"], ANEW)


def _placed(
    raw_dir: Path, part: Part, paths: Mapping[str, str], problems: list[Problem]
) -> dict[str, list[tuple[str, str, list[float]]]]:
    """Boxes in pixels of the files: those of the csv are in pixels of the DICOM, and other files may be smaller."""
    found = {i: part.boxes[i] for i in paths if part.boxes.get(i)}
    others = [i for i in found if not paths[i].lower().endswith((".dcm", ".dicom"))]
    for i in others:
        if i in part.sizes:
            scale = enlarged(raw_dir / paths[i], *part.sizes[i]) * 2
            found[i] = [
                (label, who, [v * k for v, k in zip(xywh, scale, strict=True)]) for label, who, xywh in found[i]
            ]
    unknown = sorted(set(others) - set(part.sizes))
    if not unknown:
        return found
    where, first = Path(paths[unknown[0]]).parent.name, f"{len(unknown)} images with boxes (first: {unknown[0]})"
    missing = "no csv has the width and height of their DICOM (columns width, height or dim1, dim0)"
    if any(_beyond(found[i], raw_dir / paths[i]) for i in unknown):
        reason = f"{first} are no DICOM, {missing}, and boxes reach beyond the files, which are smaller: no boxes"
        found = {i: some for i, some in found.items() if i not in unknown}
    else:
        reason = f"{first} are no DICOM, {missing}: they are taken to be as large as the DICOM"
    problems.append(Problem("size", where, reason, lost=False))
    return found


def _beyond(boxes: Iterable[tuple[str, str, list[float]]], path: Path) -> bool:
    width, height = enlarged(path, 1, 1)
    # a file that cannot be opened says nothing
    return width * height > 1 and any(x + w > width + 1 or y + h > height + 1 for *_, (x, y, w, h) in boxes)


def fused(boxes: Iterable[tuple[str, str, list[float]]], labels: Mapping[str, float]) -> list[Box]:
    """One box for each lesion: the mean of what radiologists drew of the same label with enough overlap.

    Args:
        boxes: label, radiologist and xywh of each.
        labels: of the image; boxes of a label that it does not have are left out.
    """
    groups: list[tuple[str, dict[str, list[float]]]] = []
    for n, (label, reader, xywh) in enumerate(boxes):
        if not labels.get(label):
            continue
        # a radiologist has no two boxes of one lesion; a consensus has no radiologist
        near = {
            k: overlap(xywh, _mean(group))
            for k, (name, group) in enumerate(groups)
            if name == label and reader and reader not in group
        }
        nearest = max(near, key=near.__getitem__, default=-1)
        if near.get(nearest, 0.0) >= OVERLAP:
            groups[nearest][1][reader] = xywh
        else:
            groups.append((label, {reader or str(n): xywh}))
    return [{"label": label, "xywh": [round(v, 4) for v in _mean(group)]} for label, group in groups]


def _mean(group: Mapping[str, Sequence[float]]) -> list[float]:
    return [sum(values) / len(group) for values in zip(*group.values(), strict=True)]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes, xywh."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(across, 0.0) * max(down, 0.0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def _divisions(found: Mapping[str, Part], known: set[str]) -> list[Division]:
    """Published divisions of the train part; they count all its rows, and test on the official test."""
    train, test = found["train"], found["test"]
    if not test.votes:
        return []

    def named(name: str, some: list[str], val: list[str], origin: str) -> Division:
        whole = parts(some, val, sorted(test.votes))
        return Division(name, {i: part for i, part in whole.items() if i in known}, origin)

    ways = [
        named("cxr_clip", *shuffled(sorted(train.votes), 0, 0.2), "CXR-CLIP: a fifth of train is val, random_state 0")
    ]
    ids, count = sorted(train.named), len(test.named)
    ill = [train.named[i] != {NO_FINDING} for i in ids]
    if 1 < count < len(ids) - 1 and min(ill.count(True), ill.count(False)) > 1:
        some, val = stratified(ids, ill, 42, count)
        origin = "BenchX's script: as many val as test, stratified by finding or not, random_state 42"
        ways.append(named("benchx", some, val, origin))
    return ways
