"""MIMIC-CXR-JPG 2.x with the reports of MIMIC-CXR: the only file that knows their layout.

Expected under the raw directory, as downloaded (each csv may be gzipped or not):

    mimic-cxr-2.*-metadata.csv.gz   one row an image: dicom_id, subject_id, study_id, ViewPosition
    mimic-cxr-2.*-split.csv.gz      the official split
    mimic-cxr-2.*-chexpert.csv.gz   CheXpert labels of the studies
    files/p10/p10000032/s50414267/<dicom_id>.jpg
    files/... or mimic-cxr-reports/files/...   p10/p10000032/s50414267.txt
"""

import zlib
from importlib.resources import files
from pathlib import Path

import pandas as pd

from vlp_bench.data.study import ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
REPORT_ROOTS = ("mimic-cxr-reports/files", "reports/files", "files")
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip


def read(raw_dir: Path) -> Source:
    """Index the data set; files are opened later, one study at a time.

    Raises:
        UserError: a table or a column is missing, a label is no number, or there is no report at all.
    """
    problems: list[Problem] = []
    images = _images(raw_dir, problems)
    names, labels = _labels(raw_dir, problems)
    root = next((r for r in REPORT_ROOTS if any((raw_dir / r).glob("p*/p*/s*.txt"))), None)
    if root is None:
        raise UserError(
            f"No report text under {raw_dir} (looked for p*/p*/s*.txt in {', '.join(REPORT_ROOTS)}). "
            "Unpack mimic-cxr-reports.zip there."
        )
    studies, special = [], special_cases()
    for (patient, study), rows in images.groupby(["subject_id", "study_id"], sort=True):
        splits = sorted(set(rows["split"]))
        if len(splits) > 1 or splits[0] not in SPLIT_NAMES:
            reason = f"its images are in the splits {', '.join(splits)}; expected one of {', '.join(SPLIT_NAMES)}"
            problems.append(Problem("split", f"study_id {study}", reason))
            continue
        stem = f"p{patient[:2]}/p{patient}/s{study}"
        refs = tuple(
            ImageRef(name, f"files/{stem}/{name}.jpg", view.strip().upper())
            for name, view in zip(rows["dicom_id"], rows["ViewPosition"], strict=True)
        )
        if study not in labels:
            problems.append(
                Problem("no labels", f"study_id {study}", "the chexpert table has no row for it", lost=False)
            )
        known = {k: v for k, v in labels.get(study, {}).items() if v == v}
        report, place = f"{root}/{stem}.txt", special.get(study)
        studies.append(Study(study, patient, SPLIT_NAMES[splits[0]], refs, report, None, place, known))
    return Source("mimic_cxr", raw_dir, tuple(studies), names, tuple(problems))


def special_cases() -> dict[str, str | tuple[int, int]]:
    """Where oddly written reports have their conclusion, by study: in a section, or from one character to another.

    Facts of MIMIC-CXR's own code (MIT-LCP/mimic-cxr, section_parser.py); of some it says that there is none: (0, 0).
    """
    table = pd.read_csv(files("vlp_bench.data") / "assets" / "mimic_cxr_special_cases.txt", comment="#", dtype=str)
    rows = zip(table["study_id"], table["section"], table["start"], table["stop"], strict=True)
    return {study: name if isinstance(name, str) else (int(start), int(stop)) for study, name, start, stop in rows}


def _images(raw_dir: Path, problems: list[Problem]) -> pd.DataFrame:
    """One row an image of which patient, study and split are known."""
    path, metadata = _table(raw_dir, "metadata", ["dicom_id", "subject_id", "study_id", "ViewPosition"])
    _, split = _table(raw_dir, "split", ["dicom_id", "split"])
    ids = ["dicom_id", "subject_id", "study_id"]
    for place in metadata.index[(metadata[ids] == "").any(axis=1)]:
        problems.append(Problem("no id", f"{path.name} row {place + 2}", f"one of {', '.join(ids)} is empty"))
    metadata = metadata[(metadata[ids] != "").all(axis=1)]
    for name in metadata["dicom_id"][metadata.duplicated("dicom_id")]:
        problems.append(Problem("duplicate", f"dicom_id {name}", f"more than one row in {path.name}: the first counts"))
    metadata = metadata.drop_duplicates("dicom_id")
    split = split[["dicom_id", "split"]].drop_duplicates("dicom_id")
    images = metadata.merge(split, on="dicom_id", how="left").fillna({"split": ""})
    for name in images["dicom_id"][images["split"] == ""]:
        problems.append(Problem("no split", f"dicom_id {name}", "the split table has no split for this image"))
    return images[images["split"] != ""].sort_values(["subject_id", "study_id", "dicom_id"])


def _labels(raw_dir: Path, problems: list[Problem]) -> tuple[tuple[str, ...], dict[str, dict[str, float]]]:
    """The names of the labels, and the values of each study: nan where the cell is empty."""
    path, table = _table(raw_dir, "chexpert", ["study_id"])
    names = tuple(c for c in table.columns if c in LABELS)
    for column in table.columns:
        if column not in (*LABELS, "subject_id", "study_id"):
            reason = "not one of the fourteen CheXpert labels: left out"
            problems.append(Problem("unknown column", f"{path.name} column {column}", reason, lost=False))
    table = table.drop_duplicates("study_id").set_index("study_id")[list(names)]
    values = table.apply(lambda column: pd.to_numeric(column, errors="coerce"))
    odd = (values.isna() & (table != "")) | ~(values.isna() | values.isin([-1, 0, 1]))
    if odd.any(axis=None):
        study, label = odd.stack()[lambda cells: cells].index[0]
        raise UserError(
            f"{path}: study_id {study} has {label}={table.loc[study, label]!r}. A label is 1, 0, -1 or empty."
        )
    return names, dict(zip(values.index, values.to_dict("records"), strict=True))


def _table(raw_dir: Path, name: str, columns: list[str]) -> tuple[Path, pd.DataFrame]:
    """A csv with every cell as it is written, nothing where it is empty."""
    found = sorted(raw_dir.glob(f"mimic-cxr-2*-{name}.csv*"))
    if not found:
        raise UserError(
            f"No mimic-cxr-2.*-{name}.csv.gz in {raw_dir}. It comes with MIMIC-CXR-JPG (PhysioNet); "
            "data.raw_dir must be the folder that holds it."
        )
    try:
        table = pd.read_csv(found[-1], dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{found[-1]} cannot be read ({error}). Download it again.") from error
    if missing := [c for c in columns if c not in table.columns]:
        raise UserError(f"{found[-1]} lacks the column {missing[0]} (it has {', '.join(table.columns[:6])}, ...).")
    return found[-1], table
