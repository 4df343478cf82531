"""SIIM-ACR Pneumothorax Segmentation 2019, as DICOM or as PNG: the only file that knows its layout.

Expected in the raw directory or a folder of it, as downloaded, either the PNG re-release

    stage_1_train_images.csv, stage_1_test_images.csv   new_filename, ImageId, has_pneumo
    png_images/0_train_1_.png, png_masks/0_train_1_.png

or the DICOM of stage 1 (or both stages in one, as people pass it on)

    train-rle.csv          ImageId and, with a blank before its name, EncodedPixels: -1, or runs; several rows an image
    dicom-images-train/<study>/<series>/<ImageId>.dcm, dicom-images-test/...

or that of stage 2: stage_2_train.csv (the same columns) and stage_2_images/<ImageId>.dcm. An image has the id of its
DICOM, whichever release it is from. Nobody published which patients the images are of.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from vlp_bench.data.divisions import by_hash, parts
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._recipes import folds, held_out, stratified
from vlp_bench.data.sources._tables import find_below, images, table
from vlp_bench.data.study import Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

LABEL = "Pneumothorax"
RELEASES = ("png", "dicom")
#: of the images where there are no official test images, and of the official training images
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
OFFICIAL = {"train": 0.9, "val": 0.1, "test": 0.0}
TABLES = {"train": "stage_1_train_images.csv", "test": "stage_1_test_images.csv"}
RUNS = ("train-rle.csv", "stage_2_train.csv")
ORIGIN = (
    "The PNG re-release is https://www.kaggle.com/datasets/vbookshelf/pneumothorax-chest-xray-images-and-masks, the "
    "DICOM are passed on as https://www.kaggle.com/datasets/seesee/siim-train-test; data.raw_dir is where either was "
    "unpacked."
)


def read(raw_dir: Path, release: str | None = None, lists: str | None = None) -> Source:
    """Index the data set.

    Args:
        raw_dir: holds the files above.
        release: `png` or `dicom`, where both are there; None takes the PNG, if there are any.
        lists: a folder with published lists (BenchX, MRM), for the division `lists`.

    Raises:
        UserError: an unknown release, or a table, a column or every image is missing.
    """
    if release not in (None, *RELEASES):
        raise UserError(f"release={release}: expected one of {', '.join(RELEASES)}, or null.")
    problems: list[Problem] = []
    home = find_below(raw_dir, TABLES["train"], ends=("", ".zip"))
    runs = _runs(raw_dir, problems)
    if release == "dicom" or (release is None and home is None):
        if runs is None:
            wanted = RUNS if release == "dicom" else (TABLES["train"], *RUNS)
            raise UserError(f"No {' or '.join(wanted)} in {raw_dir} or a folder of it. {ORIGIN}")
        refs = list(_dicom(raw_dir, runs, problems))
    else:
        refs = list(_png(raw_dir, (home or raw_dir / TABLES["train"]).parent, problems))
    known = {name: ref.image_id for ref in refs for name in (ref.image_id, Path(ref.path).stem)}
    divisions = [*_by_name(refs), *_by_row(runs, {r.image_id for r in refs}), *_of_positives(refs)]
    divisions += [_lists.read(Path(lists), known)] if lists else []
    return Source("siim", raw_dir, tuple(_studies(refs)), (LABEL,), tuple(problems), tuple(divisions))


# PNG ------------------------------------------------------------------------------------------------------------------


def _png(raw_dir: Path, home: Path, problems: list[Problem]) -> Iterator[ImageRef]:
    tables = {file: table(home / file, ["new_filename", "ImageId", "has_pneumo"], ORIGIN) for file in TABLES.values()}
    inside = home.relative_to(raw_dir)
    pictures, masks = (images(raw_dir, str(inside / name)) for name in ("png_images", "png_masks"))
    if not pictures:
        raise UserError(f"No image in {home / 'png_images'}. {ORIGIN}")
    for file, rows in tables.items():
        for n in rows.index[rows.duplicated("ImageId") | (rows["ImageId"] == "")]:
            reason = f"ImageId={rows['ImageId'][n]!r} is empty or has a row already"
            problems.append(Problem("ImageId", f"{file} row {n + 2}", reason))
        rows = rows[(rows["ImageId"] != "") & ~rows.duplicated("ImageId")]
        for n, row in zip(rows.index, rows.itertuples(), strict=True):
            name, said = Path(row.new_filename).stem, row.has_pneumo.strip().removesuffix(".0")
            if said not in ("0", "1"):
                reason = f"has_pneumo={row.has_pneumo!r} is neither 0 nor 1: unknown"
                problems.append(Problem("label", f"{file} row {n + 2}", reason, lost=False))
            if said == "1" and name not in masks:
                reason = f"no png_masks/{row.new_filename}"
                problems.append(Problem("no mask", f"{file} row {n + 2}", reason, lost=False))
            yield ImageRef(
                row.ImageId,
                pictures.get(name, str(inside / "png_images" / row.new_filename)),
                "FRONTAL",
                labels={LABEL: float(said)} if said in ("0", "1") else {},
                masks=({"label": LABEL, "path": masks[name]},) if said == "1" and name in masks else (),
            )


# DICOM ----------------------------------------------------------------------------------------------------------------


def _runs(raw_dir: Path, problems: list[Problem]) -> pd.DataFrame | None:
    """The table of runs, as many rows and in the order of the csv, if it is there: `ImageId`, `EncodedPixels`."""
    path = find_below(raw_dir, *RUNS, ends=("", ".zip"))
    if path is None:
        return None
    # the published header has a blank before EncodedPixels, which table() overlooks
    rows = table(path, ["ImageId", "EncodedPixels"], ORIGIN)
    rows = rows.apply(lambda column: column.str.strip())
    rows.attrs["name"] = path.name
    return rows


def _dicom(raw_dir: Path, rows: pd.DataFrame, problems: list[Problem]) -> Iterator[ImageRef]:
    files = {stem: path for stem, path in images(raw_dir).items() if "png_" not in path}
    if not files:
        raise UserError(f"No DICOM under {raw_dir} (looked for {', '.join(RUNS)} and *.dcm). {ORIGIN}")
    of_image: dict[str, list[str]] = {}
    for n, (image, text) in enumerate(zip(rows["ImageId"], rows["EncodedPixels"], strict=True)):
        where = f"{rows.attrs['name']} row {n + 2}"
        if not image:
            problems.append(Problem("ImageId", where, "ImageId is empty"))
            continue
        found = of_image.setdefault(image, [])
        if text in found:
            problems.append(Problem("duplicate", where, f"the same as an earlier row of {image}", lost=False))
        elif not text:
            problems.append(Problem("label", where, "EncodedPixels is empty, neither -1 nor runs", lost=False))
        else:
            found.append(text)
    for image, found in sorted(of_image.items()):
        runs = [text for text in found if text != "-1"]
        if 0 < len(runs) < len(found):
            reason = "has both runs and -1: counts as pneumothorax"
            problems.append(Problem("label", f"ImageId {image}", reason, lost=False))
        yield ImageRef(
            image,
            files.get(image, f"dicom-images-train/{image}.dcm"),
            "FRONTAL",
            labels={LABEL: float(bool(runs))} if found else {},
            masks=tuple({"label": LABEL, "rle": text} for text in runs),
        )
    unlabelled = [path for stem, path in files.items() if stem not in of_image and not _is_test(path)]
    if unlabelled:
        reason = f"no row for {len(unlabelled)} images (first: {unlabelled[0]}): they are left out"
        problems.append(Problem("no label", rows.attrs["name"], reason, lost=False))


def _is_test(path: str) -> bool:
    return "dicom-images-test" in Path(path).parts or "_test_" in Path(path).name


# Splits ---------------------------------------------------------------------------------------------------------------


def _studies(refs: Sequence[ImageRef]) -> Iterator[Study]:
    """Official test images are test where they are labelled; every image is taken for a patient of its own."""
    test = {r.image_id for r in refs if _is_test(r.path)}
    split = by_hash([r.image_id for r in refs], OFFICIAL if test else SHARES) | dict.fromkeys(test, "test")
    for ref in refs:
        yield Study(ref.image_id, ref.image_id, split[ref.image_id], (ref,), labels=ref.labels or {})


def _by_name(refs: Sequence[ImageRef]) -> Iterator[Division]:
    """BenchX divides the files of the PNG re-release, by their names, which tell the class."""
    names = {Path(r.path).name: r.image_id for r in refs}
    positive, negative = (sorted(n for n in names if f"train_{c}" in n) for c in (1, 0))
    test = [i for n, i in names.items() if "_test_" in n]
    classes = [1] * len(positive) + [0] * len(negative)
    if test:
        with suppress(ValueError):  # too few images of a class: certainly not what BenchX divided
            train, val = stratified(positive + negative, classes, 42, len(test))
            found = parts([names[n] for n in train], [names[n] for n in val], test)
            yield Division("benchx", found, "BenchX: official test; as many of train as val, by class, random_state 42")


def _by_row(rows: pd.DataFrame | None, here: set[str]) -> Iterator[Division]:
    if rows is not None and rows.attrs["name"].startswith(RUNS[0]):
        found = {i: where for i, where in held_out(rows["ImageId"].tolist(), 0, 0.3).items() if i in here}
        said = "70/15/15 of the rows of train-rle.csv, random_state 0; images of several masks lie in several parts"
        yield Division("mgca_rows", found, f"MGCA and GLoRIA: {said}")


def _of_positives(refs: Sequence[ImageRef]) -> list[Division]:
    ids = sorted(r.image_id for r in refs if (r.labels or {}).get(LABEL) == 1)
    return folds("prior", ids, "PRIOR, segmentation: five folds of the images with pneumothorax (its issue 12)")
