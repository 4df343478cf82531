"""CheXpert-v1.0 and CheXpert-v1.0-small: the only file that knows their layout.

Expected as downloaded; the raw directory is the folder of the data set or the one that holds it:

    train.csv, valid.csv            Path, Sex, Age, Frontal/Lateral, AP/PA and the 14 labels: 1.0, 0.0, -1.0 or blank
    train/patient00001/study1/view1_frontal.jpg, valid/...
    CheXpert-v1.0 batch 2 (train 1)/patient00001/...      the full download, one folder an archive
    test_labels.csv or groundtruth.csv, test/patient64741/...   the test set released later; only with test=released
    df_chexpert_plus_240401.csv     the reports of CheXpert Plus, where there are any

The labels of train.csv are a labeler's, those of valid.csv and of the test set are radiologists'.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlp_bench.data.divisions import by_hash, parts, sampled
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._five import EACH, FIVE, MORE, exclusive
from vlp_bench.data.sources._tables import find_below, table
from vlp_bench.data.study import Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
PARTS = ("train", "valid", "test")
#: patients of the training csv who are validation where nobody asks for a published division
VAL = 0.025
ORIGIN = "It comes with CheXpert (https://stanfordaimi.azurewebsites.net); data.raw_dir is its folder or the one above."
MGCA = (
    "MGCA's and GLoRIA's preprocessing: 5x200 removed, 5,000 rows as val, official valid as test; frontal only. It "
    "picks val by place and drops it by row number, so that some images are train and val at once; GLoRIA had no seed"
)
#: rows that MGCA's code takes as val
VALID_ROWS = 5000
PLACE = re.compile(r"(?:.*/)?(patient\d+)/(study\d+)/([^/]+)$")


def read(
    raw_dir: Path, test: str = "valid", blank: str = "unknown", complete: bool = True, lists: str | None = None
) -> Source:
    """Index the data set.

    Args:
        raw_dir: the folder of the data set, or the one that holds it.
        test: what the own split tests on: `valid`, the official validation set, as published numbers do (validation is
            then a fortieth of the training patients), or `released`, the test set of 500 patients that was released
            later (validation is then the official one).
        blank: what an empty cell of train.csv means: `unknown`, or `absent`, as published code has it.
        complete: refuse a download of which patients are missing; False takes those who are here.
        lists: a folder or a file of published lists, for the division `lists`.

    Raises:
        UserError: a table or column is missing, or patients are; an option that is not known.
    """
    for name, value, allowed in (("test", test, ("valid", "released")), ("blank", blank, ("unknown", "absent"))):
        if value not in allowed:
            raise UserError(f"data.reader.{name}={value}: expected one of {', '.join(allowed)}.")
    problems: list[Problem] = []
    home = _home(raw_dir)
    places = _places(raw_dir, home)
    train, valid = (_table(home / f"{part}.csv", part) for part in ("train", "valid"))
    tables = {"train": train, "valid": valid}
    if test == "released":
        tables["test"] = _released(raw_dir, places)
    rows = pd.concat([_rows(t, part, problems) for part, t in tables.items()], ignore_index=True)
    values = _values(pd.concat([t[list(LABELS)] for t in tables.values()], ignore_index=True), rows, problems)
    if blank == "absent":
        values[rows["part"].to_numpy() == "train"] = np.nan_to_num(values[rows["part"].to_numpy() == "train"])
    usable = _usable(rows, problems) & _present(rows, places, complete, problems)
    splits = _splits(rows[usable], test)
    texts = _reports(raw_dir, problems)
    studies = tuple(_studies(rows[usable], values[usable], splits, places, texts))
    divisions = _divisions(rows, values, usable, splits)
    if lists:
        named = {name: (i,) for i in rows["id"][usable] for name in (i, i.rpartition(".")[0])}
        divisions.append(_lists.read(Path(lists), named))
    return Source("chexpert", raw_dir, studies, LABELS, tuple(problems), tuple(divisions))


# Files ----------------------------------------------------------------------------------------------------------------


def _home(raw_dir: Path) -> Path:
    """The folder with train.csv."""
    found = sorted({p.parent for pattern in ("", "*/", "*/*/") for p in raw_dir.glob(f"{pattern}train.csv")})
    if not found:
        raise UserError(f"No train.csv in {raw_dir} nor in a folder of it. {ORIGIN}")
    if len(found) > 1:
        raise UserError(
            f"{raw_dir} holds several copies of CheXpert: {', '.join(f.name for f in found)}. "
            "Give the folder of one of them as data.raw_dir."
        )
    return found[0]


def _places(raw_dir: Path, home: Path) -> dict[tuple[str, str], str]:
    """The folder of each patient of each part, relative to `raw_dir`; that beside the tables counts before others."""
    found: dict[tuple[str, str], str] = {}
    for top in dict.fromkeys((home, raw_dir)):
        for place, folders, _ in os.walk(top):
            folders.sort()
            patients = [f for f in folders if f.startswith("patient")]
            if patients:
                relative = os.path.relpath(place, raw_dir)
                # the folder's own name tells before those above it, as in "batch 1 (validate & csv)/valid"
                part = next((p for n in reversed(relative.lower().split(os.sep)) for p in PARTS if p in n), "")
                for patient in patients:
                    found.setdefault((part, patient), os.path.join(relative, patient))
            deep = len(Path(place).relative_to(top).parts) >= 3
            folders[:] = [] if deep else [f for f in folders if not f.startswith("patient")]
    return found


def _table(path: Path, part: str) -> pd.DataFrame:
    return table(path, ["Path", "Frontal/Lateral", "AP/PA", *LABELS], ORIGIN)


def _released(raw_dir: Path, places: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """The released test set; its table names images (test_labels.csv) or studies (groundtruth.csv)."""
    path = find_below(raw_dir, "test_labels.csv", "test.csv", "groundtruth.csv")
    origin = "The released test set comes with CheXlocalize (Stanford AIMI); without it leave data.reader.test=valid."
    if path is None:
        raise UserError(f"No test_labels.csv nor groundtruth.csv in {raw_dir}. {origin}")
    rows = table(path, list(LABELS), origin)
    if "Path" not in rows:
        if "Study" not in rows:
            raise UserError(
                f"{path} lacks the columns Path and Study: it does not say which images it labels. {origin}"
            )
        rows["Path"] = [list(_views(raw_dir, study, places)) for study in rows["Study"]]
        rows = rows.explode("Path", ignore_index=True).fillna({"Path": ""})
    return rows.assign(**{c: "" for c in ("Frontal/Lateral", "AP/PA") if c not in rows})


def _views(raw_dir: Path, study: str, places: Mapping[tuple[str, str], str]) -> Iterator[str]:
    *_, patient, number = "", "", *study.strip("/").split("/")
    folder = raw_dir / places.get(("test", patient), "") / number
    names = sorted(os.listdir(folder)) if ("test", patient) in places and folder.is_dir() else []
    yield from (f"test/{patient}/{number}/{name}" for name in names if name.startswith("view"))


def _reports(raw_dir: Path, problems: list[Problem]) -> dict[str, str]:
    """The report of each study that CheXpert Plus has one of."""
    path = find_below(raw_dir, "df_chexpert_plus*.csv*")
    if path is None:
        return {}
    columns = ["path_to_image", "section_findings", "section_impression"]
    rows = table(path, columns, "It comes with CheXpert Plus (https://stanfordaimi.azurewebsites.net).")
    place = rows["path_to_image"].str.extract(PLACE)
    for n in place.index[place[0].isna()]:
        problems.append(Problem("report", f"{path.name} row {n + 2}", "path_to_image names no study", lost=False))
    part = np.where(rows["path_to_image"].str.contains("valid"), "valid", "train")
    keys = pd.Series(part, rows.index) + "/" + place[0] + "/" + place[1]
    kept = rows[keys.notna() & ~keys.duplicated()]
    heads = ("FINDINGS", "IMPRESSION")
    texts = zip(kept["section_findings"], kept["section_impression"], strict=True)
    made = ("\n".join(f"{h}: {t.strip()}" for h, t in zip(heads, both, strict=True) if t.strip()) for both in texts)
    return dict(zip(keys[kept.index], made, strict=True))


# Rows -----------------------------------------------------------------------------------------------------------------


def _rows(cells: pd.DataFrame, part: str, problems: list[Problem]) -> pd.DataFrame:
    """One row an image, as many and in the order of the csv."""
    place = cells["Path"].str.extract(PLACE)
    for n in place.index[place[0].isna()]:
        reason = f"Path={cells['Path'][n]!r} names no patient, study and view"
        problems.append(Problem("Path", f"{part}.csv row {n + 2}", reason))
    place = place.fillna("")
    frontal = cells["Frontal/Lateral"].where(cells["Frontal/Lateral"] != "", place[2].map(_named_view))
    position = cells["AP/PA"].str.strip().str.upper()
    view = np.where(frontal == "Frontal", np.where(position.isin(["PA", "AP"]), position, "FRONTAL"), "LATERAL")
    identity = np.where(place[0] != "", part + "/" + place[0] + "/" + place[1] + "/" + place[2], "")
    about = {key: cells[key] if key in cells else pd.Series("", cells.index) for key in ("Sex", "Age")}
    columns = {"id": identity, "patient": place[0], "study": place[1], "file": place[2], "view": view}
    return pd.DataFrame({"part": part, **columns, **about, "row": np.arange(len(cells))})


def _named_view(file: str) -> str:
    return "Frontal" if "frontal" in file.lower() else "Lateral" if "lateral" in file.lower() else ""


def _values(cells: pd.DataFrame, rows: pd.DataFrame, problems: list[Problem]) -> np.ndarray:
    """The labels, float64 (rows, 14): nan where nothing stands."""
    written = cells.apply(lambda column: column.str.strip())
    numbers = written.apply(lambda column: pd.to_numeric(column, errors="coerce"))
    values = numbers.to_numpy(np.float64)
    odd = ~np.isin(values, (-1, 0, 1)) & (written != "").to_numpy()
    for n, k in zip(*np.nonzero(odd), strict=True):
        where = f"{rows['part'][n]}.csv row {rows['row'][n] + 2}"
        reason = f"{LABELS[k]}={cells.iat[n, k]!r} is none of 1, 0, -1 and blank: unknown"
        problems.append(Problem("label", where, reason, lost=False))
    return np.where(odd, np.nan, values)


def _usable(rows: pd.DataFrame, problems: list[Problem]) -> np.ndarray:
    """Rows that name an image of their own, bool (rows,)."""
    again = rows.duplicated("id") & (rows["id"] != "")
    for n in rows.index[again]:
        where = f"{rows['part'][n]}.csv row {rows['row'][n] + 2}"
        problems.append(Problem("duplicate", where, f"{rows['id'][n]} has a row already; the first counts"))
    return ((rows["id"] != "") & ~again).to_numpy()


def _present(
    rows: pd.DataFrame, places: Mapping[tuple[str, str], str], complete: bool, problems: list[Problem]
) -> np.ndarray:
    """Rows whose patient has a folder, bool (rows,); all of them where the download should be complete.

    Raises:
        UserError: more than one patient in twenty has none, and should have.
    """
    owners = pd.Series(list(zip(rows["part"], rows["patient"], strict=True)), rows.index)
    named = [o for o in owners.unique() if o[1]]
    missing = [o for o in named if o not in places]
    if not missing:
        return np.ones(len(rows), bool)
    gone = owners.isin(set(missing)).to_numpy()
    text = f"{len(missing)} of {len(named)} patients have no folder (first: {'/'.join(missing[0])})"
    if complete and len(missing) > 0.05 * len(named):
        raise UserError(
            f"{text}. Unpack the rest of CheXpert (the full download has its images in the batches 2 to 4), or take "
            "what is here with data.reader.complete=false."
        )
    reason = f"{text}: {int(gone.sum())} images are left out" if not complete else text
    problems.append(Problem("not here", "train.csv and valid.csv", reason, lost=False))
    return np.ones(len(rows), bool) if complete else ~gone


def _splits(rows: pd.DataFrame, test: str) -> dict[tuple[str, str], str]:
    """The own split of each patient of each part."""
    drawn = by_hash(rows["patient"][rows["part"] == "train"].unique(), {"train": 1 - VAL, "val": VAL, "test": 0.0})
    official = {"valid": "val", "test": "test"}
    owners = set(zip(rows["part"], rows["patient"], strict=True))
    if test == "released":
        return {o: official.get(o[0], "train") for o in owners}
    return {o: "test" if o[0] == "valid" else drawn[o[1]] for o in owners}


def _studies(
    rows: pd.DataFrame,
    values: np.ndarray,
    splits: Mapping[tuple[str, str], str],
    places: Mapping[tuple[str, str], str],
    texts: Mapping[str, str],
) -> Iterator[Study]:
    labels = [{k: v for k, v in zip(LABELS, row, strict=True) if v == v} for row in values.tolist()]
    members: dict[tuple[str, str, str], list[tuple[Any, dict[str, float]]]] = {}
    for row, own in zip(rows.itertuples(index=False), labels, strict=True):
        members.setdefault((row.part, row.patient, row.study), []).append((row, own))
    for (part, patient, study), found in members.items():
        place = places.get((part, patient), f"{part}/{patient}")
        common = found[0][1]
        images = tuple(
            ImageRef(
                row.id,
                f"{place}/{study}/{row.file}",
                row.view,
                # the rows of a study agree, as a rule
                None if own == common else own,
                extra=json.dumps({"sex": row.Sex, "age": row.Age}) if row.Sex or row.Age else "",
            )
            for row, own in found
        )
        name = f"{part}/{patient}/{study}"
        yield Study(name, patient, splits[part, patient], images, text=texts.get(name), labels=common)


# Divisions ------------------------------------------------------------------------------------------------------------


def _divisions(
    rows: pd.DataFrame, values: np.ndarray, usable: np.ndarray, splits: Mapping[tuple[str, str], str]
) -> list[Division]:
    train = (rows["part"] == "train").to_numpy()
    frontal = (rows["view"] != "LATERAL").to_numpy()
    ids = rows["id"].to_numpy()
    here = rows[usable]
    owners = rows["patient"][train].to_numpy()
    test, val = exclusive(ids[train].tolist(), owners, LABELS, values[train], frontal[train])
    if not test:
        return []
    origin = (
        f"{len(test) // len(FIVE)} of each class, drawn as MGCA's code does (random_state 0); "
        f"val, to choose prompts on, is ours: the next {MORE}"
    )
    chosen, patients = set(test), set(rows["patient"][rows["id"].isin(test)])
    own = {r.id: splits[r.part, r.patient] for r in here.itertuples() if r.patient not in patients}
    found = {"5x200": (parts([], val, test), origin), "without_5x200": (own, "the own split, but no patient of 5x200")}
    left = [i for i in ids[train] if i not in chosen]
    if len(left) > VALID_ROWS and len(test) == EACH * len(FIVE):
        official = ids[(rows["part"] == "valid").to_numpy()]
        found["mgca"] = (_mgca(left, ids[train], official, set(ids[frontal])), MGCA)
    known = set(here["id"])
    return [Division(name, {i: p for i, p in ps.items() if i in known}, said) for name, (ps, said) in found.items()]


def _mgca(left: Sequence[str], train: Sequence[str], official: Sequence[str], frontal: set[str]) -> dict[str, str]:
    val = sampled(left, 0, VALID_ROWS)
    place = {i: n for n, i in enumerate(left)}
    dropped = {train[place[i]] for i in val}
    kept = (i for i in left if i not in dropped)
    return parts(*([i for i in part if i in frontal] for part in (kept, val, official)))
