"""A user's own images: a directory with `metadata.csv`, images, and where there are, boxes and masks.

Columns: `image_path` is needed. Read where present: `study_id`, `patient_id`, `view`, `report_text`, `labels` (joined
by `|`; empty means unknown), `split`, `boxes_json` (list of {label, xywh}), `masks_json` (list of {label, path}),
`extra_json`, and any other column for `where`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from vlp_bench.data.study import SPLITS, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

#: Shares of patients in train, val and test where the csv does not say.
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def read(raw_dir: Path, where: str | None = None, shares: Mapping[str, float] | None = None) -> Source:
    """Index the folder.

    Args:
        raw_dir: holds metadata.csv.
        where: a pandas query over its columns, such as "source == 'nih'".
        shares: of patients in train, val and test, used where `split` does not name all three.

    Raises:
        UserError: no metadata.csv, no such column, a condition that keeps nothing, a patient in two splits.
    """
    path = raw_dir / "metadata.csv"
    if not path.is_file():
        raise UserError(f"No {path}. A folder of images needs a metadata.csv with at least the column image_path.")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "image_path" not in table:
        raise UserError(f"{path} lacks the column image_path (it has {', '.join(table.columns[:6])}).")
    table["row"] = range(2, len(table) + 2)
    if where:
        table = _filter(table, where, path)
    table = _identify(table)
    table["split"] = _splits(table, dict(shares or SHARES))
    problems: list[Problem] = []
    studies = [_study(key, rows, problems) for key, rows in table.groupby(["patient_id", "study_id"], sort=True)]
    labels = sorted({name for s in studies for i in s.images for name in (i.labels or {})})
    filled = tuple(_fill(s, labels) for s in studies)
    return Source("folder", raw_dir, filled, tuple(labels), tuple(problems))


def _filter(table: pd.DataFrame, where: str, path: Path) -> pd.DataFrame:
    try:
        kept = table.query(where, engine="python")
    except Exception as error:
        raise UserError(
            f"where={where!r} is not a condition on {path} ({error}). Its columns: {', '.join(table.columns)}."
        ) from error
    if kept.empty:
        raise UserError(f"where={where!r} keeps none of the {len(table)} rows of {path}.")
    return kept.copy()


def _identify(table: pd.DataFrame) -> pd.DataFrame:
    for column, otherwise in (("study_id", "image_path"), ("patient_id", "study_id")):
        if column not in table:
            table[column] = table[otherwise]
        table[column] = table[column].where(table[column] != "", table[otherwise])
    return table


def _splits(table: pd.DataFrame, shares: Mapping[str, float]) -> pd.Series:
    named = table["split"].str.lower().replace({"valid": "val", "validate": "val"}) if "split" in table else None
    if named is not None and set(named) == set(SPLITS):
        return named
    numbers = {p: int(hashlib.sha256(p.encode()).hexdigest()[:8], 16) / 16**8 for p in table["patient_id"].unique()}
    train, val = shares["train"], shares["train"] + shares["val"]
    chosen = {p: "train" if x < train else "val" if x < val else "test" for p, x in numbers.items()}
    return table["patient_id"].map(chosen)


def _study(key: tuple[str, str], rows: pd.DataFrame, problems: list[Problem]) -> Study:
    patient, study = key
    texts = list(dict.fromkeys(t for t in rows.get("report_text", pd.Series(dtype=str)) if t.strip()))
    images = tuple(_image(row, problems) for row in rows.to_dict("records"))
    return Study(study, patient, rows["split"].iloc[0], images, None, "\n".join(texts))


def _image(row: dict[str, str], problems: list[Problem]) -> ImageRef:
    def listed(column: str) -> tuple[dict, ...]:
        text = row.get(column, "")
        try:
            return tuple(json.loads(text)) if text else ()
        except (ValueError, TypeError) as error:
            problems.append(Problem(column, f"row {row['row']}", f"not a JSON list: {error}", lost=False))
            return ()

    names = [n.strip() for n in row.get("labels", "").split("|") if n.strip()]
    return ImageRef(
        image_id=Path(row["image_path"]).stem,
        path=row["image_path"],
        view=row.get("view", "").upper(),
        labels=dict.fromkeys(names, 1.0) if names else None,
        boxes=listed("boxes_json"),
        masks=listed("masks_json"),
        extra=row.get("extra_json", ""),
    )


def _fill(study: Study, labels: list[str]) -> Study:
    """A labelled image is negative for what it does not name."""
    from dataclasses import replace

    zero = dict.fromkeys(labels, 0.0)
    images = tuple(replace(i, labels=zero | dict(i.labels)) if i.labels is not None else i for i in study.images)
    return replace(study, images=images)
