"""COVIDx CXR-4: lists of two classes with blanks in file names and patients in two lists; beside them those of 9A."""

from pathlib import Path

import numpy as np

from vlp_bench.data.synthetic.world import SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save_jpeg, save_png

_COHORTS = ("cohen", "rsna", "ricord", "bimcv", "stonybrook")
#: Findings that stand for COVID-19 and for another pneumonia.
COVID, PNEUMONIA = "Lung Opacity", "Consolidation"


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    image = study.frontal
    if image is None:
        return {}
    rng = np.random.default_rng([image.seed, 5])
    part = {"validate": "val"}.get(study.split, study.split)
    if part == "test" and rng.random() < 0.3:
        part = "train"  # some patients are in two lists
    cohort = _COHORTS[int(rng.integers(len(_COHORTS)))]
    suffix = (".png", ".jpg", ".jpeg", ".JPG")[int(rng.choice(4, p=[0.7, 0.15, 0.1, 0.05]))]
    stem = f"COVID ({study.study_id})" if rng.random() < 0.1 else f"{cohort}-{study.study_id}.annot.original"
    path, picture = job.root / part / f"{stem}{suffix}", draw(job, image).picture
    if suffix == ".png":
        save_png(path, picture)
    else:
        save_jpeg(path, picture, job.quality)
    row = {"patient": study.patient_id, "file": path.name, "class": classified(study), "cohort": cohort}
    return {part: [row]}


def classified(study: SyntheticStudy) -> str:
    """One of three classes."""
    if study.truth[COVID]:
        return "COVID-19"
    return "pneumonia" if study.truth[PNEUMONIA] else "normal"


def write_tables(root: Path, tables: Rows) -> None:
    for part in ("train", "val", "test"):
        rows = tables.get(part, [])
        (root / part).mkdir(exist_ok=True)
        _list(root / f"{part}.txt", rows, {"COVID-19": "positive", "pneumonia": "negative", "normal": "negative"})
    _list(root / "train_COVIDx9A.txt", tables.get("train", []) + tables.get("val", []))
    _list(root / "test_COVIDx9A.txt", tables.get("test", []))


def _list(path: Path, rows: list[dict], names: dict[str, str] | None = None) -> None:
    named = names or {}
    lines = [f"{r['patient']} {r['file']} {named.get(r['class'], r['class'])} {r['cohort']}" for r in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
