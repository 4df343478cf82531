"""RSNA Pneumonia Detection Challenge, stage 2, with RSNA's mapping to NIH."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from vlp_bench.data.synthetic.world import SyntheticImage, SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save_dicom, write_table

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: What counts as pneumonia, as far as a box can be drawn.
OPACITIES = ("Consolidation", "Lung Opacity")


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    """Write the first frontal image of a study; give one row a box, or one without any."""
    image = study.frontal
    if image is None:
        return {}
    name = image_name(image)
    drawn = draw(job, image)
    boxes = [b["xywh"] for b in drawn.boxes if b["label"] in OPACITIES]
    rng = np.random.default_rng([image.seed, 5])
    uid = f"1.2.276.0.7230010.3.1.4.8323329.{rng.integers(1000, 32000)}.{image.seed}.{rng.integers(10**6)}"
    view = None if rng.random() < 0.05 else image.view
    save_dicom(
        job.root / "stage_2_train_images" / f"{name}.dcm", drawn.picture, encoding="jpeg", quality=job.quality,
        SpecificCharacterSet="ISO_IR 100", SOPClassUID=SECONDARY_CAPTURE, SOPInstanceUID=uid, Modality="CR",
        ConversionType="WSD", SeriesDescription=f"view: {image.view}", PatientID=name, PatientName=name,
        PatientSex=study.sex, PatientAge=str(study.age), BodyPartExamined="CHEST", ViewPosition=view,
        PixelSpacing=[0.143, 0.143], LossyImageCompression="01", LossyImageCompressionMethod="ISO_10918_1",
    )  # fmt: skip
    cells = [dict(zip(("x", "y", "width", "height"), map(float, box), strict=True)) | {"Target": 1} for box in boxes]
    healthy = not any(study.truth.values())
    kind = "Lung Opacity" if boxes else "Normal" if healthy else "No Lung Opacity / Not Normal"
    rows: list[dict] = list(cells) or [dict.fromkeys(("x", "y", "width", "height"), "") | {"Target": 0}]
    nih = f"{int(study.patient_id) % 10**7:08d}_{int(study.study_id) % 1000:03d}.png"
    return {
        "labels": [{"patientId": name} | row for row in rows],
        "classes": [{"patientId": name, "class": kind}] * len(rows),
        "mapping": [{"subset_img_id": name, "img_id": nih, "SOPInstanceUID": uid}],
    }


def image_name(image: SyntheticImage) -> str:
    """The image's id in the style of the challenge (a UUID)."""
    digits = image.image_id.replace("-", "")
    ends = (0, 8, 12, 16, 20, 32)
    return "-".join(digits[a:b] for a, b in pairwise(ends))


def write_tables(root: Path, tables: Rows) -> None:
    write_table(root / "stage_2_train_labels.csv", tables["labels"])
    write_table(root / "stage_2_detailed_class_info.csv", tables["classes"])
    mapping = json.dumps(tables["mapping"], indent=1)
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(mapping, "utf-8")
