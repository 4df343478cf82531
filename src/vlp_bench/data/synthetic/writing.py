"""Synthetic studies written to disk as public data sets are; `layouts/` has one file for each data set."""

import hashlib
import importlib
import io
import multiprocessing
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vlp_bench.data.synthetic.drawing import annotate, render
from vlp_bench.data.synthetic.sampling import sample_studies
from vlp_bench.data.synthetic.world import SyntheticImage, SyntheticStudy
from vlp_bench.errors import UserError

Progress = Callable[[int, int], None]
Rows = dict[str, list[dict]]  # rows for each table that a study adds to

_FULL_WIDTH, _FULL_HEIGHT = 2544, 3056
_FULL_DRAWN = 1024  # side at which full-size pictures are drawn before they are enlarged


@dataclass(frozen=True, slots=True)
class Job:
    """How the images of a study are written."""

    root: Path
    size: int
    full_size: bool
    quality: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture, and the truth in its pixels.

    Attributes:
        picture: uint8 (H, W).
        boxes: {label, xywh}, one for each side or device.
        masks: bool (H, W) by label: the findings that can be seen, `Lungs` and `Heart`.
    """

    picture: NDArray[np.uint8]
    boxes: list[dict[str, Any]]
    masks: dict[str, NDArray[np.bool_]]


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
        layout: a name of ``layout_names()``.
        out: Directory to make; it may exist if it is empty.
        studies: How many studies.
        seed: Fixes all of them; the files are the same whatever ``workers`` is.
        size: Side in pixels of the square field from which each picture is cropped or padded by a few percent.
        workers: Processes to draw with.
        progress: Called with the number of studies done and the number of all.
        full_size: Write pictures of 2544 x 3056 pixels, as large as real ones (1 to 2 MB as JPEG), for timing.
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
        tables: Rows = {}
        work = partial(_write_study, layout, Job(root, size, full_size, quality))
        for done, rows in enumerate(_each(work, made, workers), start=1):
            for name, more in rows.items():
                tables.setdefault(name, []).extend(more)
            if progress is not None:
                progress(done, len(made))
        _layout(layout).write_tables(root, tables)
        os.replace(root, out)  # a directory may replace an empty one
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return _count(made)


def _check(layout: str, out: Path, studies: int, workers: int, full_size: bool, quality: int) -> None:
    if layout not in layout_names():
        raise UserError(f"synthetic data: layout={layout!r} is not known: choose one of {', '.join(layout_names())}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already and is not empty: remove it or choose another directory")
    if studies < 1:
        raise UserError(f"synthetic data: studies={studies}: give at least 1")
    if workers < 1:
        raise UserError(f"synthetic data: workers={workers}: give at least 1")
    if not 1 <= quality <= 100:
        raise UserError(f"synthetic data: quality={quality}: give a JPEG quality from 1 to 100")


def layout_names() -> list[str]:
    """The data sets whose raw layout can be written."""
    folder = Path(__file__).parent / "layouts"
    return sorted(f.stem for f in folder.glob("*.py") if f.stem != "__init__")


def _layout(name: str) -> ModuleType:
    return importlib.import_module(f"vlp_bench.data.synthetic.layouts.{name}")


def _write_study(layout: str, job: "Job", study: SyntheticStudy) -> Rows:
    return _layout(layout).write_study(job, study)


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


def draw(job: Job, image: SyntheticImage) -> Drawn:
    """Draw an image as a detector and its software would leave it: cropped or padded, or at full size."""
    return _full_size(image) if job.full_size else _cropped(image, job.size)


def _cropped(image: SyntheticImage, size: int) -> Drawn:
    share = np.random.default_rng([image.seed, 1]).uniform(-0.04, 0.06, 4)
    left, top, right, lower = np.rint(share * size).astype(int).tolist()

    def crop(pixels: NDArray) -> NDArray:
        """Widen with black, or cut."""
        kept = pixels[max(-top, 0) : size - max(-lower, 0), max(-left, 0) : size - max(-right, 0)]
        return np.pad(kept, ((max(top, 0), max(lower, 0)), (max(left, 0), max(right, 0))))

    boxes, masks = annotate(image, size)
    picture = crop(render([image], size)[0])
    return Drawn(picture, _clipped(boxes, (left, top), 1.0, picture.shape), {k: crop(m) for k, m in masks.items()})


def _full_size(image: SyntheticImage) -> Drawn:
    """Enlarge a picture to what a detector delivers, with the grain that makes such files large."""
    cut = (_FULL_HEIGHT - _FULL_WIDTH) // 2

    def enlarge(pixels: NDArray, how: int) -> NDArray:
        return cv2.resize(pixels, (_FULL_HEIGHT, _FULL_HEIGHT), interpolation=how)[:, cut : cut + _FULL_WIDTH]

    large = enlarge(render([image], _FULL_DRAWN)[0], cv2.INTER_CUBIC)
    grain = np.random.default_rng([image.seed, 2]).integers(-2, 3, large.shape, np.int8)
    boxes, masks = annotate(image, _FULL_DRAWN)
    return Drawn(
        np.asarray(cv2.add(large, grain, dtype=cv2.CV_8U), np.uint8),
        _clipped(boxes, (-cut, 0), _FULL_HEIGHT / _FULL_DRAWN, large.shape),
        {k: enlarge(m.astype(np.uint8), cv2.INTER_NEAREST) > 0 for k, m in masks.items()},
    )


def _clipped(boxes: list[dict], offset: tuple[int, int], scale: float, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    found = []
    for box in boxes:
        ends = np.array(box["xyxy"]) * scale + np.tile(offset, 2)
        x0, y0, x1, y1 = np.clip(ends, 0, np.tile(shape[::-1], 2)).round().astype(int).tolist()
        if x1 > x0 and y1 > y0:
            found.append({"label": box["label"], "xywh": [x0, y0, x1 - x0, y1 - y0]})
    return found


def save_jpeg(path: Path, picture: NDArray[np.uint8], quality: int) -> None:
    """Write grey or colour (BGR) pixels."""
    save(path, cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def save_png(path: Path, picture: NDArray) -> None:
    """Write grey pixels of 8 or 16 bits, or a mask as 0 and 255."""
    grey = picture.astype(np.uint8) * np.uint8(255) if picture.dtype == np.bool_ else picture
    save(path, cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes())


#: Storage classes by modality.
_CLASSES = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1", "OT": "1.2.840.10008.5.1.4.1.1.7"}


def save_dicom(path: Path, picture: NDArray, *, encoding: str = "raw", quality: int = 90, **attributes: Any) -> None:
    """Write a picture as DICOM, without a date: equal pictures and attributes give equal bytes.

    Args:
        path: of the file.
        picture: grey (H, W), frames (N, H, W), or colour (H, W, 3, RGB), of 8 or 16 bits, signed or not.
        encoding: `raw`, `jpeg` (baseline, 8 bits) or `jpeg2000` (lossless; needs pylibjpeg).
        quality: of JPEG, 1 to 100.
        attributes: DICOM attributes by keyword beside, or instead of, those that the picture gives, such as
            `BitsStored=12`, `PhotometricInterpretation="MONOCHROME1"` or `WindowCenter=2048`; None leaves one out.
            `Modality` (CR, DX or OT, a secondary capture) gives the SOP class.

    Raises:
        ValueError: an unknown encoding.
    """
    from pydicom import uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    syntaxes = {
        "raw": uid.ExplicitVRLittleEndian, "jpeg": uid.JPEGBaseline8Bit, "jpeg2000": uid.JPEG2000Lossless
    }  # fmt: skip
    if encoding not in syntaxes:
        raise ValueError(f"encoding={encoding!r}: expected one of {', '.join(syntaxes)}")
    shown = _described(picture) | {"Modality": "CR"} | attributes
    stem = str(shown.setdefault("SOPInstanceUID", uid.generate_uid(entropy_srcs=[path.stem, _digest(picture)])))
    shown.setdefault("SOPClassUID", _CLASSES[shown["Modality"] or "CR"])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.UID(shown["SOPClassUID"] or _CLASSES["CR"])
    meta.MediaStorageSOPInstanceUID = uid.UID(stem)
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if encoding == "jpeg2000" else syntaxes[encoding]
    file = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=bytes(128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # archives have odd values, and so do we
        _fill(file, picture, shown, encoding, quality)
        buffer = io.BytesIO()
        file.save_as(buffer, enforce_file_format=True)
    save(path, buffer.getvalue())


def _fill(file: Any, picture: NDArray, shown: dict[str, Any], encoding: str, quality: int) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    for name, value in shown.items():
        if value is not None:
            setattr(file, name, value)
    file.PixelData = picture.tobytes() + bytes(picture.nbytes % 2)
    if encoding == "jpeg":
        colours = picture[..., ::-1] if picture.ndim == 3 else picture
        jpeg = cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        file.PixelData = encapsulate([jpeg])
        file["PixelData"].is_undefined_length = True
    elif encoding == "jpeg2000":
        file.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)


def _digest(picture: NDArray) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _described(picture: NDArray) -> dict[str, Any]:
    """The attributes of the image pixel module."""
    colour = picture.ndim == 3 and picture.shape[2] == 3
    bits = 8 * picture.dtype.itemsize
    frames = {"NumberOfFrames": len(picture)} if picture.ndim == 3 and not colour else {}
    height, width = picture.shape[:2] if colour else picture.shape[-2:]
    return (
        frames
        | {
            "SamplesPerPixel": 3 if colour else 1,
            "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
            "Rows": height,
            "Columns": width,
            "BitsAllocated": bits,
            "BitsStored": bits,
            "HighBit": bits - 1,
            "PixelRepresentation": int(picture.dtype.kind == "i"),
        }
        | ({"PlanarConfiguration": 0} if colour else {})
    )


def save(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_table(path: Path, rows: list[dict], **options: Any) -> None:
    """Write rows as csv, gzipped if the name ends so; options are those of pandas' `to_csv`."""
    import pandas as pd  # slow to import, and drawing does without

    squeezed = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None  # no date: equal data, equal bytes
    pd.DataFrame(rows).to_csv(path, **{"index": False, "compression": squeezed} | options)
