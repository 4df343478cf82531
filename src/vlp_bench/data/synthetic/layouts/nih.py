"""NIH ChestX-ray14: squashed PNG in twelve folders, headers with commas inside, boxes in pixels of 1024 x 1024."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vlp_bench.data.synthetic.world import SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save, save_png

SIDE = 1024
NAMES = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Lung Lesion": "Nodule",
    "Lung Opacity": "Infiltration",
    "Pleural Effusion": "Effusion",
    "Pneumothorax": "Pneumothorax",
}
#: What the list of boxes has, and how it spells it.
BOXED = {n: n for n in ("Atelectasis", "Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumothorax")} | {
    "Infiltration": "Infiltrate"
}
ENTRIES = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    image = study.frontal
    if image is None:
        return {}
    rng = np.random.default_rng([image.seed, 7])
    patient, visit = int(study.patient_id[1:]), int(study.study_id[-3:])
    name, drawn = f"{patient:08d}_{visit:03d}.png", draw(job, image)
    height, width = drawn.picture.shape
    side = SIDE if job.full_size else job.size
    picture = cv2.resize(drawn.picture, (side, side), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.1:  # a few of the real ones are RGBA
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGRA)
    save_png(job.root / f"images_{patient % 12 + 1:03d}" / "images" / name, picture)
    labels = "|".join(sorted(dict.fromkeys(found(study).values()))) or "No Finding"
    entry = [name, labels, visit, patient, study.age, study.sex, image.view, width, height, 0.143, 0.143]
    rows: Rows = {"entries": [{"cells": entry}], "test" if study.split == "test" else "train_val": [{"cells": [name]}]}
    if rng.random() < 0.5:
        rows["boxes"] = [{"cells": [name, *box]} for box in boxes(study, drawn.boxes, SIDE / width, SIDE / height)]
    return rows


def found(study: SyntheticStudy) -> dict[str, str]:
    """What the findings of a study are called here; a large lesion is a mass."""
    large = {f.name for f in study.findings if f.severity > 2}
    names = {f.name: NAMES[f.name] for f in study.findings if f.name in NAMES}
    return names | ({"Lung Lesion": "Mass"} if "Lung Lesion" in large else {})


def boxes(study: SyntheticStudy, drawn: list[dict[str, Any]], across: float, down: float) -> list[list[Any]]:
    """Label, x, y, w and h of what the list has."""
    names = found(study)
    labels = [BOXED.get(names.get(box["label"], ""), "") for box in drawn]
    places = [np.array(box["xywh"]) * [across, down, across, down] for box in drawn]
    return [[label, *place.round(9).tolist()] for label, place in zip(labels, places, strict=True) if label]


def write_tables(root: Path, tables: Rows) -> None:
    def lines(name: str, end: str = "") -> list[str]:
        return [",".join(map(str, row["cells"])) + end for row in tables.get(name, [])]

    for path, content in (
        ("Data_Entry_2017_v2020.csv", [ENTRIES, *lines("entries")]),
        ("BBox_List_2017.csv", [BOXES, *lines("boxes", ",,,")]),
        ("train_val_list.txt", lines("train_val")),
        ("test_list.txt", lines("test")),
    ):
        save(root / path, "".join(f"{line}\n" for line in content).encode())
