"""MIMIC-CXR-JPG 2.0 with the reports of MIMIC-CXR."""

from pathlib import Path

import numpy as np

from vlp_bench.data.synthetic.world import CHEXPERT_LABELS, SyntheticImage, SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save_jpeg, write_table

_VIEW_CODES = {
    "PA": "postero-anterior",
    "AP": "antero-posterior",
    "LATERAL": "lateral",
    "LL": "left lateral",
    "": "",
}


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    """Write the images and the report of a study where MIMIC-CXR keeps them; give the rows of its tables."""
    folder = Path("files") / f"p{study.patient_id[:2]}" / f"p{study.patient_id}"
    report = job.root / "mimic-cxr-reports" / folder / f"s{study.study_id}.txt"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(study.report, encoding="utf-8")
    keys = {"subject_id": study.patient_id, "study_id": study.study_id}
    labels = {name: "" if study.labels[name] is None else f"{study.labels[name]:.1f}" for name in CHEXPERT_LABELS}
    rows: Rows = {"chexpert": [keys | labels], "metadata": [], "split": []}
    for image in study.images:
        picture = draw(job, image).picture
        save_jpeg(job.root / folder / f"s{study.study_id}" / f"{image.image_id}.jpg", picture, job.quality)
        rows["metadata"].append({"dicom_id": image.image_id} | keys | metadata(study, image, picture.shape))
        rows["split"].append(
            {"dicom_id": image.image_id, "study_id": study.study_id, "subject_id": study.patient_id}
            | {"split": study.split}
        )
    return rows


def metadata(study: SyntheticStudy, image: SyntheticImage, shape: tuple[int, ...]) -> dict:
    """Describe an image as MIMIC-CXR does: two names for lateral views, and some views left blank."""
    rng = np.random.default_rng([image.seed, 3])
    view = "LL" if image.view == "LATERAL" and rng.random() < 0.3 else image.view
    lateral = any(other.view == "LATERAL" for other in study.images)
    portable = study.images[0].view == "AP"
    exam = (
        "CHEST (PORTABLE AP)"
        if portable and not lateral
        else "CHEST (PA AND LAT)"
        if lateral
        else "CHEST (SINGLE VIEW)"
    )
    return {
        "PerformedProcedureStepDescription": exam,
        "ViewPosition": "" if rng.random() < 0.04 else view,
        "Rows": shape[0],
        "Columns": shape[1],
        "StudyDate": study.when[0],
        "StudyTime": f"{study.when[1]}.{int(rng.integers(1000)):03d}",
        "ProcedureCodeSequence_CodeMeaning": exam,
        "ViewCodeSequence_CodeMeaning": "" if rng.random() < 0.04 else _VIEW_CODES[view],
        "PatientOrientationCodeSequence_CodeMeaning": "Recumbent" if portable and rng.random() < 0.3 else "Erect",
    }


def write_tables(root: Path, tables: Rows) -> None:
    """Write the compressed tables; both labelers of MIMIC-CXR read the same in these plain sentences."""
    for name, rows in tables.items():
        for table in ("chexpert", "negbio") if name == "chexpert" else (name,):
            write_table(root / f"mimic-cxr-2.0.0-{table}.csv.gz", rows)
