"""What a reader of raw data hands on: studies as plain records, and the rows that it could not use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPLITS = ("train", "val", "test")
FRONTAL = ("PA", "AP", "FRONTAL")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image file. `path` and the mask paths are relative to the source's root.

    `labels` are the image's own, where a data set labels images rather than studies. `boxes` are {label, xywh in
    pixels of the file}. `masks` are {label} and one of `path` (a file, or a list of files that are joined), `rle` (runs
    as in SIIM-ACR: each start counted from the end of the run before, down the columns) and `polygon` ([x, y, x, y,
    ...]), in pixels of the file.
    """

    image_id: str
    path: str
    view: str = ""
    labels: Mapping[str, float] | None = None
    boxes: tuple[Mapping[str, Any], ...] = ()
    masks: tuple[Mapping[str, Any], ...] = ()
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """One study of one patient. No tensors, no absolute paths.

    The report is either `report_path` (a file with MIMIC-CXR's section headers, relative to the root) or `text`
    (with section headers or without any). `conclusion` says where to read it when it is cut by hand: a section of the
    file by its name, or its characters from and to.
    `labels`: 1 present, 0 absent, -1 uncertain; a label that is not named is unknown.
    """

    study_id: str
    patient_id: str
    split: str
    images: tuple[ImageRef, ...]
    report_path: str | None = None
    text: str | None = None
    conclusion: str | tuple[int, int] | None = None
    labels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that was lost or is worth knowing about; `lost` counts towards `data.max_bad_fraction`."""

    kind: str
    where: str
    reason: str
    lost: bool = True


@dataclass(frozen=True, slots=True)
class Division:
    """A division of the images that somebody published, beside the studies' own split.

    `parts` says where an image lies: `train`, `val` or `test`, or several of them with a blank between, as published
    lists that leak have it. Images that it does not name are left out.
    """

    name: str
    parts: Mapping[str, str]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A raw data set as its reader understood it.

    `divisions` are asked for by name (`data.split`, `target.split`); without a name the studies' own split holds,
    which never has a patient in two parts.
    """

    name: str
    root: Path
    studies: tuple[Study, ...]
    labels: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    divisions: tuple[Division, ...] = ()
