"""COVID-19 Image Data Collection (ieee8023/covid-chestxray-dataset): images from publications, with what they say.

Expected under the raw directory, a clone of the repository (or one folder below it):

    metadata.csv   one row an image: patientid, offset, sex, age, finding, view, modality, filename, folder, notes
    images/        and volumes/, whose CT volumes are left out

Older copies write `COVID-19` instead of `Pneumonia/Viral/COVID-19`, `Patientid`, `notes` and have no modality.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from vlp_bench.data.divisions import by_hash
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._names import by_name, path_of
from vlp_bench.data.sources._tables import find, table
from vlp_bench.data.study import ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

ORIGIN = "It comes with a clone of https://github.com/ieee8023/covid-chestxray-dataset."
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
VIEWS = {"PA": "PA", "AP": "AP", "AP SUPINE": "AP", "APS": "AP", "AP ERECT": "AP", "L": "LATERAL"}
CT_VIEWS = {"AXIAL", "CORONAL", "CT"}
VIRUSES = ("COVID-19", "SARS", "MERS-CoV", "Varicella", "Influenza", "Herpes")
BACTERIA = (
    "Streptococcus", "Klebsiella", "Legionella", "Mycoplasma", "Nocardia", "Chlamydophila", "E.Coli",
    "Staphylococcus",
)  # fmt: skip
FUNGI = ("Pneumocystis", "Aspergillosis")
#: Older copies name the last part of a finding alone.
WHOLE = (
    {name: f"Pneumonia/Viral/{name}" for name in VIRUSES}
    | {name: f"Pneumonia/Bacterial/{name}" for name in BACTERIA}
    | {name: f"Pneumonia/Fungal/{name}" for name in FUNGI}
)
UNKNOWN = {"", "todo", "unknown"}


def read(raw_dir: Path, ct: bool = False, within: Sequence[str] | None = None, lists: str | None = None) -> Source:
    """Index the data set.

    Labels are the parts of the findings, such as Pneumonia, Viral and COVID-19. What a finding leaves open stays
    unknown: of a bare `Pneumonia` nobody knows whether it is viral.

    Args:
        raw_dir: holds metadata.csv.
        ct: take slices of CT as well, as published lists have them; volumes (nii) never.
        within: labels; only images that have one of them, and not several, are taken.
        lists: a folder with published train, val and test lists.

    Raises:
        UserError: no metadata.csv or not its columns, no folder of images, a label that no
            finding has; lists that name none of the images.
    """
    path = find(raw_dir, "metadata.csv", "*/metadata.csv")
    rows = table(path or raw_dir / "metadata.csv", [], ORIGIN)
    rows.columns = [c.strip().lower().replace(" ", "_") for c in rows.columns]
    needed = ("patientid", "finding", "view", "filename")
    if missing := [c for c in needed if c not in rows]:
        raise UserError(f"{path} lacks the column {missing[0]} (it has {', '.join(rows.columns[:8])}). {ORIGIN}")
    for column in ("offset", "date", "modality", "folder", "sex", "age", "clinical_notes"):
        if column not in rows:
            rows[column] = rows["notes"] if column == "clinical_notes" and "notes" in rows else ""
    problems: list[Problem] = []
    rows = _usable(rows.apply(lambda column: column.str.strip()), (path or raw_dir).parent, raw_dir, ct, problems)
    above = _above(rows["finding"])
    rows = _within(rows, within, above, problems) if within else rows
    splits = by_hash(rows["patientid"], SHARES)
    studies = []
    counts: dict[str, int] = {}
    for (patient, *_), group in rows.groupby(["patientid", "offset", "date"], sort=False):
        counts[patient] = counts.get(patient, 0) + 1
        studies.append(_study(f"{patient}.{counts[patient]}", patient, splits[patient], group, above))
    ways = [_lists.read(Path(lists), {i: i for i in rows["filename"]})] if lists else []
    return Source("covid_idc", raw_dir, tuple(studies), tuple(above), tuple(problems), tuple(ways))


def _usable(rows: pd.DataFrame, base: Path, raw_dir: Path, ct: bool, problems: list[Problem]) -> pd.DataFrame:
    """The rows of radiographs that are there, each with its path."""
    folders = {name: by_name(raw_dir, base / name) for name in {*rows["folder"], "images"} if name}
    if not any(files for name, files in folders.items() if name != "volumes"):
        raise UserError(f"No images in {base / 'images'}. {ORIGIN}")
    kept, seen = [], set()
    left_out: dict[str, int] = {}
    for n, row in zip(rows.index, rows.to_dict("records"), strict=True):
        name, where = row["filename"], f"metadata.csv row {n + 2}"
        kind = _kind(row)
        path = path_of(name, folders.get(row["folder"], {}), folders["images"])
        if kind == "volume" or (kind == "CT" and not ct):
            left_out[kind] = left_out.get(kind, 0) + 1
        elif not (name and row["patientid"]):
            problems.append(Problem("no id", where, "patientid or filename is empty"))
        elif name in seen:
            problems.append(Problem("duplicate", where, f"{name} has a row already; the first counts"))
        elif path is None:
            problems.append(Problem("no image", where, f"no such image: {name}"))
        else:
            if row["finding"].lower() in UNKNOWN:
                problems.append(Problem("no finding", where, f"finding={row['finding']!r}: no labels", lost=False))
            kept.append(row | {"path": path})
        seen.add(name)
    for kind, count in sorted(left_out.items()):
        reason = f"{count} rows are {kind}, no radiographs: left out" + (
            " (ct=true takes them)" if kind == "CT" else ""
        )
        problems.append(Problem("no radiograph", "metadata.csv", reason, lost=False))
    if not kept:
        raise UserError(f"{base / 'metadata.csv'} names no radiograph that is there. {ORIGIN}")
    return pd.DataFrame(kept)


def _kind(row: dict[str, str]) -> str:
    """Radiograph, CT or volume."""
    if row["filename"].lower().endswith((".nii", ".nii.gz")) or row["folder"] == "volumes":
        return "volume"
    return "CT" if row["modality"].upper() == "CT" or row["view"].upper() in CT_VIEWS else "radiograph"


def _findings(cell: str) -> list[list[str]]:
    """Each finding of a row as its parts, from the general to the particular; older copies name several."""
    ones = [one.strip() for one in cell.split(",")]
    return [WHOLE.get(one, one).split("/") for one in ones if one.lower() not in UNKNOWN]


def _above(cells: Iterable[str]) -> dict[str, set[str]]:
    """Every label, and those that lie above it."""
    found: dict[str, set[str]] = {}
    for path in (path for cell in set(cells) for path in _findings(cell)):
        for n, part in enumerate(path):
            found.setdefault(part, set()).update(path[:n])
    return dict(sorted(found.items()))


def _values(cell: str, above: dict[str, set[str]]) -> dict[str, float]:
    """1 for what a finding names, 0 for what it rules out, nothing for what it leaves open."""
    paths = _findings(cell)
    named, ends = {part for path in paths for part in path}, {path[-1] for path in paths}
    open_ = {name for name, over in above.items() if over & ends} - named
    return {name: float(name in named) for name in above if paths and name not in open_}


def _within(
    rows: pd.DataFrame, labels: Sequence[str], above: dict[str, set[str]], problems: list[Problem]
) -> pd.DataFrame:
    """The rows whose finding has one of the labels."""
    if strange := sorted(set(labels) - set(above)):
        raise UserError(f"within={', '.join(labels)}: no finding has {strange[0]}. There are: {', '.join(above)}.")
    inside = rows["finding"].map(lambda cell: sum(_values(cell, above).get(label, 0) == 1 for label in labels) == 1)
    reason = f"{int((~inside).sum())} rows have none of {', '.join(labels)}, or several of them: left out (within)"
    problems.append(Problem("outside", "metadata.csv", reason, lost=False))
    return rows[inside]


def _study(study_id: str, patient: str, split: str, rows: pd.DataFrame, above: dict[str, set[str]]) -> Study:
    images = []
    for row in rows.to_dict("records"):
        view = VIEWS.get(row["view"].upper(), row["view"].upper())
        extra = json.dumps({k: row[k] for k in ("sex", "age", "view", "finding") if row[k]})
        images.append(ImageRef(row["filename"], row["path"], view, _values(row["finding"], above), extra=extra))
    notes = "\n".join(dict.fromkeys(filter(None, rows["clinical_notes"])))
    return Study(study_id, patient, split, tuple(images), None, notes)
