"""NIH ChestX-ray14: 112,120 frontal PNG, labels mined from reports, boxes for 880 of the images.

Expected under the raw directory, as downloaded (or one folder below it):

    Data_Entry_2017_v2020.csv or Data_Entry_2017.csv   Image Index, Finding Labels, Follow-up #, Patient ID,
                                                       View Position
    BBox_List_2017.csv                                 four numbers under the header `Bbox [x,y,w,h]`
    train_val_list.txt, test_list.txt                  the official lists
    images_001 ... images_012/images/*.png             or all in one folder, such as images/

The older csv ends every line with a comma and writes ages as 058Y. Boxes are in pixels of the published 1024 x 1024;
where the files are smaller they are reduced with them.
"""

import json
import math
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from vlp_bench.data.divisions import by_hash
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._recipes import enlarged
from vlp_bench.data.sources._tables import find, images, table
from vlp_bench.data.study import ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

ORIGIN = "It is at https://nihcc.app.box.com/v/ChestXray-NIHCC, and with the images on Kaggle (nih-chest-xrays/data)."
#: In the order of published lists; the last is no finding of its own.
LABELS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "No Finding",
)  # fmt: skip
SPELT = {name.lower(): name for name in LABELS} | {"infiltrate": "Infiltration"}
ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017*.csv*")
IMAGE, PATIENT, VISIT = "Image Index", "Patient ID", "Follow-up #"
SIDE = 1024
VAL = 0.1  # share of the patients of train_val_list.txt that become val
ANEW = {"train": 0.7, "val": 0.1, "test": 0.2}  # of all patients, where the official lists are missing


def read(raw_dir: Path, lists: str | None = None) -> Source:
    """Index the data set. The official lists are the split; a tenth of the patients in train_val is val.

    Args:
        raw_dir: holds the csv files and the folders of images.
        lists: a folder with published train, val and test lists, or one file of them.

    Raises:
        UserError: no csv, or not its columns, or no image; lists that name none of them.
    """
    path = find(raw_dir, *ENTRIES, *(f"*/{entry}" for entry in ENTRIES))
    if path is None:
        raise UserError(f"No Data_Entry_2017_v2020.csv or Data_Entry_2017.csv in {raw_dir}. {ORIGIN}")
    problems: list[Problem] = []
    there = images(raw_dir)
    rows = _rows(path, there, problems)
    if not rows:
        raise UserError(f"No image that {path.name} names is in {raw_dir} (images_001/images/*.png, ...). {ORIGIN}")
    boxes = _boxes(raw_dir, {row[IMAGE]: there[row[IMAGE]] for row in rows}, problems)
    split = _splits(raw_dir, rows, problems)
    visits: dict[tuple[str, str], list[ImageRef]] = defaultdict(list)
    for row in rows:
        visits[row[PATIENT], row[VISIT]].append(_image(row, there, tuple(boxes.get(row[IMAGE], ())), problems))
    studies = tuple(Study(f"{p}_{v}", p, split[p], tuple(refs)) for (p, v), refs in visits.items())
    ways = (_lists.read(Path(lists), {row[IMAGE]: row[IMAGE] for row in rows}),) if lists else ()
    return Source("nih", raw_dir, studies, LABELS, tuple(problems), ways)


def _rows(path: Path, there: dict[str, str], problems: list[Problem]) -> list[dict[str, str]]:
    """The rows whose image is there and whose patient is known, in the order of the csv."""
    listed = table(path, [IMAGE, "Finding Labels", VISIT, PATIENT, "View Position"], ORIGIN)
    found: list[dict[str, str]] = []
    seen: set[str] = set()
    for n, cells in enumerate(listed.to_dict("records"), 2):
        row = {str(key): str(value).strip() for key, value in cells.items()}
        name, where = row[IMAGE], f"{path.name} row {n}"
        stem = PurePosixPath(name).stem
        reason = (
            "no image is named" if not stem
            else "the image has a row already; the first counts" if stem in seen
            else f"no such image: {name}" if stem not in there
            else f"{PATIENT} is empty" if not row[PATIENT]
            else None
        )  # fmt: skip
        seen.add(stem)
        if reason:
            problems.append(Problem("row", where, reason))
            continue
        # padded with zeros in some copies
        found.append(row | {IMAGE: stem, PATIENT: row[PATIENT].lstrip("0") or "0", "where": where})
    return found


def _image(row: dict[str, str], there: dict[str, str], boxes: tuple[dict, ...], problems: list[Problem]) -> ImageRef:
    view = row["View Position"].upper()
    if view not in ("PA", "AP"):
        problems.append(Problem("view", row["where"], f"View Position is {view!r}, not PA or AP", lost=False))
        view = "FRONTAL"
    labels: dict[str, float] = dict.fromkeys(LABELS, 0.0)
    named = [name.strip() for name in row["Finding Labels"].split("|") if name.strip()]
    for name in named:
        if name.lower() in SPELT:
            labels[SPELT[name.lower()]] = 1.0
        else:
            problems.append(Problem("label", row["where"], f"not one of the 15 labels: {name}", lost=False))
    if not named:
        problems.append(Problem("label", row["where"], "Finding Labels is empty: unknown", lost=False))
    return ImageRef(row[IMAGE], there[row[IMAGE]], view, labels if named else None, boxes=boxes, extra=_person(row))


def _person(row: dict[str, str]) -> str:
    """Sex, and age in years; the older csv has 058Y, 013M and 004D, and a few of more than 120 years."""
    found: dict[str, str | int] = {}
    if sex := row.get("Patient Gender", row.get("Patient Sex", "")):
        found["sex"] = sex
    if age := re.fullmatch(r"(\d+)([YMD]?)", row.get("Patient Age", "").upper()):
        years = int(age[1]) // {"": 1, "Y": 1, "M": 12, "D": 365}[age[2]]
        if years <= 120:
            found["age"] = years
    return json.dumps(found) if found else ""


def _boxes(raw_dir: Path, known: dict[str, str], problems: list[Problem]) -> dict[str, list[dict]]:
    """Boxes of each image in pixels of its file."""
    path = find(raw_dir, "BBox_List_2017*.csv", "*/BBox_List_2017*.csv")
    if path is None:
        problems.append(Problem("no boxes", "BBox_List_2017.csv", f"not there: no boxes. {ORIGIN}", lost=False))
        return {}
    listed = table(path, [IMAGE, "Finding Label"], ORIGIN)
    if len(listed.columns) < 6:
        raise UserError(f"{path} lacks the four columns of `Bbox [x,y,w,h]` (it has {len(listed.columns)}). {ORIGIN}")
    found: dict[str, list[dict]] = defaultdict(list)
    # the commas of the header make columns of their own
    for n, (name, label, *cells) in enumerate(listed.iloc[:, :6].itertuples(index=False, name=None), 2):
        stem = PurePosixPath(name.strip()).stem
        spelt = SPELT.get(label.strip().lower())
        try:
            xywh = [float(cell) for cell in cells]
        except ValueError:
            xywh = [math.nan]
        reason = (
            f"no such image: {name}" if stem not in known
            else f"not one of the 15 labels: {label}" if spelt is None
            else f"no box: {', '.join(map(str, cells))}" if not all(map(math.isfinite, xywh)) or min(xywh[2:]) <= 0
            else None
        )  # fmt: skip
        if reason:
            problems.append(Problem("box", f"{path.name} row {n}", reason, lost=False))
            continue
        scale = enlarged(raw_dir / known[stem], SIDE, SIDE) * 2
        found[stem].append({"label": spelt, "xywh": [v * k for v, k in zip(xywh, scale, strict=True)]})
    return found


def _splits(raw_dir: Path, rows: list[dict[str, str]], problems: list[Problem]) -> dict[str, str]:
    """Split of each patient."""
    patients = list(dict.fromkeys(row[PATIENT] for row in rows))
    files = {name: find(raw_dir, name, f"*/{name}") for name in ("train_val_list.txt", "test_list.txt")}
    if missing := [name for name, path in files.items() if path is None]:
        shares = ", ".join(f"{share:.0%} {part}" for part, share in ANEW.items())
        reason = f"not there: patients are split anew ({shares}), no published number is on this test. {ORIGIN}"
        problems.append(Problem("no official split", " and ".join(missing), reason, lost=False))
        return by_hash(patients, ANEW)
    train, test = (_listed(path) for path in files.values() if path)
    held = {row[PATIENT] for row in rows if row[IMAGE] in test}
    if outside := [row[IMAGE] for row in rows if row[IMAGE] not in train and row[IMAGE] not in test]:
        reason = (
            f"{len(outside)} images (first: {outside[0]}) are in neither: each goes with its patient, else to train"
        )
        problems.append(Problem("in no list", " and ".join(files), reason, lost=False))
    train -= test
    if moved := [row[IMAGE] for row in rows if row[PATIENT] in held and row[IMAGE] in train]:
        reason = f"{len(moved)} images (first: {moved[0]}) of train_val are of patients in test: they go to test"
        problems.append(Problem("patient in two lists", " and ".join(files), reason, lost=False))
    drawn = by_hash(patients, {"train": 1 - VAL, "val": VAL, "test": 0.0})
    return {patient: "test" if patient in held else part for patient, part in drawn.items()}


def _listed(path: Path) -> set[str]:
    lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    return {PurePosixPath(line.split()[0]).stem for line in lines if line.strip()}
