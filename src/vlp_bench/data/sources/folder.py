"""A user's own images: a directory with `metadata.csv`, images, and where there are, boxes and masks.

Columns: `image_path` (relative to the directory) is needed. Read where present: `study_id`, `patient_id`, `view`,
`report_text`, `labels` (joined by `|`; empty means unknown), `split`, `boxes_json` (list of {label, xywh}),
`masks_json` (list of {label, path}), `extra_json`, and any column for `where`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pandas as pd

from vlp_bench.data.divisions import NAMES, by_hash
from vlp_bench.data.sources._tables import table as read_table
from vlp_bench.data.study import SPLITS, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

ORIGIN = "A folder of images needs a metadata.csv with at least the column image_path."
#: Shares of patients in train, val and test where the csv does not say.
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
#: Columns that mean something here, and those that say where an image is from.
COLUMNS = {
    "image_path", "study_id", "patient_id", "view", "report_text", "labels", "split", "boxes_json", "masks_json",
    "extra_json", "licence", "license", "licence_url", "attribution", "source", "source_url", "text_type", "width",
    "height", "orig_width", "orig_height", "sha256",
}  # fmt: skip


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
    problems: list[Problem] = []
    # what a table program writes for an empty cell
    table = read_table(path, ["image_path"], ORIGIN).replace({"nan": "", "NaN": ""})
    for column in [c for c in table.columns if c not in COLUMNS]:
        reason = "not a column that is read; only `where` sees it"
        problems.append(Problem("unknown column", f"metadata.csv column {column}", reason, lost=False))
    if where:
        table = _filter(table, where, path)
    table = _split(_identify(_usable(table, problems)), dict(SHARES | dict(shares or {})), path, problems)
    studies = [_study(key, rows, problems) for key, rows in table.groupby(["patient_id", "study_id"], sort=True)]
    labels = sorted({name for s in studies for i in s.images for name in (i.labels or {})})
    filled = tuple(_fill(s, labels) for s in studies)
    return Source("folder", raw_dir, filled, tuple(labels), tuple(problems))


def _usable(table: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """The rows that name an image of their own; the index stays, it numbers the rows."""

    def refusal(path: str) -> str | None:
        parts = PurePosixPath(path)
        if not path.strip():
            return "image_path is empty"
        return "image_path leaves the folder" if parts.is_absolute() or ".." in parts.parts else None

    refusals = table["image_path"].map(refusal)
    refusals[table.duplicated("image_path") & refusals.isna()] = "the image has a row already; the first counts"
    bad = refusals.notna()
    problems += [Problem("image_path", f"row {n + 2}", reason) for n, reason in refusals[bad].items()]
    return table[~bad].copy()


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


def _split(table: pd.DataFrame, shares: Mapping[str, float], path: Path, problems: list[Problem]) -> pd.DataFrame:
    """With every row in train, val or test: as the csv says where it names all three, else by patient."""
    written = table["split"].str.strip().str.lower() if "split" in table else pd.Series("", table.index)
    named = written.replace(NAMES)
    if set(SPLITS) <= set(named):
        known = named.isin(SPLITS)
        for n in table.index[~known]:
            reason = f"split={table['split'][n]!r} is none of {', '.join(SPLITS)}"
            problems.append(Problem("split", f"row {n + 2}", reason))
        table = table.assign(split=named)[known]
        several = table.groupby("patient_id")["split"].agg(lambda splits: sorted(set(splits)))
        if (mixed := several[several.map(len) > 1]).size:
            raise UserError(
                f"Patient {mixed.index[0]} is in the splits {' and '.join(mixed.iloc[0])} of {path}. "
                "Splits must be disjoint by patient: correct the split column."
            )
        return table
    if part := sorted(set(named) & set(SPLITS)):
        reason = f"names only {', '.join(part)}: the patients were split anew"
        problems.append(Problem("split", "metadata.csv column split", reason, lost=False))
    chosen = by_hash(table["patient_id"].unique(), shares)
    return table.assign(split=table["patient_id"].map(chosen))


def _study(key: tuple[str, str], rows: pd.DataFrame, problems: list[Problem]) -> Study:
    patient, study = key
    texts = list(dict.fromkeys(t for t in rows.get("report_text", pd.Series(dtype=str)) if t.strip()))
    images = tuple(
        _image(row, f"row {n + 2}", problems) for n, row in zip(rows.index, rows.to_dict("records"), strict=True)
    )
    return Study(study, patient, rows["split"].iloc[0], images, None, "\n".join(texts))


def _image(row: dict[str, str], where: str, problems: list[Problem]) -> ImageRef:
    def listed(column: str) -> tuple[dict, ...]:
        text = row.get(column, "")
        try:
            found = json.loads(text or "[]")
        except ValueError:
            found = None
        if not isinstance(found, list):
            problems.append(Problem(column, where, "not a JSON list", lost=False))
            return ()
        return tuple(found)

    names = [n.strip() for n in row.get("labels", "").split("|") if n.strip()]
    return ImageRef(
        image_id=row["image_path"],
        path=row["image_path"],
        view=row.get("view", "").upper(),
        labels=dict.fromkeys(names, 1.0) if names else None,
        boxes=listed("boxes_json"),
        masks=listed("masks_json"),
        extra=row.get("extra_json", ""),
    )


def _fill(study: Study, labels: list[str]) -> Study:
    """A labelled image is negative for what it does not name."""
    zero = dict.fromkeys(labels, 0.0)
    images = tuple(replace(i, labels=zero | dict(i.labels)) if i.labels is not None else i for i in study.images)
    return replace(study, images=images)
