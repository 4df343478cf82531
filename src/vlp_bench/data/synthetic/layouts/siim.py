"""SIIM-ACR Pneumothorax: the DICOM of stage 1 with their runs, and beside them the re-release as PNG."""

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vlp_bench.data.synthetic.world import SyntheticImage, SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save_dicom, save_png, write_table

FINDING = "Pneumothorax"
PNG = "siim-acr-pneumothorax"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    """Write the first frontal image of a study; give a row of runs for each region, or -1."""
    image = study.frontal
    if image is None:
        return {}
    part = "test" if study.split == "test" else "train"
    drawn = draw(job, image)
    name = image_uid(image)
    folder = f"dicom-images-{part}/{image_uid(image, 2)}/{image_uid(image, 3)}"
    save_dicom(
        job.root / folder / f"{name}.dcm", drawn.picture, encoding="jpeg", quality=job.quality,
        SpecificCharacterSet="ISO_IR 100", SOPClassUID=SECONDARY_CAPTURE, SOPInstanceUID=name, Modality="CR",
        ConversionType="WSD", SeriesDescription=f"view: {image.view}", StudyInstanceUID=image_uid(image, 2),
        SeriesInstanceUID=image_uid(image, 3), PatientID=image.image_id, PatientName=image.image_id,
        PatientSex=study.sex, PatientAge=str(study.age), BodyPartExamined="CHEST", ViewPosition=image.view,
        PixelSpacing=[0.168, 0.168], LossyImageCompression="01", LossyImageCompressionMethod="ISO_10918_1",
    )  # fmt: skip
    rng = np.random.default_rng([image.seed, 6])
    if rng.random() < 0.02:
        return {}  # some DICOM have no row
    mask = drawn.masks.get(FINDING, np.zeros(drawn.picture.shape, np.bool_))
    save_png(job.root / PNG / "png_images" / f"{name}.png", drawn.picture)
    save_png(job.root / PNG / "png_masks" / f"{name}.png", mask)
    cells = [f" {runs(region)}" for region in _drawn(mask, rng)] or [" -1"]
    if rng.random() < 0.04:
        cells.append(cells[-1])  # and some rows stand there twice
    return {
        f"png_{part}": [{"ImageId": name, "has_pneumo": int(mask.any())}],
        "runs": [{"ImageId": name, " EncodedPixels": cell} for cell in cells if part == "train"],
    }


def _drawn(mask: NDArray[np.bool_], rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """The masks that somebody drew: one for each region, some of them in two pieces."""
    count, regions = cv2.connectedComponents(mask.astype(np.uint8))
    found = [regions == k for k in range(1, count)]
    if found and rng.random() < 0.3:
        whole = found.pop()
        upper = np.arange(len(whole))[:, None] < np.median(np.nonzero(whole)[0])
        found += [half for half in (whole & upper, whole & ~upper) if half.any()]
    return found


def image_uid(image: SyntheticImage, level: int = 4) -> str:
    """The id of an image, or of its study (2) or series (3), as the challenge has them."""
    digits = int(image.image_id.replace("-", "")[:20], 16)
    return (
        f"1.2.276.0.7230010.3.1.{level}.8323329.{digits % 31_000 + 1000}.{digits // 31_000 % 10**10}.{digits % 10**6}"
    )


def runs(mask: NDArray[np.bool_]) -> str:
    """Runs down the columns: how many pixels lie between them, and how long they are."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    pairs = np.stack([starts - np.concatenate([[0], ends[:-1]]), ends - starts], 1)
    return " ".join(map(str, pairs.ravel()))


def write_tables(root: Path, tables: Rows) -> None:
    """Write the csv files, and give the PNG their names, which number them."""
    write_table(root / "train-rle.csv", tables.get("runs") or [{"ImageId": "", " EncodedPixels": ""}])
    for part in ("train", "test"):
        rows = []
        for n, row in enumerate(tables.get(f"png_{part}", [])):
            name = f"{n}_{part}_{row['has_pneumo']}_.png"
            rows.append({"new_filename": name} | row)
            for folder in ("png_images", "png_masks"):
                os.replace(root / PNG / folder / f"{row['ImageId']}.png", root / PNG / folder / name)
        columns = ["new_filename", "ImageId", "has_pneumo"]
        write_table(root / PNG / f"stage_1_{part}_images.csv", rows, columns=columns if rows else None, header=columns)
