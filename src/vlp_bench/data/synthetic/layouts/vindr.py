"""VinDr-CXR: DICOM of twelve bits, three radiologists who differ in train, one consensus in test."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_bench.data.synthetic.world import SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save_dicom, write_table

NAMES = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Fracture": "Rib fracture",
    "Lung Lesion": "Nodule/Mass",
    "Lung Opacity": "Lung Opacity",
    "Pleural Effusion": "Pleural effusion",
    "Pneumothorax": "Pneumothorax",
}
LABELS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation",
    "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst",
    "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis",
)  # fmt: skip
#: The last diagnosis is spelt in two ways.
OTHER = {"train": "Other diseases", "test": "Other disease"}
NO_FINDING = "No finding"
SEES = 0.8  # chance that the second and the third radiologist name what the first does


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    image = study.frontal
    if image is None:
        return {}
    rng = np.random.default_rng([image.seed, 8])
    part, image_id, drawn = "test" if study.split == "test" else "train", name(study), draw(job, image)
    _save_dicom(job.root / part / f"{image_id}.dicom", drawn.picture, rng)
    readers = [f"R{n}" for n in rng.choice(17, 3, replace=False) + 1] if part == "train" else [""]
    rows: Rows = {f"image_labels_{part}": [], f"annotations_{part}": []}
    for n, reader in enumerate(readers):
        keys = {"image_id": image_id} | ({"rad_id": reader} if reader else {})
        seen = {f.name for f in study.findings if f.name in NAMES and (n == 0 or rng.random() < SEES)}
        labels = {NAMES[f] for f in seen} or {NO_FINDING}
        named = (*LABELS, OTHER[part], NO_FINDING)
        rows[f"image_labels_{part}"].append(keys | {label: int(label in labels) for label in named})
        boxes = [_shaken(box, 0.04 if n else 0.0, rng) for box in drawn.boxes if box["label"] in seen]
        empty = [{"class_name": NO_FINDING} | dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), "")]
        rows[f"annotations_{part}"] += [keys | box for box in boxes or (empty if not seen else [])]
    return rows


def name(study: SyntheticStudy) -> str:
    """Id of the image: 32 hexadecimal digits."""
    return hashlib.md5(study.study_id.encode(), usedforsecurity=False).hexdigest()


def _shaken(box: dict[str, Any], share: float, rng: np.random.Generator) -> dict[str, Any]:
    """A box as a radiologist draws it, off by up to a share of its sides."""
    x, y, w, h = box["xywh"]
    corners = np.array([x, y, x + w, y + h]) + rng.uniform(-share, share, 4) * [w, h, w, h]
    keys = ("x_min", "y_min", "x_max", "y_max")
    return {"class_name": NAMES[box["label"]]} | dict(zip(keys, corners.round(3).tolist(), strict=True))


def _save_dicom(path: Path, picture: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Write a picture in twelve of sixteen bits, of both kinds, with and without a window."""
    inverted, windowed = rng.random(2) < [0.2, 0.7]
    values = picture.astype(np.uint16) * 16
    window: dict[str, Any] = {"WindowCenter": "2048", "WindowWidth": "4096"} if windowed else {}
    kind = "MONOCHROME1" if inverted else "MONOCHROME2"
    values = 4095 - values if inverted else values
    save_dicom(path, values, BitsStored=12, HighBit=11, PhotometricInterpretation=kind, Modality="DX", **window)


def write_tables(root: Path, tables: Rows) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    for table, rows in tables.items():
        write_table(root / "annotations" / f"{table}.csv", rows)
