"""CheXpert-v1.0-small, with the test set released later and the reports of CheXpert Plus."""

from pathlib import Path

import numpy as np

from vlp_bench.data.reports import last_section, sections
from vlp_bench.data.synthetic.world import SyntheticImage, SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save_jpeg, write_table

FOLDER = "CheXpert-v1.0-small"
PARTS = {"train": "train", "validate": "valid", "test": "test"}
#: in the order of the columns
LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    """Write the images of a study; give its rows: labels a labeler read in training, a radiologist's in the rest."""
    part = PARTS[study.split]
    folder = f"{part}/patient{study.patient_id}/study{int(study.study_id)}"
    rows: Rows = {"train": [], "valid": [], "test": [], "plus": []}
    for number, image in enumerate(study.images, start=1):
        kind = "lateral" if image.view == "LATERAL" else "frontal"
        path = f"{folder}/view{number}_{kind}.jpg"
        save_jpeg(job.root / path, draw(job, image).picture, job.quality)
        if part == "test":
            rows["test"].append({"Path": path} | _truth(study))
            continue
        labels = _truth(study) if part == "valid" else _read(study)
        rows[part].append({"Path": f"{FOLDER}/{path}"} | _about(study, image) | labels)
        rows["plus"].append(_plus(study, path, kind))
    return rows


def _about(study: SyntheticStudy, image: SyntheticImage) -> dict:
    lateral = image.view == "LATERAL"
    rng = np.random.default_rng([image.seed, 4])
    # a few frontal views lie on their side or have no position
    position = "" if lateral else ("LL", "RL", "")[int(rng.integers(3))] if rng.random() < 0.03 else image.view
    sex = "Unknown" if rng.random() < 0.01 else {"F": "Female", "M": "Male"}[study.sex]
    return {
        "Sex": sex,
        "Age": study.age,
        "Frontal/Lateral": "Lateral" if lateral else "Frontal",
        "AP/PA": position,
    }


def _read(study: SyntheticStudy) -> dict:
    return {name: "" if (v := study.labels[name]) is None else f"{v:.1f}" for name in LABELS}


def _truth(study: SyntheticStudy) -> dict:
    seen = {name: float(study.truth.get(name, 0)) for name in LABELS}
    return seen | {"No Finding": float(not any(seen.values()))}


def _plus(study: SyntheticStudy, path: str, kind: str) -> dict:
    told = sections(study.report)
    return {
        "path_to_image": path,
        "frontal_lateral": kind.capitalize(),
        "report": study.report,
        "section_findings": last_section(told, "findings"),
        "section_impression": last_section(told, "impression"),
        "deid_patient_id": f"patient{study.patient_id}",
        "split": "valid" if "valid" in path else "train",
    }


def write_tables(root: Path, tables: Rows) -> None:
    names = {"train": "train", "valid": "valid", "test": "test_labels", "plus": "df_chexpert_plus_240401"}
    for name, file in names.items():
        write_table(root / f"{file}.csv", tables[name])
