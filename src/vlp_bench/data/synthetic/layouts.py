"""Synthetic studies written to disk as public data sets are: the raw layout of MIMIC-CXR-JPG, or a plain folder."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vlp_bench.data.synthetic.drawing import annotate, render
from vlp_bench.data.synthetic.sampling import sample_studies
from vlp_bench.data.synthetic.world import CHEXPERT_LABELS, SyntheticImage, SyntheticStudy
from vlp_bench.errors import UserError

Progress = Callable[[int, int], None]
Rows = dict[str, list[dict]]  # rows for each table that a study adds to

LICENCE = "CC0-1.0 synthetic"

_FULL_WIDTH, _FULL_HEIGHT = 2544, 3056
_FULL_DRAWN = 1024  # side at which full-size pictures are drawn before they are enlarged


@dataclass(frozen=True, slots=True)
class _Job:
    """How the images of a study are written."""

    root: Path
    size: int
    full_size: bool
    quality: int


def write_raw(
    layout: str,
    out: Path,
    *,
    studies: int,
    seed: int,
    size: int = 256,
    workers: int = 1,
    progress: Progress | None = None,
    full_size: bool = False,
    quality: int = 95,
) -> dict[str, int]:
    """Write synthetic studies in the layout of a data set.

    Everything goes to a temporary directory next to ``out``, which takes its name only when it is whole.

    Args:
        layout: ``mimic_cxr`` or ``folder``.
        out: Directory to make; it may exist if it is empty.
        studies: How many studies.
        seed: Fixes all of them; the files are the same whatever ``workers`` is.
        size: Side in pixels of the square field from which each picture is cropped or padded by a few percent.
        workers: Processes to draw with.
        progress: Called with the number of studies done and the number of all.
        full_size: Write pictures of 2544 x 3056 pixels and 1 to 2 MB, as large as real ones, for timing
            (``mimic_cxr`` only).
        quality: JPEG quality from 1 to 100.

    Returns:
        Counts: ``studies``, ``patients``, ``images``, ``reports`` (not empty), and studies per split.

    Raises:
        UserError: If ``out`` holds something or an argument makes no sense.
    """
    out = Path(out)
    _check(layout, out, studies, workers, full_size, quality)
    made = sample_studies(studies, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        root.chmod(0o755)
        write_study, write_tables = _LAYOUTS[layout]
        tables: Rows = {}
        work = partial(write_study, _Job(root, size, full_size, quality))
        for done, rows in enumerate(_each(work, made, workers), start=1):
            for name, more in rows.items():
                tables.setdefault(name, []).extend(more)
            if progress is not None:
                progress(done, len(made))
        write_tables(root, tables)
        os.replace(root, out)  # a directory may replace an empty one
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return _count(made)


def _check(layout: str, out: Path, studies: int, workers: int, full_size: bool, quality: int) -> None:
    if layout not in _LAYOUTS:
        raise UserError(f"synthetic data: layout={layout!r} is not known: choose one of {', '.join(_LAYOUTS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already and is not empty: remove it or choose another directory")
    if studies < 1:
        raise UserError(f"synthetic data: studies={studies}: give at least 1")
    if workers < 1:
        raise UserError(f"synthetic data: workers={workers}: give at least 1")
    if not 1 <= quality <= 100:
        raise UserError(f"synthetic data: quality={quality}: give a JPEG quality from 1 to 100")
    if full_size and layout != "mimic_cxr":
        raise UserError(
            "synthetic data: full_size=True works with layout=mimic_cxr only: leave it out or change layout"
        )


def _count(studies: list[SyntheticStudy]) -> dict[str, int]:
    return {
        "studies": len(studies),
        "patients": len({study.patient_id for study in studies}),
        "images": sum(len(study.images) for study in studies),
        "reports": sum(bool(study.report) for study in studies),
        **{split: sum(study.split == split for study in studies) for split in ("train", "validate", "test")},
    }


def _each(work: Callable[[SyntheticStudy], Rows], studies: list[SyntheticStudy], workers: int) -> Iterator[Rows]:
    """Work on the studies in their order, here or in other processes."""
    if workers == 1:
        yield from map(work, studies)
        return
    # Spawned, not forked: the caller may hold threads whose locks a fork would freeze.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(work, studies, chunksize=max(1, min(16, len(studies) // (4 * workers))))


def _margins(image: SyntheticImage, size: int) -> tuple[int, int, int, int]:
    """Draw by how many pixels a picture is widened (or, below 0, cut) at its left, top, right and lower edge."""
    share = np.random.default_rng([image.seed, 1]).uniform(-0.04, 0.06, 4)
    left, top, right, lower = np.rint(share * size).astype(int).tolist()
    return left, top, right, lower


def _crop(picture: NDArray, margins: tuple[int, int, int, int]) -> NDArray:
    """Widen a picture with black, or cut it."""
    left, top, right, lower = margins
    height, width = picture.shape
    kept = picture[max(-top, 0) : height - max(-lower, 0), max(-left, 0) : width - max(-right, 0)]
    return np.pad(kept, ((max(top, 0), max(lower, 0)), (max(left, 0), max(right, 0))))


def _full_size(image: SyntheticImage) -> NDArray[np.uint8]:
    """Enlarge a picture to what a detector delivers, with the grain that makes such files large."""
    drawn = render([image], _FULL_DRAWN)[0]
    cut = (_FULL_HEIGHT - _FULL_WIDTH) // 2
    large = cv2.resize(drawn, (_FULL_HEIGHT, _FULL_HEIGHT), interpolation=cv2.INTER_CUBIC)[:, cut : cut + _FULL_WIDTH]
    grain = np.random.default_rng([image.seed, 2]).integers(-2, 3, large.shape, np.int8)
    return cv2.add(large, grain, dtype=cv2.CV_8U)


def _save_jpeg(path: Path, picture: NDArray[np.uint8], quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def _save_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = mask.astype(np.uint8) * np.uint8(255)
    path.write_bytes(cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes())


# MIMIC-CXR-JPG ------------------------------------------------------------------------------------------------------

_VIEW_CODES = {
    "PA": "postero-anterior",
    "AP": "antero-posterior",
    "LATERAL": "lateral",
    "LL": "left lateral",
    "": "",
}


def _write_mimic_study(job: _Job, study: SyntheticStudy) -> Rows:
    """Write the images and the report of a study where MIMIC-CXR keeps them; give the rows of its tables."""
    folder = Path("files") / f"p{study.patient_id[:2]}" / f"p{study.patient_id}"
    report = job.root / "mimic-cxr-reports" / folder / f"s{study.study_id}.txt"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(study.report, encoding="utf-8")
    keys = {"subject_id": study.patient_id, "study_id": study.study_id}
    labels = {name: "" if study.labels[name] is None else f"{study.labels[name]:.1f}" for name in CHEXPERT_LABELS}
    rows: Rows = {"chexpert": [keys | labels], "metadata": [], "split": []}
    for image in study.images:
        if job.full_size:
            picture = _full_size(image)
        else:
            picture = _crop(render([image], job.size)[0], _margins(image, job.size))
        _save_jpeg(job.root / folder / f"s{study.study_id}" / f"{image.image_id}.jpg", picture, job.quality)
        rows["metadata"].append({"dicom_id": image.image_id} | keys | _mimic_metadata(study, image, picture.shape))
        rows["split"].append(
            {"dicom_id": image.image_id, "study_id": study.study_id, "subject_id": study.patient_id}
            | {"split": study.split}
        )
    return rows


def _mimic_metadata(study: SyntheticStudy, image: SyntheticImage, shape: tuple[int, ...]) -> dict:
    """Describe an image as MIMIC-CXR does: two names for lateral views, and some views left blank."""
    rng = np.random.default_rng([image.seed, 3])
    view = "LL" if image.view == "LATERAL" and rng.random() < 0.3 else image.view
    lateral = any(other.view == "LATERAL" for other in study.images)
    portable = study.images[0].view == "AP"
    exam = (
        "CHEST (PORTABLE AP)"
        if portable and not lateral
        else "CHEST (PA AND LAT)"
        if lateral
        else "CHEST (SINGLE VIEW)"
    )
    return {
        "PerformedProcedureStepDescription": exam,
        "ViewPosition": "" if rng.random() < 0.04 else view,
        "Rows": shape[0],
        "Columns": shape[1],
        "StudyDate": study.when[0],
        "StudyTime": f"{study.when[1]}.{int(rng.integers(1000)):03d}",
        "ProcedureCodeSequence_CodeMeaning": exam,
        "ViewCodeSequence_CodeMeaning": "" if rng.random() < 0.04 else _VIEW_CODES[view],
        "PatientOrientationCodeSequence_CodeMeaning": "Recumbent" if portable and rng.random() < 0.3 else "Erect",
    }


def _write_mimic_tables(root: Path, tables: Rows) -> None:
    """Write the compressed tables; both labelers of MIMIC-CXR read the same in these plain sentences."""
    for name, rows in tables.items():
        for table in ("chexpert", "negbio") if name == "chexpert" else (name,):
            _write_table(root / f"mimic-cxr-2.0.0-{table}.csv.gz", rows)


def _write_table(path: Path, rows: list[dict]) -> None:
    import pandas as pd  # slow to import, and drawing does without

    squeezed = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None  # no date: equal data, equal bytes
    pd.DataFrame(rows).to_csv(path, index=False, compression=squeezed)


# Plain folder -------------------------------------------------------------------------------------------------------


def _write_folder_study(job: _Job, study: SyntheticStudy) -> Rows:
    """Write the images and masks of a study; give its rows of ``metadata.csv``, one for each image."""
    labels = "|".join(name for name, present in study.truth.items() if present) or "No Finding"
    extra = {"sex": study.sex, "age": study.age, "questions": [asdict(question) for question in study.questions]}
    rows = []
    for image, picture in zip(study.images, render(study.images, job.size), strict=True):
        margins = _margins(image, job.size)
        picture = _crop(picture, margins)
        height, width = picture.shape
        image_path = f"images/{image.image_id}.jpg"
        _save_jpeg(job.root / image_path, picture, job.quality)
        boxes, masks = _write_annotations(job, image, margins, width, height)
        rows.append(
            {
                "image_path": image_path,
                "study_id": study.study_id,
                "patient_id": study.patient_id,
                "view": image.view,
                "report_text": study.report,
                "labels": labels,
                "licence": LICENCE,
                "split": "val" if study.split == "validate" else study.split,
                "source": "synthetic",
                "boxes_json": json.dumps(boxes),
                "masks_json": json.dumps(masks),
                "width": width,
                "height": height,
                "extra_json": json.dumps(extra),
            }
        )
    return {"metadata": rows}


def _write_annotations(
    job: _Job, image: SyntheticImage, margins: tuple[int, int, int, int], width: int, height: int
) -> tuple[list[dict], list[dict]]:
    """Write the masks of an image; describe boxes and masks in the pixels of the picture as it was cropped."""
    found, drawn = annotate(image, job.size)
    boxes, masks = [], []
    for box in found:
        ends = np.array(box["xyxy"]) + np.array(margins[:2] * 2)
        x0, y0, x1, y1 = np.clip(ends, 0, [width, height, width, height]).tolist()
        if x1 > x0 and y1 > y0:
            boxes.append({"label": box["label"], "xywh": [x0, y0, x1 - x0, y1 - y0], "origin": "synthetic"})
    for label, mask in drawn.items():
        kept = _crop(mask, margins)
        if kept.any():
            path = f"masks/{image.image_id}_{label.lower().replace(' ', '-')}.png"
            _save_mask(job.root / path, kept)
            masks.append({"label": label, "path": path, "origin": "synthetic"})
    return boxes, masks


def _write_folder_tables(root: Path, tables: Rows) -> None:
    _write_table(root / "metadata.csv", tables["metadata"])


_LAYOUTS = {
    "mimic_cxr": (_write_mimic_study, _write_mimic_tables),
    "folder": (_write_folder_study, _write_folder_tables),
}
LAYOUTS: tuple[str, ...] = tuple(_LAYOUTS)
