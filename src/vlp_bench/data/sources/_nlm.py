"""What the two tuberculosis sets of the National Library of Medicine share: names, clinical readings, lung masks."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlp_bench.data.divisions import by_hash
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._tables import find, find_below, images, table
from vlp_bench.data.study import Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
#: Where the releases keep their images: NLM's own, and the one on Kaggle with shenzhen_ or montgomery_metadata.csv.
FOLDERS = ("CXR_png", "*/CXR_png", "*/*/CXR_png", "images/images", "images", "*/images/images", "*/images")

Masks = Callable[[str], tuple[Mapping[str, Any], ...]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a radiologist noted of one image; empty where nothing is known."""

    sex: str = ""
    age: str = ""
    text: str = ""


def read_set(
    name: str,
    raw_dir: Path,
    prefix: str,
    origin: str,
    masks_of: Masks,
    divisions: Callable[[list[str]], Iterable[Division]] = lambda ids: (),
    lists: str | None = None,
) -> Source:
    """Index one of the two sets; each image is of another patient, the last digit of its name is the label.

    Args:
        name: of the source.
        raw_dir: holds one of `FOLDERS`.
        prefix: of the file names, such as CHNCXR.
        origin: where the set comes from, for messages.
        masks_of: masks of an image id.
        divisions: published divisions of the image ids, which are in the order of their names.
        lists: a folder with published lists.

    Raises:
        UserError: no folder of images, or none of this set in it.
    """
    folder = find(raw_dir, *FOLDERS)
    if folder is None:
        raise UserError(f"No folder CXR_png (or images) in {raw_dir}. {origin}")
    found = images(raw_dir, str(folder.relative_to(raw_dir)))
    paths = {stem: path for stem, path in sorted(found.items()) if stem.upper().startswith(prefix)}
    if not paths:
        raise UserError(f"{folder} holds no {prefix}_0001_0.png or the like. {origin}")
    problems: list[Problem] = []
    labels: dict[str, dict[str, float]] = {}
    for stem, path in paths.items():
        digit = re.fullmatch(rf"{prefix}_\d+_([01])", stem, re.I)
        if digit:
            labels[stem] = {"Tuberculosis": float(digit[1])}
        else:
            problems.append(Problem("file name", path, f"not {prefix}_<number>_<0 or 1>: it has no label"))
    readings = _readings(raw_dir, name, list(labels), problems)
    splits = by_hash(labels, SHARES)
    studies = []
    for stem, label in labels.items():
        reading = readings.get(stem, Reading())
        extra = json.dumps({k: v for k, v in (("sex", reading.sex), ("age", reading.age)) if v})
        image = ImageRef(stem, paths[stem], "PA", label, masks=masks_of(stem), extra=extra if extra != "{}" else "")
        studies.append(Study(stem, stem, splits[stem], (image,), None, reading.text))
    ways = list(divisions(list(labels)))
    if lists:
        ways.append(_lists.read(Path(lists), {stem: stem for stem in labels}))
    return Source(name, raw_dir, tuple(studies), ("Tuberculosis",), tuple(problems), tuple(ways))


def _readings(raw_dir: Path, name: str, ids: list[str], problems: list[Problem]) -> dict[str, Reading]:
    """Readings by image id: a text file for each image, or a csv for all."""
    folder = find_below(raw_dir, "ClinicalReadings")
    listed = find(raw_dir, f"{name}_metadata.csv", f"*/{name}_metadata.csv")
    found: dict[str, Reading] = {}
    if folder is not None:
        files = {p.stem: p for p in folder.iterdir() if p.suffix.lower() == ".txt"}
        found = {i: parse_reading(files[i].read_text("utf-8-sig", errors="replace")) for i in ids if i in files}
    elif listed is not None:
        rows = table(listed, ["study_id", "sex", "age", "findings"], "It comes with the release on Kaggle.")
        for row in rows.to_dict("records"):
            text = row["findings"].strip()
            found[Path(row["study_id"]).stem] = Reading(_sex(row["sex"]), row["age"].strip(), text)
    else:
        reason = "neither the folder nor a csv of them is there: no sex, no age, no text"
        problems.append(Problem("no readings", "ClinicalReadings", reason, lost=False))
        return {}
    for i in ids:
        if i not in found:
            problems.append(Problem("no reading", f"ClinicalReadings/{i}.txt", "no sex, no age, no text", lost=False))
    return found


def parse_reading(text: str) -> Reading:
    """Sex, age and findings of a clinical reading.

    Shenzhen writes `male 45yrs`, `Female, 28yrs`, `femal 32yrs`, `male 16month`; Montgomery `Patient's Sex: F` and
    `Patient's Age: 027Y`. What follows is free text. Ages are kept as they are written where they are not years.
    """
    sex = age = ""
    rest: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if named := re.match(r"patient'?s?\s+(sex|age)\s*:\s*(.*)", line, re.I):
            sex, age = (_sex(named[2]), age) if named[1].lower() == "sex" else (sex, _age(named[2]))
        elif not (sex or age or rest) and (
            found := re.match(r"((?:fe)?male?)\b[\s,.]*(\d+\s*[a-z]*)?(.*)", line, re.I)
        ):
            sex, age = _sex(found[1]), _age(found[2] or "")
            rest += [found[3].strip(" ,.")] if found[3].strip(" ,.") else []
        else:
            rest.append(line)
    return Reading(sex, age, "\n".join(rest))


def _sex(text: str) -> str:
    return {"m": "M", "f": "F"}.get(text.strip()[:1].lower(), "")


def _age(text: str) -> str:
    number = re.match(r"\s*0*(\d+)\s*([a-z]*)", text, re.I)
    if not number:
        return ""
    years = number[2].lower() in ("", "y", "yr", "yrs", "year", "years")
    return number[1] if years else f"{number[1]} {number[2].lower()}"
