"""The COVID-19 Image Data Collection: findings as paths, CT and volumes among the radiographs, blank cells."""

from pathlib import Path

import numpy as np

from vlp_bench.data.synthetic.world import SyntheticImage, SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save, save_jpeg, save_png, write_table

#: What the findings of the world are called here; of several, the first.
FINDINGS = {
    "Lung Opacity": "Pneumonia/Viral/COVID-19",
    "Consolidation": "Pneumonia/Bacterial/Streptococcus",
    "Edema": "Pneumonia/Viral/SARS",
    "Lung Lesion": "Tuberculosis",
    "Atelectasis": "Pneumonia",
    "Pneumothorax": "todo",
}
# the last column has no name
_COLUMNS = (
    "patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "intubated", "intubation_present",
    "went_icu", "in_icu", "needed_supplemental_O2", "extubated", "temperature", "pO2_saturation", "leukocyte_count",
    "neutrophil_count", "lymphocyte_count", "view", "modality", "date", "location", "folder", "filename", "doi", "url",
    "license", "clinical_notes", "other_notes", "",
)  # fmt: skip


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    rng = np.random.default_rng([study.images[0].seed, 6])
    person = {
        "patientid": study.patient_id[1:].lstrip("0") + ("a" if rng.random() < 0.1 else ""),
        "offset": "" if rng.random() < 0.2 else str(int(study.study_id[-2:])),
        "sex": "" if rng.random() < 0.1 else study.sex,
        "age": "" if rng.random() < 0.1 else str(study.age),
        "finding": finding(study),
        "date": study.when[0][:4],
        "clinical_notes": "" if rng.random() < 0.2 else notes(study),
    }
    rows = []
    for image in study.images:
        suffix = (".jpg", ".png", ".jpeg", ".JPG")[int(rng.choice(4, p=[0.4, 0.3, 0.25, 0.05]))]
        path, picture = job.root / "images" / f"{image.image_id}.main.pdf-001{suffix}", draw(job, image).picture
        if suffix == ".png":
            save_png(path, picture)
        else:
            save_jpeg(path, picture, job.quality)
        rows.append(
            person | {"view": _view(image, rng), "modality": "X-ray", "folder": "images", "filename": path.name}
        )
    if rng.random() < 0.15:
        path = job.root / "images" / f"{study.study_id}-ct.png"
        save_png(path, draw(job, study.images[0]).picture)
        rows.append(person | {"view": "Axial", "modality": "CT", "folder": "images", "filename": path.name})
    if rng.random() < 0.15:
        path = job.root / "volumes" / f"{study.study_id}.nii.gz"
        save(path, b"\x1f\x8b")
        rows.append(person | {"view": "Axial", "modality": "CT", "folder": "volumes", "filename": path.name})
    return {"metadata": rows}


def finding(study: SyntheticStudy) -> str:
    return next((name for sign, name in FINDINGS.items() if study.truth[sign]), "No Finding")


def notes(study: SyntheticStudy) -> str:
    seen = ", ".join(f"{f.side} {f.name.lower()}".strip() for f in study.findings)
    return f"{study.age} year old, cough. Radiograph: {seen or 'normal'}."


def _view(image: SyntheticImage, rng: np.random.Generator) -> str:
    if image.view == "LATERAL":
        return "L"
    return "AP Supine" if image.view == "AP" and rng.random() < 0.5 else image.view


def write_tables(root: Path, tables: Rows) -> None:
    rows = [{column: row.get(column, "") for column in _COLUMNS} for row in tables["metadata"]]
    write_table(root / "metadata.csv", rows)
