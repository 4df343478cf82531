"""A plain folder with `metadata.csv`, as a user's own images."""

import json
from dataclasses import asdict
from pathlib import Path

from vlp_bench.data.synthetic.world import SyntheticStudy
from vlp_bench.data.synthetic.writing import Drawn, Job, Rows, draw, save_jpeg, save_png, write_table

LICENCE = "CC0-1.0 synthetic"
ORIGIN = {"origin": "synthetic"}


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    """Write the images and masks of a study; give its rows of ``metadata.csv``, one for each image."""
    labels = "|".join(name for name, present in study.truth.items() if present) or "No Finding"
    extra = {"sex": study.sex, "age": study.age, "questions": [asdict(question) for question in study.questions]}
    rows = []
    for image in study.images:
        drawn = draw(job, image)
        height, width = drawn.picture.shape
        path = f"images/{image.image_id}.jpg"
        save_jpeg(job.root / path, drawn.picture, job.quality)
        rows.append(
            {
                "image_path": path,
                "study_id": study.study_id,
                "patient_id": study.patient_id,
                "view": image.view,
                "report_text": study.report,
                "labels": labels,
                "licence": LICENCE,
                "split": "val" if study.split == "validate" else study.split,
                "source": "synthetic",
                "boxes_json": json.dumps([box | ORIGIN for box in drawn.boxes]),
                "masks_json": json.dumps(_write_masks(job, image.image_id, drawn)),
                "width": width,
                "height": height,
                "extra_json": json.dumps(extra),
            }
        )
    return {"metadata": rows}


def _write_masks(job: Job, image_id: str, drawn: Drawn) -> list[dict]:
    found = []
    for label, mask in drawn.masks.items():
        if mask.any():
            path = f"masks/{image_id}_{label.lower().replace(' ', '-')}.png"
            save_png(job.root / path, mask)
            found.append({"label": label, "path": path} | ORIGIN)
    return found


def write_tables(root: Path, tables: Rows) -> None:
    write_table(root / "metadata.csv", tables["metadata"])
