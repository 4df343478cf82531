"""MIMIC-CXR-JPG 2.x with the reports of MIMIC-CXR: the only file that knows their layout.

Expected under the raw directory, as downloaded (each csv may be gzipped or not):

    mimic-cxr-2.*-metadata.csv.gz   one row an image: dicom_id, subject_id, study_id, ViewPosition
    mimic-cxr-2.*-split.csv.gz      the official split
    mimic-cxr-2.*-chexpert.csv.gz   CheXpert labels of the studies
    files/p10/p10000032/s50414267/<dicom_id>.jpg
    files/... or mimic-cxr-reports/files/...   p10/p10000032/s50414267.txt
"""

from pathlib import Path

import pandas as pd

from vlp_bench.data.study import ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
REPORT_ROOTS = ("mimic-cxr-reports/files", "reports/files", "files")


def read(raw_dir: Path) -> Source:
    """Index the data set; files are opened later, one study at a time.

    Raises:
        UserError: a table or a column is missing, or nothing is left.
    """
    metadata = _table(raw_dir, "metadata", ["dicom_id", "subject_id", "study_id", "ViewPosition"])
    split = _table(raw_dir, "split", ["dicom_id", "split"])
    chexpert = _table(raw_dir, "chexpert", ["study_id"])
    images = metadata.merge(split[["dicom_id", "split"]], on="dicom_id", how="left")
    problems = [
        Problem("no split", f"dicom_id {row.dicom_id}", "the split table has no row for this image")
        for row in images[images["split"].isna()].itertuples()
    ]
    images = images.dropna(subset="split").sort_values(["subject_id", "study_id", "dicom_id"])
    names = tuple(c for c in chexpert.columns if c not in ("subject_id", "study_id"))
    values = chexpert.drop_duplicates("study_id").set_index("study_id")[list(names)].astype(float)
    labels = {str(k): row for k, row in zip(values.index, values.to_dict("records"), strict=True)}
    root = next((r for r in REPORT_ROOTS if any((raw_dir / r).glob("p*/p*/s*.txt"))), None)
    if root is None:
        raise UserError(
            f"No report text under {raw_dir} (looked for p*/p*/s*.txt in {', '.join(REPORT_ROOTS)}). "
            "Unpack mimic-cxr-reports.zip there."
        )
    studies = []
    for (patient, study), rows in images.groupby(["subject_id", "study_id"], sort=True):
        splits = sorted(set(rows["split"]))
        if len(splits) > 1 or splits[0] not in SPLIT_NAMES:
            problems.append(Problem("split", f"study_id {study}", f"its images are in the splits {splits}"))
            continue
        stem = f"p{str(patient)[:2]}/p{patient}/s{study}"
        refs = tuple(
            ImageRef(row.dicom_id, f"files/{stem}/{row.dicom_id}.jpg", str(row.ViewPosition or "").strip().upper())
            for row in rows.itertuples()
        )
        known = {k: v for k, v in labels.get(str(study), {}).items() if v == v}
        if str(study) not in labels:
            problems.append(
                Problem("no labels", f"study_id {study}", "the chexpert table has no row for it", lost=False)
            )
        studies.append(Study(str(study), str(patient), SPLIT_NAMES[splits[0]], refs, f"{root}/{stem}.txt", None, known))
    return Source("mimic_cxr", raw_dir, tuple(studies), names, tuple(problems))


def _table(raw_dir: Path, name: str, columns: list[str]) -> pd.DataFrame:
    found = sorted(raw_dir.glob(f"mimic-cxr-2*-{name}.csv*"))
    if not found:
        raise UserError(
            f"No mimic-cxr-2.*-{name}.csv.gz in {raw_dir}. It comes with MIMIC-CXR-JPG (PhysioNet); "
            "data.raw_dir must be the folder that holds it."
        )
    table = pd.read_csv(found[-1], dtype={"ViewPosition": "string"})
    if missing := [c for c in columns if c not in table.columns]:
        raise UserError(f"{found[-1]} lacks the column {missing[0]} (it has {', '.join(table.columns[:6])}, ...).")
    return table.fillna({"ViewPosition": ""}) if "ViewPosition" in table else table
