"""COVIDx CXR: images and lists that say which are train and test, in one of many versions.

Expected under the raw directory, as downloaded from Kaggle (or one folder below it):

    train/*, test/* and, in CXR-4, val/*    images
    train.txt, test.txt, val.txt            CXR-4 and the two-class lists of earlier releases
    train_COVIDx9A.txt, test_COVIDx9A.txt   and the like, of the repository COVID-Net; A: three classes, B: two

A line of a list is `patient file class source`, in the oldest versions without source; file names may hold blanks.
"""

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from vlp_bench.data.divisions import by_hash, parts, shuffled
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._names import by_name, path_of
from vlp_bench.data.sources._tables import find
from vlp_bench.data.study import SPLITS, Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

ORIGIN = (
    "The lists come with the images (Kaggle, andyczhao/covidx-cxr2), those of other versions from the folder labels/ "
    "of the repository lindawangg/COVID-Net."
)
#: Classes of the lists and what they say.
THREE = ("normal", "pneumonia", "COVID-19")
CLASSES = {c.lower(): {name: float(name == c) for name in THREE} for c in THREE} | {
    "positive": {"COVID-19": 1.0},
    "negative": {"COVID-19": 0.0},
}
#: Share of the patients in train that become val where no list names one.
VAL = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a list; `image_id` is empty where the line cannot be used."""

    image_id: str
    path: str
    patient: str
    classified: str
    cohort: str


def read(raw_dir: Path, version: str | None = None, lists: str | None = None) -> Source:
    """Index the data set.

    Args:
        raw_dir: holds the lists and the folders of images.
        version: which lists, where several are there, as in their names: 9A, 9B, CXR-3A; or CXR-4 for train.txt.
            None takes train.txt where it is, else the latest.
        lists: a folder with published train, val and test lists.

    Raises:
        UserError: no lists, not those of the version, lists of two versions' classes, or no folder of images.
    """
    problems: list[Problem] = []
    files = _own_lists(raw_dir, version, problems)
    folders = _folders(raw_dir)
    rows = {part: _rows(files[part], folders, part, problems) for part in files}
    known = [row for part in files for row in rows[part] if row.image_id]
    classes = {row.classified for row in known}
    labels = THREE if classes & {"normal", "pneumonia"} else ("COVID-19",)
    if len(labels) > 1 and classes & {"positive", "negative"}:
        raise UserError(f"{files['train']} and its companions mix lists of two and of three classes. {ORIGIN}")
    sizes = ", ".join(f"{part} {len(found)}" for part, found in rows.items())
    said = f"{_version(files)}: {max(len(labels), 2)} classes, lines: {sizes}"
    problems.append(Problem("version", files["train"].name, said, lost=False))
    split = _splits(rows, problems)
    studies = []
    for row in known:
        extra = json.dumps({"source": row.cohort}) if row.cohort else ""
        image = ImageRef(row.image_id, row.path, "FRONTAL", CLASSES[row.classified], extra=extra)
        studies.append(Study(row.image_id, row.patient, split[row.patient], (image,)))
    ways = _divisions(rows, split, len(labels) > 1)
    if lists:
        ways.append(_lists.read(Path(lists), _names(known)))
    return Source("covidx", raw_dir, tuple(studies), labels, tuple(problems), tuple(ways))


def _own_lists(raw_dir: Path, version: str | None, problems: list[Problem]) -> dict[str, Path]:
    """The lists of one version by part."""
    base = find(raw_dir, "train.txt", "train_COVIDx*.txt", "*/train.txt", "*/train_COVIDx*.txt")
    if base is None:
        raise UserError(f"No train.txt or train_COVIDx*.txt in {raw_dir}. {ORIGIN}")
    there = {
        p.stem.partition("_")[2]: p for p in base.parent.glob("train*.txt") if re.match(r"train(_COVIDx|\.)", p.name)
    }
    if version is None:
        fits = ["" if "" in there else max(there, key=_age)]
    else:
        wanted = str(version).lower().removeprefix("covidx").strip("_ ")
        fits = [n for n in there if (n.lower().removeprefix("covidx").strip("_ ") or "cxr-4") == wanted]
    if not fits:
        raise UserError(f"version={version}: {base.parent} has only {', '.join(p.name for p in there.values())}.")
    name = fits[0]
    for other in sorted(set(there) - {name}):
        reason = f"not read: version={other.removeprefix('COVIDx').strip('_') or 'CXR-4'} takes it"
        problems.append(Problem("other version", there[other].name, reason, lost=False))
    end = f"_{name}.txt" if name else ".txt"
    files = {part: base.parent / f"{part}{end}" for part in SPLITS if (base.parent / f"{part}{end}").is_file()}
    if "test" not in files:
        raise UserError(f"No test{end} beside {files['train']}. {ORIGIN}")
    return files


def _age(name: str) -> tuple[bool, int, str]:
    """Order of the versions: COVIDx5 < COVIDx9A < COVIDx_CXR-3A; of one, three classes before two."""
    number = re.search(r"\d+", name)
    letter = name[-1:] if name[-1:] in "AB" else ""
    return ("CXR" in name, int(number[0]) if number else 0, {"A": "2", "B": "1"}.get(letter, "0"))


def _version(files: dict[str, Path]) -> str:
    named = files["train"].stem.partition("_")[2]
    if named:
        return named.replace("_", " ")
    return "COVIDx CXR-4" if "val" in files else "a release before CXR-4 (its files do not say which)"


def _folders(raw_dir: Path) -> dict[str, dict[str, str]]:
    """Images of each part, see `by_name`."""
    found = {}
    for part in SPLITS:
        folder = find(raw_dir, part, f"data/{part}", f"*/{part}", f"*/data/{part}")
        if folder is not None and folder.is_dir():
            found[part] = by_name(raw_dir, folder)
    if "train" not in found and "test" not in found:
        raise UserError(f"No folders train and test with images in {raw_dir}. {ORIGIN}")
    return found


def _rows(file: Path, folders: dict[str, dict[str, str]], part: str, problems: list[Problem]) -> list[Row]:
    """Every line of a list, also those that cannot be used: published divisions count them."""
    places = [folders[p] for p in (part, *SPLITS) if p in folders]
    found: list[Row] = []
    seen: set[str] = set()
    for number, line in enumerate(file.read_text("utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file.name} line {number}"
        row, reason = _row(line.split(), part, places)
        if row.image_id in seen:
            row, reason = Row("", "", "", "", ""), "the image has a line already; the first counts"
        if reason:
            problems.append(Problem("line", where, reason))
        seen.add(row.image_id)
        seen.discard("")
        found.append(row)
    return found


def _row(words: list[str], part: str, places: list[dict[str, str]]) -> tuple[Row, str]:
    """A line, and what is wrong with it."""
    nothing = Row("", "", "", "", "")
    at = next((n for n in range(len(words) - 1, 1, -1) if words[n].lower() in CLASSES), None)
    if at is None:
        return nothing, f"not `patient file class source`, class one of {', '.join((*THREE, 'positive', 'negative'))}"
    name = " ".join(words[1:at])
    path = path_of(name, *places)
    if path is None:
        return nothing, f"no such image: {name}"
    return Row(f"{part}/{name}", path, words[0], words[at].lower(), " ".join(words[at + 1 :])), ""


def _splits(rows: dict[str, list[Row]], problems: list[Problem]) -> dict[str, str]:
    """Split of each patient: that of the lists, and of several the latest, so that test keeps its images."""
    where: dict[str, set[str]] = defaultdict(set)
    for part, found in rows.items():
        for row in filter(lambda row: row.image_id, found):
            where[row.patient].add(part)
    split = {patient: max(places, key=SPLITS.index) for patient, places in where.items()}
    leaking: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient, places in where.items():
        if len(places) > 1:
            leaking[tuple(sorted(places, key=SPLITS.index))].append(patient)
    for several, patients in leaking.items():
        moved = sum(row.patient in patients for part in several[:-1] for row in rows[part])
        reason = (
            f"{len(patients)} patients (first: {patients[0]}) are in {' and '.join(several)} of the published lists: "
            f"their {moved} images outside {several[-1]} go there; split=official keeps the lists as they are"
        )
        problems.append(Problem("patient in two lists", ", ".join(several), reason, lost=False))
    if "val" not in rows:
        drawn = by_hash(split, {"train": 1 - VAL, "val": VAL, "test": 0.0})
        split = {patient: drawn[patient] if part == "train" else part for patient, part in split.items()}
    return split


def _divisions(rows: dict[str, list[Row]], split: dict[str, str], three: bool) -> list[Division]:
    ids = {part: [row.image_id for row in rows.get(part, ())] for part in SPLITS}

    def named(name: str, train: list[str], val: list[str], test: list[str], origin: str) -> Division:
        found = parts(train, val, test)
        found.pop("", None)  # the lines that cannot be used
        return Division(name, found, origin)

    found = []
    may_be = {"train": {"train"} if ids["val"] else {"train", "val"}, "val": {"val"}, "test": {"test"}}
    if any(split[row.patient] not in may_be[part] for part in rows for row in rows[part] if row.image_id):
        origin = "the published lists as they are, with patients in several of them"
        found.append(named("official", ids["train"], ids["val"], ids["test"], origin))
    if ids["val"]:
        origin = "BenchX: the published lists of CXR-4 less the first line of each, which its code reads as a header"
        found.append(named("benchx", ids["train"][1:], ids["val"][1:], ids["test"][1:], origin))
    elif three:
        train, val = shuffled(ids["train"], 0, len(ids["train"]) - int(0.8 * len(ids["train"])))
        origin = (
            "MGCA's code: a fifth of the training lines by image, random_state 0; the code names the lists of 9A, "
            "its paper calls the version 6"
        )
        found.append(named("mgca", train, val, ids["test"], origin))
    return found


def _names(known: list[Row]) -> dict[str, str]:
    """Image ids by every name under which lists may have them; names of several images are left out."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in known:
        part, name = row.image_id.split("/", 1)
        stem = os.path.splitext(name)[0]
        for key in (row.image_id, name, stem, f"{part}/{stem}", f"{part}/{stem}.png", f"{stem}.png"):
            found[key].add(row.image_id)
    return {key: next(iter(ids)) for key, ids in found.items() if len(ids) == 1}
