"""RSNA Pneumonia Detection Challenge 2018, stage 2: the only file that knows its layout.

Expected as downloaded from Kaggle, in the raw directory or a folder of it:

    stage_2_train_labels.csv              patientId, x, y, width, height, Target: one row a box, or one without any
    stage_2_detailed_class_info.csv       patientId, class: as many rows
    stage_2_train_images/<patientId>.dcm  1024 x 1024, JPEG inside
    pneumonia-challenge-dataset-mappings_2018.json   from RSNA's own page; says which NIH image, and so which patient,
                                          each image is. Without it each image counts as a patient of its own.

The images of the test set have no labels and are not read.
"""

import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlp_bench.data.divisions import by_hash, parts
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._recipes import enlarged, folds, held_out, stratified
from vlp_bench.data.sources._tables import find_below, images, table
from vlp_bench.data.study import Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
LABELS = ("Pneumonia", *CLASSES)
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
FOLDER = "stage_2_train_images"
#: Side of every image of the challenge; boxes are in its pixels.
SIDE = 1024
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
ORIGIN = (
    "It comes with https://www.kaggle.com/c/rsna-pneumonia-detection-challenge; data.raw_dir is where it was unpacked."
)
#: images held out for val and test together (MGCA, detection and segmentation)
HELD = 2 * 5337


def read(raw_dir: Path, lists: str | None = None, views: bool = False) -> Source:
    """Index the data set.

    Args:
        raw_dir: holds the files above.
        lists: a folder with published lists (BenchX, MRM), for the division `lists`.
        views: open every DICOM for its ViewPosition (AP or PA); else all views are `FRONTAL`, which they are.

    Raises:
        UserError: a table, a column or every image is missing.
    """
    problems: list[Problem] = []
    rows = _labels(raw_dir, problems)
    files = _files(raw_dir)
    classes = _classes(raw_dir, problems)
    nih = _mapping(raw_dir, problems)
    patients = {i: str(int(nih[i].split("_")[0])) if i in nih else i for i in rows["patientId"]}
    split = by_hash(set(patients.values()), SHARES)
    of_image: dict[str, list[Any]] = {}
    for row in rows.itertuples():
        of_image.setdefault(row.patientId, []).append(row)
    studies = []
    for image, found in sorted(of_image.items()):
        target = float(any(row.Target == "1" for row in found))
        ref = ImageRef(
            image,
            path := files.get(image, f"{FOLDER}/{image}.dcm"),
            _view(raw_dir / path) if views else "FRONTAL",
            boxes=_boxes(found, raw_dir / path, problems) if target else (),
            extra=json.dumps({"nih": nih[image]}) if image in nih else "",
        )
        labels = {"Pneumonia": target} | classes.get(image, {})
        studies.append(Study(image, patients[image], split[patients[image]], (ref,), labels=labels))
    known = {s.study_id: s.study_id for s in studies}
    divisions = _divisions(rows) + ([_lists.read(Path(lists), known)] if lists else [])
    return Source("rsna", raw_dir, tuple(studies), LABELS, tuple(problems), tuple(divisions))


def _find(raw_dir: Path, name: str) -> Path:
    """A table, or the place where it should be."""
    return find_below(raw_dir, name, ends=("", ".zip", ".gz")) or raw_dir / name


def _labels(raw_dir: Path, problems: list[Problem]) -> pd.DataFrame:
    """Rows with an id and a target, as many and in the order of the csv."""
    path = _find(raw_dir, "stage_2_train_labels.csv")
    rows = table(path, ["patientId", "x", "y", "width", "height", "Target"], ORIGIN)
    rows["Target"] = rows["Target"].str.strip().replace({"0.0": "0", "1.0": "1"})
    rows["row"] = np.arange(len(rows)) + 2
    good = (rows["patientId"] != "") & rows["Target"].isin(["0", "1"])
    for row in rows[~good].itertuples():
        reason = "no patientId" if not row.patientId else f"Target={row.Target!r} is neither 0 nor 1"
        problems.append(Problem("label", f"{path.name} row {row.row}", reason))
    rows = rows[good]
    again = rows.duplicated(["patientId", "x", "y", "width", "height", "Target"])
    for row in rows[again].itertuples():
        reason = f"the same as an earlier row of {row.patientId}"
        problems.append(Problem("duplicate", f"{path.name} row {row.row}", reason, lost=False))
    targets = rows.groupby("patientId")["Target"].nunique()
    for image in targets.index[targets > 1]:
        reason = "has both Target 0 and 1: counts as 1"
        problems.append(Problem("label", f"patientId {image}", reason, lost=False))
    return rows[~again]


def _files(raw_dir: Path) -> dict[str, str]:
    folder = find_below(raw_dir, FOLDER)
    found = images(raw_dir, str(folder.relative_to(raw_dir)) if folder else "")
    if not found:
        raise UserError(f"No image under {raw_dir} (looked for {FOLDER}/*.dcm). {ORIGIN}")
    return found


def _classes(raw_dir: Path, problems: list[Problem]) -> dict[str, dict[str, float]]:
    """The detailed class of each image as labels."""
    path = _find(raw_dir, "stage_2_detailed_class_info.csv")
    if not path.is_file():
        reason = f"not here: {', '.join(CLASSES)} are unknown. {ORIGIN}"
        problems.append(Problem("no classes", path.name, reason, lost=False))
        return {}
    rows = table(path, ["patientId", "class"], ORIGIN)
    known = rows["class"].isin(CLASSES)
    for n in rows.index[~known]:
        reason = f"class={rows['class'][n]!r} is none of {', '.join(CLASSES)}"
        problems.append(Problem("class", f"{path.name} row {n + 2}", reason, lost=False))
    of_image: dict[str, set[str]] = {}
    for image, name in zip(rows["patientId"][known], rows["class"][known], strict=True):
        of_image.setdefault(image, set()).add(name)
    for image in [i for i, names in of_image.items() if len(names) > 1]:
        reason = f"has the classes {' and '.join(sorted(of_image.pop(image)))}: unknown"
        problems.append(Problem("class", f"patientId {image}", reason, lost=False))
    return {i: {c: float(c in names) for c in CLASSES} for i, names in of_image.items()}


def _mapping(raw_dir: Path, problems: list[Problem]) -> dict[str, str]:
    """The NIH image that each image is."""
    path = _find(raw_dir, MAPPING)
    if not path.is_file():
        reason = (
            "not here: every image counts as a patient of its own, though some patients have several. It is to be had "
            "from RSNA's page of the challenge"
        )
        problems.append(Problem("patients", MAPPING, reason, lost=False))
        return {}
    try:
        entries = json.loads(path.read_text("utf-8-sig"))
        found = {str(e["subset_img_id"]): str(e["img_id"]) for e in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not RSNA's mapping, a list of subset_img_id and img_id ({error!r}). Remove it or get it anew."
        ) from error
    for image in [i for i, name in found.items() if not name.split("_")[0].isdigit()]:
        reason = f"img_id={found.pop(image)!r} names no NIH patient"
        problems.append(Problem("patients", f"{MAPPING} {image}", reason, lost=False))
    return found


def _boxes(rows: list[Any], path: Path, problems: list[Problem]) -> tuple[Mapping[str, Any], ...]:
    found = []
    across, down = enlarged(path, SIDE, SIDE)
    for row in (r for r in rows if r.Target == "1"):
        try:
            x, y, w, h = (float(v) for v in (row.x, row.y, row.width, row.height))
        except ValueError:
            reason = f"no box in x={row.x!r}, y={row.y!r}, width={row.width!r}, height={row.height!r}"
            problems.append(Problem("box", f"stage_2_train_labels.csv row {row.row}", reason, lost=False))
            continue
        found.append({"label": "Pneumonia", "xywh": [x * across, y * down, w * across, h * down]})
    return tuple(found)


def _view(path: Path) -> str:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            view = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ViewPosition"]).get("ViewPosition")
    except Exception:  # what cannot be read is told when its pixels are
        view = None
    return view if view in ("AP", "PA") else "FRONTAL"


def _divisions(rows: pd.DataFrame) -> list[Division]:
    """Published code sees the images in the order of their ids, as pandas' groupby gives them."""
    positive = (rows["Target"] == "1").groupby(rows["patientId"]).any().sort_index()
    ids, classes = positive.index.tolist(), positive.astype(int).tolist()
    found = []
    if len(ids) > HELD:
        origin = "MGCA, detection and segmentation (preprocess/rsna.py, random_state 0)"
        found.append(Division("mgca", held_out(ids, 0, HELD), origin))
    said = "70/15/15 by image, random_state 0, without regard to the class"
    for name, whose in (("mgca_cls", "MGCA, classification"), ("gloria", "GLoRIA")):
        found.append(Division(name, held_out(ids, 0, 0.3), f"{whose}: {said}"))
    with suppress(ValueError):  # too few images of a class: certainly not what BenchX divided
        train, rest = stratified(ids, classes, 42, 0.3)
        val, test = stratified(rest, positive.astype(int)[rest].tolist(), 42, 0.5)
        found.append(Division("benchx", parts(train, val, test), "BenchX: 70/15/15 by class, random_state 42"))
    one = [i for i, c in zip(ids, classes, strict=True) if c]
    return found + folds("prior", one, "PRIOR, detection: five folds of the images with pneumonia (its issue 12)")
