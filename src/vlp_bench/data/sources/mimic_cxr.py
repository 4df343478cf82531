"""MIMIC-CXR-JPG 2.x with the reports of MIMIC-CXR: the only file that knows their layout.

Expected under the raw directory, as downloaded (each csv may be gzipped or not):

    mimic-cxr-2.*-metadata.csv.gz   one row an image: dicom_id, subject_id, study_id, ViewPosition
    mimic-cxr-2.*-split.csv.gz      the official split
    mimic-cxr-2.*-chexpert.csv.gz   CheXpert labels of the studies
    files/p10/p10000032/s50414267/<dicom_id>.jpg
    files/... or mimic-cxr-reports/files/...   p10/p10000032/s50414267.txt

Release 2.1.0 has the tables under the names of 2.0.0, and mimic-cxr-2.1.0-test-set-labeled.csv, which is not read.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from vlp_bench.data.divisions import parts
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._five import FIVE, MORE, exclusive
from vlp_bench.data.study import FRONTAL, Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
REPORT_ROOTS = ("mimic-cxr-reports/files", "reports/files", "files")
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip

MGCA = (
    "MGCA: validate and test are both val; frontal only, without the studies whose reports are cut by hand. Those "
    "without findings and impression, which its code leaves out too, are here"
)
REFERS = (
    "REFERS: its validation list is the held-out test set. That this is validate and test together is inferred from "
    "their size (4,673 studies with a report of three words or more)"
)
OWN_FIVE = (
    "Our draw (random_state 0) of the first frontal image of studies of all splits, most of them training studies; "
    "the split without_5x200 is for training that has not seen them. BenchX's list goes in data.reader.lists"
)


def read(
    raw_dir: Path,
    reports: str | None = None,
    blank: str = "unknown",
    complete: bool = True,
    lists: str | None = None,
) -> Source:
    """Index the data set; files are opened later, one study at a time.

    Args:
        raw_dir: the folder of MIMIC-CXR-JPG.
        reports: the folder into which mimic-cxr-reports.zip was unpacked, where it is not in `raw_dir`.
        blank: what an empty label means: `unknown`, or `absent`, as published code has it.
        complete: every image and report that the tables name should be here; False takes the images that are, with
            the reports that are, and says what is not.
        lists: a folder or a file of published lists, for the division `lists`.

    Raises:
        UserError: a table or a column is missing, a label is no number, there is no report at all, or many patients
            are missing; an unknown option.
    """
    if blank not in ("unknown", "absent"):
        raise UserError(f"data.reader.blank={blank}: expected unknown or absent.")
    problems: list[Problem] = []
    images = _images(raw_dir, problems)
    names, labels = _labels(raw_dir, problems)
    if blank == "absent":
        labels = {study: {k: 0.0 if v != v else v for k, v in row.items()} for study, row in labels.items()}
    root = _report_root(raw_dir, reports, complete)
    if complete:
        _refuse_a_part(raw_dir, images)
    studies, special = [], special_cases()
    for (patient, study), rows in images.groupby(["subject_id", "study_id"], sort=True):
        splits = sorted(set(rows["split"]))
        if len(splits) > 1 or splits[0] not in SPLIT_NAMES:
            reason = f"its images are in the splits {', '.join(splits)}; expected one of {', '.join(SPLIT_NAMES)}"
            problems.append(Problem("split", f"study_id {study}", reason))
            continue
        stem = _stem(patient, study)
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
    if not complete:
        studies = _what_is_here(raw_dir, studies, problems)
    divisions = _divisions(studies, names)
    if lists:
        divisions.append(_lists.read(Path(lists), _listed_names(studies)))
    return Source("mimic_cxr", raw_dir, tuple(studies), names, tuple(problems), tuple(divisions))


def special_cases() -> dict[str, str | tuple[int, int]]:
    """Where oddly written reports have their conclusion, by study: in a section, or from one character to another.

    Facts of MIMIC-CXR's own code (MIT-LCP/mimic-cxr, section_parser.py); of some it says that there is none: (0, 0).
    """
    table = pd.read_csv(files("vlp_bench.data") / "assets" / "mimic_cxr_special_cases.txt", comment="#", dtype=str)
    rows = zip(table["study_id"], table["section"], table["start"], table["stop"], strict=True)
    return {study: name if isinstance(name, str) else (int(start), int(stop)) for study, name, start, stop in rows}


def _stem(patient: str, study: str) -> str:
    return f"p{patient[:2]}/p{patient}/s{study}"


def _report_root(raw_dir: Path, reports: str | None, complete: bool) -> str:
    """Where the reports lie, relative to `raw_dir`."""
    if reports:
        folder = Path(os.path.relpath(raw_dir / reports, raw_dir))
        roots = [str(folder / "files"), str(folder / "mimic-cxr-reports" / "files"), str(folder)]
    else:
        roots = list(REPORT_ROOTS)
    found = next((r for r in roots if any((raw_dir / r).glob("p*/p*/s*.txt"))), None)
    if found is None and complete:
        raise UserError(
            f"No report text under {raw_dir} (looked for p*/p*/s*.txt in {', '.join(roots)}). "
            "Unpack mimic-cxr-reports.zip there, or name the folder in which it was unpacked: data.reader.reports=..."
        )
    return found or roots[0]


def _refuse_a_part(raw_dir: Path, images: pd.DataFrame) -> None:
    """Refuse a download of which more than one patient in twenty is missing; fewer are told image by image."""
    named = images["subject_id"].unique()
    here = {entry.name for group in sorted((raw_dir / "files").glob("p*")) for entry in os.scandir(group)}
    missing = [patient for patient in named if f"p{patient}" not in here]
    if len(missing) > 0.05 * len(named):
        groups = sorted({f"p{patient[:2]}" for patient in missing})
        raise UserError(
            f"{len(missing)} of {len(named)} patients have no folder in {raw_dir / 'files'} (those of "
            f"{', '.join(groups)}). Download the rest of MIMIC-CXR-JPG, or take what is here with "
            "data.reader.complete=false."
        )


def _what_is_here(raw_dir: Path, studies: Sequence[Study], problems: list[Problem]) -> list[Study]:
    """The studies with the images and the report that are here."""
    kept = []
    for study in studies:
        images = tuple(i for i in study.images if (raw_dir / i.path).is_file())
        told = study.report_path and (raw_dir / study.report_path).is_file()
        if images:
            kept.append(replace(study, images=images, report_path=study.report_path if told else None))
    counts = [sum(len(s.images) for s in some) for some in (studies, kept)]
    silent = sum(s.report_path is None for s in kept)
    for missing, what in (
        (counts[0] - counts[1], f"of {counts[0]} images have no file ({len(studies) - len(kept)} studies have none)"),
        (silent, f"of {len(kept)} studies with images have no report file"),
    ):
        if missing:
            problems.append(Problem("not here", str(raw_dir / "files"), f"{missing} {what}", lost=False))
    return kept


def _divisions(studies: Sequence[Study], names: Sequence[str]) -> list[Division]:
    """Divisions of the official split as methods took it, and 5x200 of all studies."""
    views = [(s, i) for s in studies for i in s.images]
    plain = [(s, i) for s, i in views if s.conclusion is None]
    held = {"val": "val", "test": "val"}
    found = [
        Division("mgca", {i.image_id: held.get(s.split, "train") for s, i in plain if i.view in FRONTAL}, MGCA),
        Division("refers", {i.image_id: "train" if s.split == "train" else "val test" for s, i in views}, REFERS),
    ]
    first = {s.study_id: next((i.image_id for i in s.images if i.view in FRONTAL), None) for s in studies}
    values = np.array([[s.labels.get(name, np.nan) for name in names] for s in studies]).reshape(len(studies), -1)
    fits = np.array([first[s.study_id] is not None and s.report_path is not None for s in studies], bool)
    if not set(FIVE) <= set(names):
        return found
    ids, owners = [s.study_id for s in studies], [s.patient_id for s in studies]
    test, val = exclusive(ids, owners, names, values, fits)
    if test:
        drawn = parts([], *([first[i] or "" for i in part] for part in (val, test)))
        chosen = set(test)
        owned = {owner for i, owner in zip(ids, owners, strict=True) if i in chosen}
        left = {i.image_id: s.split for s, i in views if s.patient_id not in owned}
        origin = f"{len(test) // len(FIVE)} of each class; val, to choose prompts on: {MORE} more. {OWN_FIVE}"
        found += [Division("5x200", drawn, origin)]
        found += [Division("without_5x200", left, "the own split, but no patient of 5x200")]
    return found


def _listed_names(studies: Sequence[Study]) -> Mapping[str, Sequence[str]]:
    """Images by the names that lists use: an image's id, a study's id or folder."""
    known: dict[str, Sequence[str]] = {}
    for study in studies:
        ids = [i.image_id for i in study.images]
        known |= {i: [i] for i in ids}
        known |= dict.fromkeys((study.study_id, f"s{study.study_id}"), ids)
    return known


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
